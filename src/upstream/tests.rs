//! The upstream part against real HTTP on loopback: a fake registry that counts and misbehaves.

mod blob;
mod cloud;
mod fake;
mod health;
mod listing;
mod login;
mod manifest;
mod redirect;
mod vault;

use std::sync::Arc;
use std::time::Duration;

use self::fake::Fake;
use super::{Config, Endpoint, Error, Upstream};
use crate::context::RequestContext;
use crate::oci::{Algorithm, Digest, Registry, RepoName};

/// An upstream with these endpoints, in order, changed by `adjust`.
fn upstream_with(endpoints: &[&str], adjust: impl FnOnce(&mut Config)) -> Arc<Upstream> {
    let endpoints = endpoints.iter().map(|url| Endpoint::parse(url).unwrap()).collect();
    let mut config = Config::new(Registry::parse("registry.example.com").unwrap(), endpoints);
    config.timeouts.idle = Duration::from_millis(200);
    adjust(&mut config);
    Upstream::build(&config, Arc::new(|_, _| {})).unwrap()
}

/// An upstream with one endpoint.
fn upstream_of(fake: &Fake) -> Arc<Upstream> {
    upstream_with(&[&fake.url()], |_| {})
}

/// Where the requests of clients have come from.
fn client() -> RequestContext {
    RequestContext::default()
}

fn name(text: &str) -> RepoName {
    RepoName::parse(text).unwrap()
}

fn digest_of(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// The error of something that must not succeed and has no `Debug`.
fn error_of<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error,
    }
}
