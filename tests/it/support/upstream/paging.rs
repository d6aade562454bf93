//! How registries lead from one page of a list of tags to the next: each in its own way.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::wire::Request;

/// A registry's kind of cursor. It knows no other: what it does not know is 400, or the first page again where real ones
/// pass over what they do not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    /// The last tag, as the specification says.
    Last,
    /// Quay's: a token beside the page size.
    NextPage,
    /// `last=` that is no tag.
    OpaqueLast,
    /// How many there were before, under names that only this registry has.
    Offset,
    /// A token alone, at an absolute URL of another host, as of a registry behind a proxy.
    Token,
    /// The last tag and an empty parameter, as Azure.
    Azure,
}

impl Paging {
    pub(crate) const ALL: [Self; 6] =
        [Self::Last, Self::NextPage, Self::OpaqueLast, Self::Offset, Self::Token, Self::Azure];

    /// How many tags a page is behind; none if that cannot be known.
    pub(super) fn begin(self, request: &Request, tags: &BTreeMap<String, String>) -> Option<usize> {
        let key = match self {
            Self::Last | Self::OpaqueLast | Self::Azure => "last",
            Self::NextPage => "next_page",
            Self::Offset => "page[offset]",
            Self::Token => "token",
        };
        let Some(cursor) = request.query(key) else { return Some(0) };
        match self {
            Self::Last | Self::Azure => {
                let is_behind = |tag: &&String| **tag <= cursor;
                (self == Self::Last || request.query("orderby").is_some())
                    .then(|| tags.keys().filter(is_behind).count())
            }
            Self::Offset => cursor.parse().ok(),
            Self::NextPage | Self::OpaqueLast | Self::Token => read(&cursor),
        }
    }

    /// The query of the page behind so many tags.
    pub(super) fn next(self, size: usize, end: usize, last: &str) -> String {
        match self {
            Self::Last => format!("n={size}&last={last}"),
            Self::NextPage => format!("n={size}&next_page={}", token(end)),
            Self::OpaqueLast => format!("last={}&n={size}", token(end)),
            Self::Offset => format!("n={size}&page%5Boffset%5D={end}&sort"),
            Self::Token => format!("token={}&n={size}", token(end)),
            Self::Azure => format!("last={last}&n={size}&orderby="),
        }
    }

    /// The header that leads there.
    pub(super) fn link(self, path: &str, query: &str) -> String {
        match self {
            Self::Last => format!("<{path}?{query}>; rel=\"next\""),
            Self::NextPage => format!("<{path}?{query}>; rel=\"next\"; title=\"a, <b>; rel=prev\""),
            Self::OpaqueLast => format!("<?{query}>;REL=next"),
            Self::Offset => format!("<{path}?n=1>; rel=first, <{path}?{query}>; rel=\"start next\""),
            Self::Token => format!("<https://elsewhere.example/x?{query}>; rel=\"next\""),
            Self::Azure => format!("<{path}?{query}>; title=next; rel=\"next\""),
        }
    }
}

/// Looks like nothing, has characters that mean something in a URL, and differs from page to page.
fn token(end: usize) -> String {
    let token = BASE64_STANDARD.encode(format!("?>~page:{end}"));
    url::form_urlencoded::byte_serialize(token.as_bytes()).collect()
}

fn read(token: &str) -> Option<usize> {
    let text = String::from_utf8(BASE64_STANDARD.decode(token).ok()?).ok()?;
    text.strip_prefix("?>~page:")?.parse().ok()
}
