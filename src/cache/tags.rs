//! Tags: what they mean, how fresh that is, and what is served when upstream cannot say.

pub(super) mod checks;
pub mod freshness;
pub(super) mod recent_failures;
pub(super) mod refresh;
pub(super) mod resolver;
