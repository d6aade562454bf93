//! Downloads: how the bytes of a blob come from upstream to the store, once for all who want them.

pub(super) mod connection;
pub(super) mod coordinator;
pub(super) mod coverage;
pub(super) mod downloader;
pub(super) mod flight;
pub(super) mod positions;
pub(super) mod schedule;
pub(super) mod speed;
pub(super) mod writer;
