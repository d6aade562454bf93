//! Questions that a registry may not know at all, such as what refers to a manifest: what its answer means, and for how long
//! that is remembered.
//!
//! A registry that knows the question answers 200, with an empty list where there is nothing (distribution-spec, "Listing
//! Referrers"). One that does not answers with whatever it has for an unknown path: an error of any kind, or it leads
//! to a page for people. A 404 that names what is unknown is about that alone, and says nothing of other
//! repositories or manifests: anybody may ask about what is not there.

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroUsize;
use std::time::Duration;

use http::{Response, StatusCode};
use hyper::body::Incoming;
use lru::LruCache;
use serde::Deserialize;
use tokio::time::Instant;

use crate::bounded;
use crate::oci::{Digest, RepoName};
use crate::upstream::exchange::{self, Reply};
use crate::upstream::{Error, client};

/// Repositories and manifests of one endpoint that are remembered; each takes some 100 bytes. The oldest are forgotten
/// first, which costs a request.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Longest body of an error that is read: registries' own have some hundred bytes.
const ERROR_BYTES_MAX: usize = 8 * 1024;
/// Codes of errors that say what is unknown.
const NAMING: [&str; 5] =
    ["NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_INVALID", "DIGEST_INVALID"];

/// That there is no such thing as was asked for, for anybody.
pub(super) const NO_SUCH_PATH: Error = Error::Unavailable { status: 404 };

/// What an answer's status means to such a question: [`Error::is_unknown_question`], if the registry does not know it.
pub(in crate::upstream) async fn judge(
    reply: Reply,
    with_login: bool,
    (idle, deadline): (Duration, Instant),
) -> Result<Response<Incoming>, Error> {
    let status = reply.response.status();
    if reply.elsewhere && status.is_client_error() {
        // Whoever says no there does not know of the registry, whatever the reason.
        return Err(NO_SUCH_PATH);
    }
    if status == StatusCode::NOT_FOUND {
        let body = client::read(reply.response.into_body(), ERROR_BYTES_MAX, idle, deadline).await;
        return Err(match body {
            Ok(body) if names_what_is_unknown(&body) => Error::NotFound,
            // A longer page is no registry's own.
            Ok(_) | Err(Error::Malformed(_)) => NO_SUCH_PATH,
            Err(error) => error,
        });
    }
    exchange::judge(reply, with_login)
}

fn names_what_is_unknown(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<Coded>,
    }
    #[derive(Deserialize)]
    struct Coded {
        code: String,
    }

    let refusal: Option<Refusal> = serde_json::from_slice(body).ok();
    let is_naming = |error: &Coded| NAMING.contains(&error.code.as_str());
    refusal.is_some_and(|refusal| refusal.errors.iter().any(is_naming))
}

/// What an endpoint has no answer for, by a hash: two that have one by chance share an answer that is asked for in
/// another way too.
pub(in crate::upstream) struct Unanswered {
    until: LruCache<u64, (Instant, Error)>,
    hasher: RandomState,
}

impl Default for Unanswered {
    fn default() -> Self {
        Self { until: bounded::lru(REMEMBERED_MAX), hasher: RandomState::new() }
    }
}

impl Unanswered {
    /// What it said a moment ago, of all that is in the repository or of this manifest.
    pub(in crate::upstream) fn check(
        &mut self,
        name: &RepoName,
        digest: &Digest,
        now: Instant,
    ) -> Option<Error> {
        let keys = [self.key(name, digest, true), self.key(name, digest, false)];
        let found =
            keys.iter().find_map(|key| self.until.get(key).filter(|(until, _)| *until > now).cloned());
        found.map(|(_, error)| error)
    }

    /// Notes what it said until then.
    pub(in crate::upstream) fn note(
        &mut self,
        name: &RepoName,
        digest: &Digest,
        said: Error,
        until: Instant,
    ) {
        // What is wrong with one digest may be right with another.
        let is_of_all = matches!(said, Error::Unavailable { status: 404 | 405 | 406 | 410 | 501 });
        self.until.put(self.key(name, digest, is_of_all), (until, said));
    }

    /// Digests of another kind may be what a registry does not know.
    fn key(&self, name: &RepoName, digest: &Digest, is_of_all: bool) -> u64 {
        self.hasher.hash_one((name, digest.algorithm().as_str(), (!is_of_all).then_some(digest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn an_error_names_what_is_unknown_or_is_about_the_path() {
        let check = |body: &str, expected: bool| {
            assert_eq!(names_what_is_unknown(body.as_bytes()), expected, "{body}");
        };
        check(r#"{"errors":[{"code":"NAME_UNKNOWN","message":"m","detail":{"name":"x"}}]}"#, true);
        check(r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#, true);
        check(r#"{"errors":[{"code":"NOT_FOUND"}]}"#, false);
        check(r#"{"errors":[{"code":"UNSUPPORTED"}]}"#, false);
        for body in ["", "404 page not found", "{}", r#"{"errors":[]}"#, r#"{"errors":[{}]}"#, "[]"] {
            check(body, false);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_known_is_remembered_of_a_repository_and_what_is_not_there_of_a_manifest() {
        let (mut unanswered, now) = (Unanswered::default(), Instant::now());
        let minute = Duration::from_secs(60);
        let [a, b]: [RepoName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let [one, two] = [b"1", b"2"].map(|text| Digest::of(Algorithm::Sha256, text));
        let other = Digest::of(Algorithm::Sha512, b"1");
        unanswered.note(&a, &one, NO_SUCH_PATH, now + minute);
        unanswered.note(&b, &one, Error::NotFound, now + minute);
        assert_eq!(unanswered.check(&a, &two, now), Some(NO_SUCH_PATH));
        assert_eq!(unanswered.check(&a, &other, now), None);
        assert_eq!(unanswered.check(&b, &one, now), Some(Error::NotFound));
        assert_eq!(unanswered.check(&b, &two, now), None);
        assert_eq!(unanswered.check(&a, &one, now + minute), None);
    }
}
