//! The error codes of the distribution protocol, and the JSON body that carries one.
//!
//! Codes only: which HTTP status goes with which failure is decided in one table at the HTTP edge, because
//! it depends on what makes clients fall back (protocol notes B.1, B.8), not on the code alone.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

/// What a client is told went wrong. The first group is the distribution-spec's own list, as far as a mirror
/// can fail; the second is in use by the reference registry and understood by clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// No such blob in this repository.
    BlobUnknown,
    /// The client may not see this.
    Denied,
    /// Not a digest, or one of an algorithm that is not supported.
    DigestInvalid,
    /// Not a manifest.
    ManifestInvalid,
    /// No such manifest in this repository.
    ManifestUnknown,
    /// Not a repository name.
    NameInvalid,
    /// No such repository, or no such registry.
    NameUnknown,
    /// Too many requests.
    TooManyRequests,
    /// The client must say who it is.
    Unauthorized,
    /// A mirror does not do this: pushes and deletes.
    Unsupported,

    /// A page size that is not a number.
    PaginationNumberInvalid,
    /// A range that begins behind the end.
    RangeInvalid,
    /// Not a tag.
    TagInvalid,
    /// Cannot be had now: upstream is out of reach, or berth is going down.
    Unavailable,
    /// A failure of berth itself.
    Unknown,
}

impl ErrorCode {
    /// The code as it stands in the body.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unsupported => "UNSUPPORTED",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// The body of an error answer, to be sent as `application/json`.
pub fn body(code: ErrorCode, message: &str) -> Bytes {
    json!({ "errors": [{ "code": code.as_str(), "message": message }] }).to_string().into()
}

/// Whether a body is an error of a registry: a list of `errors`, each with its code. Codes are not compared, because
/// registries have their own.
pub fn is_error_body(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: String,
    }
    let read = serde_json::from_slice::<Body>(body);
    read.is_ok_and(|body| !body.errors.is_empty() && body.errors.iter().all(|entry| !entry.code.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_error_is_told_from_what_others_say() {
        let check =
            |body: &str, expected: bool| assert_eq!(is_error_body(body.as_bytes()), expected, "{body}");
        check(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no","detail":{"Tag":"1"}}]}"#, true);
        check("\n{\"request\":1,\"errors\":[{\"code\":\"X\"},{\"code\":\"Y\"}]}\n", true);
        check(std::str::from_utf8(&body(ErrorCode::Denied, "no")).unwrap(), true);
        check(r#"{"errors":[]}"#, false);
        check(r#"{"errors":[{"message":"Not found","status":404}]}"#, false);
        check(r#"{"errors":"not found"}"#, false);
        check(r#"{"error":"not found","code":404}"#, false);
        check("404 page not found\n", false);
        check("<html>404 Not Found</html>", false);
        check("", false);
        check("{}", false);
        check("[]", false);
        check("null", false);
    }

    #[test]
    fn a_body_is_one_error_with_its_text_escaped() {
        let text = body(ErrorCode::NameUnknown, "no \"x\"\n");
        assert_eq!(&text[..], br#"{"errors":[{"code":"NAME_UNKNOWN","message":"no \"x\"\n"}]}"#);
    }
}
