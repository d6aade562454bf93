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
//! [`oci`] has the words of the protocol. [`store`] keeps content on disk, `remote` asks one registry, and [`upstream`]
//! decides which registry is asked. [`cache`] is the heart: hit, join, download, check, serve stale. [`http`] is the door,
//! [`app`] puts the parts together, and [`cli`] is what a person types.
//!
//! A hit goes `http::server` → `http::registry`, which authenticates ([`access`]), routes ([`oci::route`]) and authorizes, →
//! [`cache`] → [`store`], and out again by `http::server::transport` (`sendfile`). A miss goes on from [`cache`] to `cache::download` → [`upstream`] → `remote` → [`net`], and its bytes come
//! back by way of a partial file in [`store`].
//!
//! # Floors
//! ```text
//! 13  main
//! 12  cli                      what a person types
//! 11  app                      the parts, put together
//! 10  config                   the sections of the other rooms, put together
//!  9  http                     the registry's API, the admin plane, and the server beneath both
//!  8  cache                    mirrored repositories
//!  7  upstream                 which registry is asked, and when again
//!  6  remote                   one registry asked
//!  5  access   credentials     who asks berth; what berth is to others
//!  4  net   store              HTTP client plumbing; content on disk. Neither knows the other
//!  3  parsing                  of documents that strangers wrote
//!  2  shares                   of what is scarce
//!  1  context   ratelimit   singleflight   telemetry   watch
//!  0  bounded   clock   files   oci   sync   units   nothing of ours; oci does no I/O and reads no clock
//! ```
//! A room uses lower floors only, and so do the rooms inside a room; `tests/it/tidy` holds both. A heavy crate has one home,
//! which is in the same test.
//!
//! What is not built yet has its place. Hosted repositories (`hosted`) stand beside [`cache`], with their methods in
//! [`oci::route`] and their actions in [`access`]; one face over both (`content`) stands above them. A verdict (`policy`) is
//! asked by `http::registry` as soon as the digest is known: after the authorization of a blob, and when a manifest was found,
//! also on the way of a hit, so it has to be in memory. Object storage (`object_store`) stands beside `remote`, since it needs
//! [`net`] and [`credentials`]; `cache::download` asks it before [`upstream`], and hands it what was committed. Copy and
//! replication use `remote` directly. What happened is told in `events`, on the lowest floor.
//!
//! # Glossary
//! One word for one thing; these and the words of the OCI specifications and of HTTP are all that is needed.
//!
//! *Whose content.*
//! - **registry**: where images come from, by the name that images carry (`docker.io`); **repository**: a name within a
//!   registry; **remote**: one registry that is asked, and knows of no other; **upstream**: a registry as berth reaches it,
//!   with everything that is asked in its place.
//! - **endpoint**: one URL of a registry; **parent**: a berth, or another mirror, that is asked before the registry;
//!   **fallback**: another registry that is asked when a registry's own endpoints have no answer; **peer**: a berth that has
//!   proven to be one; **unlisted**: a registry that the configuration does not name.
//! - **grant**: a record that a repository may be served a digest, and how that was proven; **claim**: what a registry says
//!   about a digest before it has sent it; **refuted**: a claim that the bytes have shown to be wrong.
//! - **public**: came from upstream without a credential, so that any repository may share it.
//! - **speaker**: who sent bytes or made a claim: the registry, a fallback or a parent.
//!
//! *How content comes.*
//! - **flight**: one transfer of one digest from one registry, owned by no connection; **reader**: a request that follows it;
//!   **lead**, **join**: to begin a flight, to read along.
//! - **partial**: what a flight has written before the digest is proven; **piece map**: which ranges of it are there.
//! - **pass through**: to send a blob to a client without storing it.
//! - **attempt**: one request to one endpoint; **hedge**: a second endpoint asked beside one that is late; **circuit**: whether
//!   an endpoint is asked at all; **probe**: a request that finds out.
//!
//! *How content stays.*
//! - **ref**: a small file that is the truth about a tag, a manifest or a grant; **index**: what is derived from refs and
//!   may be lost.
//! - **closure**: an image with everything that its manifests name.
//! - **fresh**, **stale**: confirmed by upstream lately enough; served although upstream would have had to confirm it and
//!   could not; **refresh**: to confirm now.
//! - **evict**: to remove the image that has gone unused for longest; **pin**: what keeps an image; **lease**: the time in
//!   which what was just served is not evicted.
//! - **scrub**: to hash stored files in the background; **quarantine**: where damaged ones are put.
//!
//! *Who may do what, and how much.*
//! - **plane**: what a listener serves: data, admin or metrics; **client**: who asks berth, by login or address;
//!   **principal**: who a client was found to be.
//! - **credential**: what berth shows to a registry; **login**: a user name and a password; **token**: what a realm gives for
//!   them; **realm**: the server that does.
//! - **owner**: the client and the registry that something is done for; **share**: what an owner has of a limit; **seat**: the
//!   right to one of a limited number of things at once.
//! - **chain**: the berths that a request has come through; **level**: how many they are; **deadline**: until when its client
//!   waits; **context**: all of this together.
//!
//! # Work on it
//! - Build and run: `cargo run -- serve`. One test: `cargo test --test it -- pull::` (any part of its path). Everything:
//!   `tests/run`. Figures: `benches/run`, or `benches/run before=PROGRAM` against an earlier build.
//! - A **setting** is a field of the `Config` of the room that it acts in, with its key in `config/berth.toml` (a test holds
//!   them to each other) and a decision in `config/diff.rs` whether a reload takes it: without one it does not compile.
//! - A **command** is a file in `cli/commands/` and a variant in `cli.rs`. If it acts on the data folder, the daemon that has it is asked by the admin
//!   API: its types and paths are in `http/admin/`.
//! - A **metric** is a field in the part of `telemetry/metrics/` that it belongs to, and a row in README (a test holds them to
//!   each other).
//! - A **quirk of a registry** is understood where its answer is read, in `remote`, with a test that has the fake upstream of
//!   `tests/it/support` behave so.
//!
//! # What is deliberately absent
//! No push to a mirrored repository. No content coding. No database that must be kept. No request that waits for another client. No
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
