//! The parts of the measurement: each answers the question that its file begins with.
//!
//! - [`hot`], [`tls`], [`manifest`]: content that is there, in the clear, over TLS, and small;
//! - [`cold`], [`ranges`], [`connections`]: content that nobody has yet;
//! - [`memory`]: what a server holds when it rests, and when it is busy;
//! - [`scale`]: a store of a million blobs.

pub(crate) mod cold;
pub(crate) mod connections;
pub(crate) mod hot;
pub(crate) mod manifest;
pub(crate) mod memory;
pub(crate) mod ranges;
pub(crate) mod scale;
pub(crate) mod tls;
