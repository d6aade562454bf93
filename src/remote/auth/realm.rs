//! Which token servers may be asked, and be sent a credential. Pure.
//!
//! The realm of a challenge is text from outside. It must be on the registry's own host or registrable domain,
//! or be named in the configuration; and a registry with TLS must have a token server with TLS. One that is named without,
//! at the registry's own authority, is asked with TLS.

use url::{Host, Url};

use crate::net::DialPolicy;
use crate::net::HostName;
use crate::net::guard::shorten;
use crate::oci::Registry;
use crate::remote::error::Refusal;
use crate::remote::redirect;

/// Registries that are known to keep their token server on another domain.
const KNOWN_REALM_HOSTS: [(&str, &str); 1] = [("lscr.io", "ghcr.io")];
/// Bytes of the longest realm that is accepted.
const REALM_BYTES_MAX: usize = 2048;

/// Judges the realm of a challenge that came from `endpoint`, and says how it may be dialled.
///
/// # Errors
/// A [`Refusal`] that names the rule.
pub(crate) fn judge(
    realm: &str,
    endpoint: &Url,
    registry: &Registry,
    allowed: &[HostName],
) -> Result<(Url, DialPolicy), Refusal> {
    let mut url = Url::parse(realm).map_err(|_| Refusal::RealmTarget)?;
    url.set_fragment(None);
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.as_str().len() <= REALM_BYTES_MAX;
    let (true, Some(host)) = (is_plain, url.host_str()) else { return Err(Refusal::RealmTarget) };
    if let Some(upgraded) = redirect::upgrade(endpoint, &url) {
        return Ok((upgraded, DialPolicy::Direct));
    }
    if endpoint.scheme() == "https" && url.scheme() != "https" {
        return Err(Refusal::RealmPlainText { host: shorten(host) });
    }
    if url.host() == endpoint.host() || allowed.iter().any(|name| name.is_host_of(&url)) {
        return Ok((url, DialPolicy::Direct));
    }
    let is_known = KNOWN_REALM_HOSTS.iter().any(|(of, realm)| *of == registry.as_str() && *realm == host);
    if is_known || share_domain(&url, endpoint) {
        return Ok((url, DialPolicy::Guarded));
    }
    Err(Refusal::RealmHost { host: shorten(host) })
}

/// Whether both hosts are below one registered domain.
fn share_domain(one: &Url, other: &Url) -> bool {
    let domain = |url: &Url| match url.host() {
        Some(Host::Domain(name)) => psl::domain_str(name.trim_end_matches('.')).map(str::to_owned),
        _ => None,
    };
    domain(one).is_some_and(|domain_of_one| Some(domain_of_one) == domain(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn realms_are_near_their_registry() {
        let check = |endpoint: &str, realm: &str, expected: Option<DialPolicy>| {
            let endpoint = Url::parse(endpoint).unwrap();
            let registry = Registry::parse(endpoint.host_str().unwrap()).unwrap();
            let allowed = [HostName::parse("login.example.org").unwrap()];
            let judged = judge(realm, &endpoint, &registry, &allowed);
            assert_eq!(judged.ok().map(|(_, way)| way), expected, "{endpoint} {realm}");
        };
        let (direct, guarded) = (Some(DialPolicy::Direct), Some(DialPolicy::Guarded));
        check("https://registry-1.docker.io", "https://auth.docker.io/token", guarded);
        check("https://registry.gitlab.com", "https://gitlab.com/jwt/auth?x=1", guarded);
        check("https://quay.io", "https://quay.io/v2/auth", direct);
        check("https://quay.io", "https://quay.io:8443/v2/auth", direct);
        check("https://lscr.io", "https://ghcr.io/token", guarded);
        check("https://quay.io", "https://ghcr.io/token", None);
        check("https://quay.io", "https://login.example.org/t", direct);
        check("https://quay.io", "https://evil.login.example.org/t", None);
        // B9.
        check("https://quay.io", "http://quay.io/v2/auth", direct);
        check("https://quay.io:8443", "http://quay.io:8443/v2/auth", direct);
        check("https://quay.io", "http://quay.io:8080/v2/auth", None);
        check("https://quay.io:8443", "http://quay.io/v2/auth", None);
        check("https://quay.io", "http://token.quay.io/v2/auth", None);
        check("http://quay.io", "http://quay.io/v2/auth", direct);
        check("http://quay.io", "https://quay.io/v2/auth", direct);
        check("https://quay.io", "https://evilquay.io/auth", None);
        check("https://quay.io", "https://quay.io@evil.com/auth", None);
        check("https://quay.io", "https://user:pw@quay.io/auth", None);
        check("https://quay.io", "ftp://quay.io/auth", None);
        check("https://quay.io", "/auth", None);
        check("https://quay.io", "", None);
    }

    #[test]
    fn a_public_suffix_is_nobodys_domain() {
        let check = |endpoint: &str, realm: &str, expected: bool| {
            let registry = Registry::parse("r").unwrap();
            let judged = judge(realm, &Url::parse(endpoint).unwrap(), &registry, &[]);
            assert_eq!(judged.is_ok(), expected, "{endpoint} {realm}");
        };
        check("https://a.co.uk", "https://b.co.uk/t", false);
        check("https://a.github.io", "https://b.github.io/t", false);
        check("https://r.a.co.uk", "https://t.a.co.uk/t", true);
        check("https://127.0.0.1", "https://127.0.0.2/t", false);
        check("https://registry", "https://token/t", false);
        check("https://[::1]:5000", "https://[::1]:5001/t", true);
    }

    #[test]
    fn fuzzed_realms_are_near_their_registry_and_hold_no_login() {
        let target = crate::fuzz::Target {
            name: "realm",
            words: &[
                "\n",
                "https://",
                "http://",
                "ftp:",
                "//",
                "/",
                "\\",
                "@",
                ":",
                "#",
                "?",
                "..",
                "quay.io",
                "evil.com",
                "login.example.org",
                "co.uk",
                "127.0.0.1",
                "0x7f.1",
                "[::1]",
                "[::ffff:127.0.0.1]",
                "user:pw",
                "\t",
                "%00",
                "%2e",
                "。",
                "ß",
            ],
        };
        let allowed = [HostName::parse("login.example.org").unwrap()];
        target.holds(|input| {
            let text = String::from_utf8_lossy(input);
            let (endpoint, realm) = text.split_once('\n').unwrap_or(("https://quay.io", &text));
            let Ok(endpoint) = Url::parse(endpoint) else { return };
            let Some(registry) = endpoint.host_str().and_then(|host| Registry::parse(host).ok()) else {
                return;
            };
            let Ok((url, way)) = judge(realm, &endpoint, &registry, &allowed) else { return };
            assert!(
                matches!(url.scheme(), "http" | "https")
                    && (endpoint.scheme() != "https" || url.scheme() == "https")
            );
            assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
            let is_own = url.host() == endpoint.host() || allowed[0].is_host_of(&url);
            assert!(way == DialPolicy::Guarded || is_own, "{endpoint} {url}");
            let is_known = registry.as_str() == "lscr.io" && url.host_str() == Some("ghcr.io");
            assert!(is_own || is_known || share_domain(&url, &endpoint), "{endpoint} {url}");
        });
    }
}
