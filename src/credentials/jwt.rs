//! JSON web tokens, as far as berth makes or reads them: signed to ask Google for a login, and read for their end
//! where a registry says it nowhere else. Pure.
//!
//! A token that berth was given is never verified: whom it is sent to does that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

use crate::oci::json::{self, Scalar};

/// A token of these claims, signed with an RSA key (RS256); `None` if the key cannot sign.
pub(crate) fn sign(key: &RsaKeyPair, key_id: &str, claims: &Value) -> Option<String> {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": key_id });
    let signed = format!("{}.{}", encode(&header), encode(claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// For how long a token that was issued just now is good, if it is a JWT that says so. What it says of its beginning is
/// believed rather than the clock here, which may be wrong.
pub(crate) fn lifetime(token: &str, now: SystemTime) -> Option<Duration> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let [begins, ends] = json::scalars(&URL_SAFE_NO_PAD.decode(claims).ok()?, ["iat", "exp"])?;
    let number = |scalar| if let Scalar::Number(number) = scalar { Some(number) } else { None };
    let begins = number(begins).or_else(|| Some(now.duration_since(UNIX_EPOCH).ok()?.as_secs_f64()))?;
    Duration::try_from_secs_f64(number(ends)? - begins).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_when_it_ends() {
        let check = |claims: &str, expected: Option<u64>| {
            let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
            let now = UNIX_EPOCH + Duration::from_secs(1000);
            assert_eq!(lifetime(&token, now), expected.map(Duration::from_secs), "{claims}");
        };
        check(r#"{"exp":5500,"iat":1000}"#, Some(4500));
        check(r#"{"exp":5500,"iat":5000}"#, Some(500));
        check(r#"{"exp":5500}"#, Some(4500));
        check(r#"{"exp":1e300,"iat":1}"#, None);
        check(r#"{"exp":1,"iat":5000}"#, None);
        check(r#"{"exp":"5500"}"#, None);
        check("[]", None);
        check("", None);
        let now = SystemTime::now();
        for token in ["", "opaque", "a.b", "a.!.c", "Z2hwX3Rva2Vu"] {
            assert_eq!(lifetime(token, now), None, "{token}");
        }
    }
}
