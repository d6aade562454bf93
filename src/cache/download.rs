//! Downloads: how the bytes of a blob come from upstream to the store, once for all who want them.
//!
//! A [`flight`] is one download and its readers. The [`downloader`] runs it: a coordinator decides by the schedule
//! which connections fetch what, and a writer puts it on disk. This room uses the store, the upstreams, and of the
//! cache its fairness, its errors and the memory of mismatches. Blobs use it, and passthroughs for
//! [`flight::HOLD_BACK`].

mod connection;
mod coordinator;
pub(super) mod coverage;
mod cursors;
pub(super) mod downloader;
pub(super) mod flight;
mod schedule;
mod speed;
mod writer;
