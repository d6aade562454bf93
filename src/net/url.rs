//! URLs and hosts as the configuration names them.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use url::{Host, Url};

/// Where a registry's API is: `http[s]://host[:port][/prefix]`, to which `/v2/…` is added.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl(Url);

/// Why a text is not an endpoint. It is not repeated here, because it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// Not an http or https URL.
    #[error("not an endpoint: expected http[s]://host[:port][/prefix]")]
    Url,
    /// `user:password@`.
    #[error("an endpoint cannot contain a login: use `credentials`")]
    Login,
    /// `?…`, `#…`.
    #[error("an endpoint cannot have a query or a fragment")]
    Query,
    /// Ends with `/v2`.
    #[error("an endpoint is given without its `/v2`")]
    Version,
}

impl EndpointUrl {
    /// Reads an endpoint.
    ///
    /// # Errors
    /// [`InvalidEndpoint`] says what is wrong without repeating the text.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        let mut url = Url::parse(text).map_err(|_| InvalidEndpoint::Url)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(InvalidEndpoint::Url);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidEndpoint::Login);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidEndpoint::Query);
        }
        let path = url.path().trim_end_matches('/').to_owned();
        if path.ends_with("/v2") {
            return Err(InvalidEndpoint::Version);
        }
        url.set_path(&path);
        Ok(Self(url))
    }

    /// The URL itself.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// The URL of `rest` below `/v2/`.
    pub(crate) fn at(&self, rest: &str, query: Option<&str>) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/v2/{rest}", self.0.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for EndpointUrl {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for EndpointUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// A host without port, in the form that URLs have: a DNS name in lower case, or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// Reads a host; `None` when it is something else, such as `host:port`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(Host::parse(text).ok()?.to_string()))
    }

    /// Whether `url` is on this host.
    pub(crate) fn is_host_of(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.is(host))
    }

    /// Whether this is the host of that name.
    pub fn is(&self, name: &str) -> bool {
        name.trim_end_matches('.').eq_ignore_ascii_case(self.0.trim_end_matches('.'))
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom(format!("`{text}`: expected a host without scheme and port")))
    }
}

/// Whether what may be sent to one may be sent to the other: same scheme, host and port.
pub(crate) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin().is_tuple() && one.origin() == other.origin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_plain_urls() {
        let check = |text: &str, expected: Result<&str, InvalidEndpoint>| {
            let parsed = EndpointUrl::parse(text).map(|endpoint| endpoint.to_string());
            assert_eq!(parsed, expected.map(str::to_owned), "{text}");
        };
        check("https://registry-1.docker.io", Ok("https://registry-1.docker.io"));
        check("https://Nexus.example/repository/x/", Ok("https://nexus.example/repository/x"));
        check("http://127.0.0.1:5000/", Ok("http://127.0.0.1:5000"));
        check("https://h/v2/", Err(InvalidEndpoint::Version));
        check("https://user:secret@h", Err(InvalidEndpoint::Login));
        check("https://user@h", Err(InvalidEndpoint::Login));
        check("https://h?x=1", Err(InvalidEndpoint::Query));
        check("ftp://h", Err(InvalidEndpoint::Url));
        check("registry.example.com", Err(InvalidEndpoint::Url));
        check("", Err(InvalidEndpoint::Url));
    }

    #[test]
    fn requests_go_below_the_prefix() {
        let endpoint = EndpointUrl::parse("https://h:8443/repository/x").unwrap();
        let url = endpoint.at("a/b/manifests/sha256:00", Some("n=1"));
        assert_eq!(url.as_str(), "https://h:8443/repository/x/v2/a/b/manifests/sha256:00?n=1");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        let check = |one: &str, other: &str, expected: bool| {
            assert_eq!(is_same_origin(&url(one), &url(other)), expected, "{one} {other}");
        };
        check("https://a/x", "https://A:443/y", true);
        check("https://a", "http://a", false);
        check("https://a", "https://a:444", false);
        check("https://a", "https://a.b", false);
        check("http://127.0.0.1", "http://2130706433", true);
        check("data:x", "data:x", false);
    }
}
