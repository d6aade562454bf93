//! berth: a pull-through caching mirror for container registries.

pub mod cache;
pub mod oci;
pub mod store;
pub mod telemetry;
pub mod upstream;
