//! berth: a pull-through caching mirror for container registries.
//!
//! # Tenets, in this order
//! 1. **Correct bytes.** Nothing unverified is stored under its digest; no client receives a complete body
//!    that is wrong.
//! 2. **Never worse than no mirror.** A head or a clean error long before a client gives up.
//! 3. **Upstream is touched as little as possible.** Each byte of a blob once.
//! 4. **Latency and throughput at the machine's limit.**
//! 5. **Simplicity.** One binary, no database server, no required configuration.
//!
//! # Reading order
//! [`oci`] has the words of the protocol. [`store`] keeps content on disk and [`upstream`] asks registries for
//! it. [`cache`] is the heart: hit, join, fill, check, serve stale. [`http`] is the door, [`app`] puts the parts
//! together, [`cli`] is what a person types. To follow one request: [`oci::route`] → `http::registry` →
//! [`cache`] → [`store`] or [`upstream`].
//!
//! # Layers
//! ```text
//! 9  main, cli
//! 8  app
//! 7  config                   the parts' sections, put together
//! 6  http
//! 5  cache
//! 4  store   upstream         never each other
//! 3  parsing                  of documents that strangers wrote
//! 2  shares                   of what is scarce
//! 1  context   pace   singleflight   telemetry   watch
//! 0  bounded   clock   files   net   oci   sync   units   nothing of ours; oci does no I/O and reads no clock
//! ```
//! A module uses lower layers only; `tests/it/tidy.rs` holds it to that. One home for each heavy crate: sled in
//! `store/index.rs`, clap in `cli.rs`, prometheus in `telemetry/metrics.rs`.
//!
//! # Glossary
//! - **registry**: where images come from, by the name that images carry (`docker.io`); **upstream**: how it is
//!   reached; **repository**: a name within a registry.
//! - **flight**: one transfer of one digest from upstream, owned by no connection; **reader**: a request that
//!   follows it; **fill**: what a flight does, until the blob is stored.
//! - **grant**: a repository may be served a digest, because its own upstream answered for it there.
//! - **parent**: a berth, or another mirror, that is asked before the registry itself; **context**: what is known of a
//!   request besides what it asks for: its client, the berths that it has come through, its deadline.
//! - **fallback**: another registry that is asked when a registry's own endpoints have no answer; **hedge**: a second
//!   endpoint asked beside one that is late.
//! - **public**: came from upstream without a credential, so that any repository may share it.
//! - **owner**: for which client, at which registry, something is done; **share**: what an owner has of a limit.
//! - **stale**: served although upstream would have had to confirm it and could not.
//! - **ref**: a small file that is the truth about a tag, a manifest or a grant; the **index** is derived from
//!   refs and may be lost.
//!
//! # What is deliberately absent
//! No push. No content coding. No database that must be kept. No request that waits for another client. No
//! address is dialled that the configuration does not name, but for redirects within `upstream`'s rules.

pub mod access;
pub mod app;
pub mod bounded;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod context;
pub mod credentials;
pub mod files;
#[cfg(test)]
mod fuzz;
pub mod http;
pub mod net;
pub mod oci;
pub mod parsing;
pub mod ratelimit;
mod remote;
pub mod shares;
pub mod singleflight;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod units;
pub mod upstream;
pub mod watch;
