//! Questions that a registry may not know at all, such as what refers to a manifest: what its answer means.
//!
//! A registry that knows the question answers 200, with an empty list where there is nothing (distribution-spec, "Listing
//! Referrers"). One that does not answers with whatever it has for an unknown path: an error of any kind, or it leads
//! to a page for people. A 404 that names what is unknown is about that alone, and says nothing of other
//! repositories or manifests: anybody may ask about what is not there.

use std::time::Duration;

use http::{Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::Instant;

use crate::remote::client;
use crate::remote::error::Error;
use crate::remote::exchange::verdict;
use crate::remote::transport::request::RawResponse;

/// Bytes of the longest body of an error that is read: those of registries have some hundred.
const ERROR_BYTES_MAX: usize = 8 * 1024;
/// The error codes that name what is unknown.
const NAMING: [&str; 5] =
    ["NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_INVALID", "DIGEST_INVALID"];

/// The error of an endpoint that does not know the question.
pub(crate) const NO_SUCH_PATH: Error = Error::Unavailable { status: 404 };

/// What an answer to an optional question means: an error that [`Error::is_unknown_question`] if the registry does not
/// know the question.
pub(crate) async fn judge(
    reply: RawResponse,
    with_login: bool,
    (idle, deadline): (Duration, Instant),
) -> Result<Response<Incoming>, Error> {
    let status = reply.response.status();
    if reply.elsewhere && status.is_client_error() {
        // What refuses there does not know of the registry, whatever the reason.
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
    verdict::judge(reply, with_login)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
