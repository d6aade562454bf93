//! Cursors: which page of a list of tags is asked for, in the words of the registry that has the list.
//!
//! What leads to the next page is for the registry to say (a tag, a number, a token of its own under a name of its own),
//! and only that registry can read it. So the query of its `Link` is what a client is given, and what that brings
//! back is what the registry gets: nothing is read, replaced or made up here. Of a `Link` only the query counts. Where it
//! points besides is of no interest, so that no registry sends the reader of a list anywhere else, and no client berth.
//!
//! A client may write any query. What it is known that pages are asked for by ([`KEYS`]) it may as well ask the registry
//! itself, and goes on; other keys only if they are sealed as the registry has sent them, for this repository and for
//! this endpoint alone, which alone is asked then. The key of the seal is this process's. So with keys of the first kind
//! a client can go from page to page at several berths behind one name, or while one is started anew; with others it
//! is told then to begin again.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::LINK;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use ring::hmac;
use ring::rand::SystemRandom;

use crate::net::EndpointUrl;
use crate::oci::{Registry, RepoName, link};
use crate::remote::error::Error;

/// Bytes of the longest query of a `Link`: tokens that hold a whole state, signed, have some 2,000.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;
/// The keys that any client may use: the specification's, Quay's cursor, and the order of Azure's.
const KEYS: [&str; 4] = ["n", "last", "next_page", "orderby"];
/// The key for the size of a page, which some registries limit.
const PAGE_SIZE: &str = "n";
/// The key for the registry that is meant, if a mirror is asked.
const NAMESPACE: &str = "ns";
/// The key of the seal, which is added to the query of a registry as the last.
const SEAL: &str = "seal";
const SAYS_NOTHING: &str = "a link to a next page that says nothing of it";
/// The ASCII characters that must be coded in a URL. A percent sign need not be.
const UNFIT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Which page of a list of tags a client asks for; the first, by default.
#[derive(Clone, Debug, Default)]
pub struct PageQuery {
    /// The pairs `key=value` as they came, without those that are for berth itself.
    pairs: Vec<String>,
    seal: Option<String>,
}

impl PageQuery {
    /// Reads the query of a request.
    pub fn read(query: &str) -> Self {
        let mut pairs: Vec<_> =
            pairs(query).filter(|pair| key(pair) != NAMESPACE).map(str::to_owned).collect();
        // A berth further up may have sealed it before.
        let seal = pairs.iter().rposition(|pair| key(pair) == SEAL).map(|at| pairs.remove(at));
        Self { pairs, seal: seal.map(|pair| value(&pair)) }
    }

    /// Whether the page continues a list whose beginning a registry has sent, which alone can say how.
    pub fn is_continued(&self) -> bool {
        self.seal.is_some()
    }

    /// Whether the query was sent by this endpoint for this repository.
    pub(crate) fn is_of(&self, source: Source<'_>) -> bool {
        let Some(seal) = &self.seal else { return false };
        let Ok(seal) = BASE64_URL_SAFE_NO_PAD.decode(seal) else { return false };
        let pairs = self.pairs.iter().map(String::as_str);
        hmac::verify(&SEALING, &sealed(source, pairs), &seal).is_ok()
    }

    /// Whether the query has keys that are only accepted with a seal.
    pub(crate) fn needs_seal(&self) -> bool {
        self.seal.is_some() && self.pairs.iter().any(|pair| !KEYS.contains(&&*key(pair)))
    }

    /// The query for the endpoint that has sent it, unchanged.
    pub(crate) fn as_sent(&self) -> Option<String> {
        Some(self.pairs.join("&")).filter(|query| !query.is_empty())
    }

    /// The query for any other endpoint: the keys that every client may use, each once.
    pub(crate) fn as_known(&self) -> Option<String> {
        self.known(&KEYS)
    }

    /// The same query without a page size; `None` if it has none.
    pub(crate) fn without_page_size(&self) -> Option<Option<String>> {
        let has_size = self.pairs.iter().any(|pair| key(pair) == PAGE_SIZE && !value(pair).is_empty());
        has_size.then(|| self.known(&KEYS[1..]))
    }

    fn known(&self, keys: &[&str]) -> Option<String> {
        let first = |name: &&str| {
            let pair = self.pairs.iter().find(|pair| key(pair) == **name)?;
            // Registries take an empty value of a client's for none; their own may mean something.
            (self.is_continued() || !value(pair).is_empty()).then_some(pair.as_str())
        };
        let found: Vec<_> = keys.iter().filter_map(first).collect();
        (!found.is_empty()).then(|| found.join("&"))
    }
}

/// The endpoint and list that a cursor is from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) endpoint: &'a EndpointUrl,
    pub(crate) registry: &'a Registry,
    pub(crate) name: &'a RepoName,
    /// Whether the endpoint is that of a mirror of many registries, which is told with each request which one is meant.
    pub(crate) is_mirror: bool,
}

/// The query of the page after the one that was asked for with `asked`, sealed for the client; `None` after the last.
///
/// # Errors
/// [`Error::Malformed`], if there is a next page that a client could not ask for: that is never taken for the end.
pub(crate) fn next_page(
    headers: &HeaderMap,
    asked: Option<&str>,
    source: Source<'_>,
) -> Result<Option<String>, Error> {
    let Some(query) = next_query(headers)? else { return Ok(None) };
    if !source.is_mirror && pairs(&query).any(|pair| key(pair) == NAMESPACE) {
        return Err(Error::Malformed("a link to a next page that a mirror's client cannot follow"));
    }
    let pairs: Vec<_> = pairs(&query).filter(|pair| key(pair) != NAMESPACE).collect();
    let query = pairs.join("&");
    if query.is_empty() {
        return Err(Error::Malformed(SAYS_NOTHING));
    }
    if asked.is_some_and(|asked| asked == query) {
        return Err(Error::Malformed("a list of tags whose next page is the same one"));
    }
    let tag = hmac::sign(&SEALING, &sealed(source, pairs.into_iter()));
    Ok(Some(format!("{query}&{SEAL}={}", BASE64_URL_SAFE_NO_PAD.encode(tag))))
}

/// The query of the `Link` to the next page.
///
/// # Errors
/// [`Error::Malformed`], if there is such a link and it cannot be followed.
pub(crate) fn next_query(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let lines = headers.get_all(LINK).iter().map(http::HeaderValue::as_bytes);
    let Some(target) = link::next_page(lines) else { return Ok(None) };
    let target = target.split(|byte| *byte == b'#').next().unwrap_or_default();
    let at = target.iter().position(|byte| *byte == b'?');
    let query = at.map(|at| coded(&target[at + 1..])).filter(|query| pairs(query).next().is_some());
    match query {
        Some(query) if query.len() <= QUERY_BYTES_MAX => Ok(Some(query)),
        Some(_) => Err(Error::Malformed("a link to a next page that is longer than any")),
        None => Err(Error::Malformed(SAYS_NOTHING)),
    }
}

/// A query whose characters may stand in a request and in a header: those that may not are percent-coded.
fn coded(query: &[u8]) -> String {
    percent_encode(query, UNFIT).to_string()
}

/// The key that this process seals queries with.
static SEALING: LazyLock<hmac::Key> = LazyLock::new(|| {
    hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("the system has random numbers")
});

/// The bytes that a seal is made of: all that it is valid for, each part with its length. Keys and values are decoded,
/// because clients may code them otherwise.
fn sealed<'a>(source: Source<'_>, pairs: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut text = Vec::new();
    let mut add = |part: &[u8]| {
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part);
    };
    add(source.endpoint.to_string().as_bytes());
    add(source.registry.as_str().as_bytes());
    add(source.name.as_str().as_bytes());
    for pair in pairs {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        add(&decoded(key));
        add(&decoded(value));
    }
    text
}

/// The `key=value` parts of a query.
fn pairs(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|pair| !pair.is_empty())
}

fn key(pair: &str) -> String {
    let key = pair.split('=').next().unwrap_or_default();
    String::from_utf8_lossy(&decoded(key)).into_owned()
}

fn value(pair: &str) -> String {
    let value = pair.split_once('=').map_or("", |(_, value)| value);
    String::from_utf8_lossy(&decoded(value)).into_owned()
}

/// Decodes a key or value, as in a form.
fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(&text.replace('+', " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "https://b.example";

    fn source(endpoint: &EndpointUrl, check: impl FnOnce(Source<'_>)) {
        let (registry, name) = ("r.example".parse().unwrap(), "a/b".parse().unwrap());
        check(Source { endpoint, registry: &registry, name: &name, is_mirror: false });
    }

    fn headers(link: &str) -> HeaderMap {
        HeaderMap::from_iter([(LINK, http::HeaderValue::from_bytes(link.as_bytes()).unwrap())])
    }

    #[test]
    fn of_a_link_only_the_query_is_followed_and_one_that_cannot_be_is_no_end() {
        let check = |link: &str, expected: Result<Option<&str>, ()>| {
            let found =
                next_query(&headers(link)).map_err(|error| assert!(matches!(error, Error::Malformed(_))));
            assert_eq!(found.as_ref().map(Option::as_deref), expected.as_ref().map(|query| *query), "{link}");
        };
        check(r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Ok(Some("n=2&last=b")));
        check("<https://evil/v2/a/tags/list?last=b&orderby=>; rel=next", Ok(Some("last=b&orderby=")));
        check("<?next_page=gAAA%3D%3D#x>; rel=next", Ok(Some("next_page=gAAA%3D%3D")));
        check("</t?last=é \"{x}&b=c+d>; rel=next", Ok(Some("last=%C3%A9%20%22%7Bx%7D&b=c+d")));
        check(r#"</v2/a/tags/list?n=2>; rel="prev""#, Ok(None));
        for link in ["</v2/a/tags/list>; rel=next", "</t?>; rel=next", "</t?&>; rel=next", "<>; rel=next"] {
            check(link, Err(()));
        }
        check(
            &format!("</t?a={}>; rel=next", "x".repeat(QUERY_BYTES_MAX - 2)),
            Ok(Some(&format!("a={}", "x".repeat(QUERY_BYTES_MAX - 2)))),
        );
        check(&format!("</t?a={}>; rel=next", "x".repeat(QUERY_BYTES_MAX)), Err(()));
        assert_eq!(next_query(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn a_cursor_comes_back_to_where_it_is_from_however_a_client_writes_it() {
        let [here, there] = ["https://a.example", OTHER].map(|url| EndpointUrl::parse(url).unwrap());
        source(&here, |source| {
            let next = next_page(&headers("</t?n=2&page%5B%5D=a+b&x>; rel=next"), Some("n=2"), source);
            let next = next.unwrap().unwrap();
            for query in [next.clone(), format!("ns=r.example&{next}"), next.replace("a+b", "%61%20b")] {
                let page = PageQuery::read(&query);
                assert!(page.is_continued() && page.needs_seal() && page.is_of(source), "{query}");
                assert!(!page.is_of(Source { endpoint: &there, ..source }));
                assert!(!page.is_of(Source { name: &"a/c".parse().unwrap(), ..source }));
                assert!(!page.is_of(Source { registry: &"s.example".parse().unwrap(), ..source }));
            }
            assert_eq!(PageQuery::read(&next).as_sent().as_deref(), Some("n=2&page%5B%5D=a+b&x"));
            for query in [next.replace("a+b", "a+c"), format!("y=1&{next}"), next.replace("n=2", "n=3")] {
                assert!(!PageQuery::read(&query).is_of(source), "{query}");
            }
            // A mirror's own seal stays in.
            let twice =
                next_page(&headers(&format!("</t?{next}>; rel=next")), None, source).unwrap().unwrap();
            let page = PageQuery::read(&twice);
            assert!(page.is_of(source) && page.as_sent() == Some(next.clone()));
        });
    }

    #[test]
    fn what_a_client_writes_itself_is_a_page_size_or_a_place() {
        let check = |query: &str, known: Option<&str>, without_size: Option<Option<&str>>| {
            let page = PageQuery::read(query);
            assert!(!page.is_continued() && !page.needs_seal());
            assert_eq!(page.as_known().as_deref(), known, "{query}");
            let found = page.without_page_size();
            assert_eq!(found.as_ref().map(Option::as_deref), without_size, "{query}");
        };
        check("", None, None);
        check("n=5", Some("n=5"), Some(None));
        check("ns=x&last=a%2Bb&n=5&n=6&evil=1&ns=y", Some("n=5&last=a%2Bb"), Some(Some("last=a%2Bb")));
        check("n=&last=", None, None);
        check("last=x%26evil%3D1%0d%0aX:y", Some("last=x%26evil%3D1%0d%0aX:y"), None);
        check("next_page=gAAA", Some("next_page=gAAA"), None);
        check("&&=&a", None, None);
    }

    #[test]
    fn a_page_that_leads_to_itself_or_to_another_registry_is_refused() {
        let here = EndpointUrl::parse("https://a.example").unwrap();
        source(&here, |source| {
            let next = |link: &str, asked| next_page(&headers(link), asked, source);
            assert!(matches!(next("</t?n=1>; rel=next", Some("n=1")), Err(Error::Malformed(_))));
            assert!(matches!(next("</t?n=1&ns=other>; rel=next", None), Err(Error::Malformed(_))));
            let mirror = Source { is_mirror: true, ..source };
            let query =
                next_page(&headers("</t?n=1&ns=other&last=a>; rel=next"), None, mirror).unwrap().unwrap();
            assert!(query.starts_with("n=1&last=a&seal="), "{query}");
        });
    }

    #[test]
    fn fuzzed_links_become_queries_that_can_be_asked() {
        let target = crate::fuzz::Target {
            name: "cursor",
            words: &[
                "</t?",
                ">; rel=next",
                "&",
                "=",
                "%",
                "%00",
                "+",
                "n=2",
                "ns=x",
                "seal=",
                "last=",
                "\"",
                "{",
                "\\",
                "é",
                " ",
                "#",
                "?",
            ],
        };
        let here = EndpointUrl::parse("https://a.example").unwrap();
        target.holds(|input| {
            let Ok(line) = http::HeaderValue::from_bytes(input) else { return };
            let headers = HeaderMap::from_iter([(LINK, line)]);
            source(&here, |source| {
                let Ok(Some(query)) = next_page(&headers, None, source) else { return };
                assert!(
                    query.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"#".contains(&byte)),
                    "{query}"
                );
                let page = PageQuery::read(&query);
                assert!(page.is_of(source), "{query}");
                let sent = page.as_sent().unwrap_or_default();
                assert!(query.starts_with(&sent) && sent.len() <= QUERY_BYTES_MAX);
                let url = here.at("a/b/tags/list", Some(&sent));
                assert_eq!((url.path(), url.host_str()), ("/v2/a/b/tags/list", Some("a.example")));
            });
        });
    }
}
