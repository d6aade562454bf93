//! One registry that is asked: its endpoints, one login, its limits, and its API.
//!
//! It knows of no parents, no fallbacks and no other endpoint to ask instead: which of several registries is asked, in
//! which order and when again is for the room above. Whoever needs one registry and no selection uses this.
//!
//! Its parts, each using only those before it:
//! - `event`, `error`, `message`, `retry_after`, `rewrite`, `redirect`, `mirror`: words that all the others need;
//! - `auth`: who berth is there, from a challenge to an `Authorization` header, with the tokens that it has got;
//! - `endpoint`: what is known of one endpoint: whether it is up, how fast it is, whether it takes our logins;
//! - `limits`: how much may be asked, and whose turn it is;
//! - `transport`: what every request goes out by, and `GET /v2/`;
//! - `handle`: a [`Remote`], which has one of each of these;
//! - `exchange`: one request to one endpoint, from the login to the meaning of its answer;
//! - `requests`: what is asked: manifests, blobs, lists, and whether logins are taken;
//! - `upkeep`: what is done behind all requests, such as probes.

pub(crate) mod auth;
pub(crate) mod client;
pub(crate) mod endpoint;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod exchange;
pub(crate) mod handle;
pub(crate) mod limits;
mod message;
mod mirror;
pub(crate) mod redirect;
pub(crate) mod requests;
mod retry_after;
pub(crate) mod rewrite;
mod transport;
pub(crate) mod upkeep;

pub(crate) use self::handle::{Remote, Role};
pub(crate) use self::mirror::Mirror;
