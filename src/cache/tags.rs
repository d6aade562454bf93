//! Tags: what a tag means, how fresh that is, and what is served when upstream cannot say.
//!
//! The [`resolver`] answers requests for a tag from what is stored, as [`freshness`] judges it, or after one of the
//! [`checks`], which ask upstream. [`recent_failures`] remembers what speaks against a stored tag. A [`refresh`] is a
//! check that an operator asks for. This room uses manifests, the store and upstreams; lists use its freshness, and the
//! face uses the rest.

pub(super) mod checks;
pub mod freshness;
pub(super) mod recent_failures;
pub(super) mod refresh;
pub(super) mod resolver;
