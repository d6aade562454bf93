//! AWS's signature for a request, version 4. Pure.
//!
//! Written here rather than taken from `aws-sigv4`, which brings eighteen crates more: berth signs one kind of request, a
//! POST without a query, and AWS publishes vectors to test against.

use std::time::SystemTime;

use ring::hmac;

use super::keys::Keys;
use crate::oci::{Algorithm, Digest};

/// The request that is signed: a POST.
pub(super) struct Request<'a> {
    pub(crate) path: &'a str,
    /// All that are signed, `host` and `x-amz-date` among them; names in lower case, in their order.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

/// Where a signature holds.
pub(super) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    /// As [`date`] writes it.
    pub(crate) date: &'a str,
}

/// `20150830T123600Z`, as it stands in `x-amz-date`.
pub(super) fn date(now: SystemTime) -> String {
    humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "")
}

/// The value of `Authorization`.
pub(super) fn authorization(keys: &Keys, scope: &Scope<'_>, request: &Request<'_>) -> String {
    let Scope { region, service, date } = scope;
    let day = date.split('T').next().unwrap_or_default();
    let credential_scope = format!("{day}/{region}/{service}/aws4_request");
    let names: Vec<_> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let headers: String =
        request.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let canonical = format!("POST\n{}\n\n{headers}\n{names}\n{}", request.path, hash(request.body));
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{credential_scope}\n{}", hash(canonical.as_bytes()));

    let secret = format!("AWS4{}", keys.secret.expose());
    let key = [day, region, service, "aws4_request"]
        .iter()
        .fold(secret.into_bytes(), |key, part| hmac_sha256(&key, part.as_bytes()));
    let signature = hex(&hmac_sha256(&key, to_sign.as_bytes()));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{credential_scope}, SignedHeaders={names}, Signature={signature}",
        keys.id
    )
}

fn hash(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, content).hex()
}

fn hmac_sha256(key: &[u8], content: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), content).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::net::secret::Secret;

    /// From AWS's Signature Version 4 test suite, whose request time, scope and keys are all the same.
    #[test]
    fn the_published_vectors_are_reproduced() {
        let keys = Keys {
            id: "AKIDEXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            token: None,
        };
        let date = date(UNIX_EPOCH + Duration::from_secs(1_440_938_160));
        assert_eq!(date, "20150830T123600Z");
        let scope = Scope { region: "us-east-1", service: "service", date: &date };
        let check = |headers: &[(&str, &str)], body: &str, signature: &str| {
            let request = Request { path: "/", headers, body: body.as_bytes() };
            let authorization = authorization(&keys, &scope, &request);
            let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders={}, Signature={signature}",
                names.join(";")
            );
            assert_eq!(authorization, expected);
        };
        let host = ("host", "example.amazonaws.com");
        let at = ("x-amz-date", "20150830T123600Z");
        // post-vanilla
        check(&[host, at], "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b");
        // post-x-www-form-urlencoded
        check(
            &[("content-type", "application/x-www-form-urlencoded"), host, at],
            "Param1=value1",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        );
        // post-header-value-case
        check(
            &[host, ("my-header1", "VALUE1"), at],
            "",
            "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
        );
    }
}
