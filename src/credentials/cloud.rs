//! Logins that a cloud issues for its own registries: to the machine, the pod or the account that berth runs as.
//!
//! Each of [`Ecr`], [`Google`] and [`Azure`] knows how to come from what the platform provides to something that the
//! registry takes as a login. They keep nothing: `issued` does, and decides when to ask.
//!
//! They dial the clouds' public API hosts, metadata servers on their link-local addresses, and what the configuration or
//! the platform's own environment variables name instead.

mod aws;
mod azure;
mod google;
mod google_federation;

pub use self::aws::{EcrConfig, Region};
pub use self::azure::AzureConfig;
pub use self::google::GoogleConfig;

pub(crate) use self::aws::Ecr;
pub(crate) use self::azure::Azure;
pub(crate) use self::google::Google;
