//! The HTTP server: everything that is true of each of berth's planes.
//!
//! `connections` accepts and drains, `transport` has the streams, `handler` what a plane offers. It uses neither the
//! registry API nor the admin API: a [`RequestHandler`](handler::RequestHandler) gives it responses.
//!
//! It uses `access` for networks, `cache` and `upstream` for the streams that a body is read from, and `telemetry`.

pub(crate) mod access_log;
mod activity;
pub(crate) mod body;
pub(crate) mod byte_ranges;
pub(crate) mod client_limits;
pub(crate) mod connection_limit;
pub(crate) mod connections;
pub(crate) mod handler;
pub(crate) mod head;
pub(crate) mod hosts;
pub(crate) mod refusal;
pub(crate) mod response;
pub(crate) mod tls;
pub(crate) mod transport;
