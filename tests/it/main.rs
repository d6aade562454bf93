//! The tests of the whole: a fake registry, a running berth, a client. One binary; rooms with the words of `src/`, and a
//! module per feature in them.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

mod support;

mod access;
mod auth;
mod clients;
mod clients_itself;
mod crash_itself;
mod http;
mod limits;
mod ops;
mod pull;
mod store;
mod support_itself;
mod tags;
mod tidy;
mod upstream;
