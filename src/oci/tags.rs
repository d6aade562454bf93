//! Lists of tags, read for one page of an answer: what is not on that page is passed over.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::json::{List, Text, members};
use super::name::Tag;

/// Most tags that are held at once, whatever is asked for.
const TAGS_MAX: usize = 100_000;

/// A body is something else than a list of tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the JSON of a list of tags")]
pub struct InvalidTags;

/// The first tags behind some tag, of a list that may be very long.
///
/// A registry that does not know `last` begins from the start: what the reader has already is passed over, or it would
/// go round for ever. One tag more than asked for is held, which says that there are more.
#[derive(Debug)]
pub struct TagWindow {
    last: Option<String>,
    n: usize,
    tags: Vec<Tag>,
}

impl TagWindow {
    /// At most `n` tags behind `last`.
    pub fn new(n: usize, last: Option<&str>) -> Self {
        Self { last: last.map(str::to_owned), n: n.min(TAGS_MAX), tags: Vec::new() }
    }

    /// Reads the next part of the list. Tags that no client can ask for are left out.
    ///
    /// # Errors
    /// [`InvalidTags`]; what was read before it stays.
    pub fn read(&mut self, body: &[u8]) -> Result<(), InvalidTags> {
        let mut json = serde_json::Deserializer::from_slice(body);
        json.deserialize_map(&mut *self).and_then(|()| json.end()).map_err(|_| InvalidTags)
    }

    /// Whether there are as many as were asked for, and more.
    pub fn is_full(&self) -> bool {
        self.tags.len() > self.n
    }

    /// The tags.
    pub fn finish(mut self) -> Vec<Tag> {
        self.tags.truncate(self.n);
        self.tags
    }

    fn take(&mut self, text: &str) {
        if self.last.as_deref() == Some(text) {
            self.tags.clear();
        } else if !self.is_full()
            && let Ok(tag) = Tag::parse(text)
        {
            self.tags.push(tag);
        }
    }
}

impl<'de> Visitor<'de> for &mut TagWindow {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tags")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        members(&mut map, &["tags"], |_, map| map.next_value_seed(List(&mut *self)))
    }
}

/// One entry of the list.
impl<'de> DeserializeSeed<'de> for &mut TagWindow {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(Text(|text: &str| self.take(text))).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_and_always_goes_on() {
        let check = |pages: &[&str], n: usize, last: Option<&str>, expected: (&[&str], bool)| {
            let mut window = TagWindow::new(n, last);
            pages.iter().for_each(|page| window.read(page.as_bytes()).unwrap());
            let is_full = window.is_full();
            let tags = window.finish();
            let tags: Vec<_> = tags.iter().map(Tag::as_str).collect();
            assert_eq!((tags.as_slice(), is_full), expected, "{pages:?}");
        };
        check(&[r#"{"tags":["a","b"]}"#], 2, None, (&["a", "b"], false));
        check(&[r#"{"tags":["a","b","c"]}"#], 2, None, (&["a", "b"], true));
        check(&[r#"{"tags":["a","b","c"]}"#], 2, Some("a"), (&["b", "c"], false));
        check(&[r#"{"tags":["a","b","c","d","e"]}"#], 1, Some("c"), (&["d"], true));
        check(&[r#"{"tags":["b"]}"#], 2, Some("a"), (&["b"], false));
        check(&[r#"{"tags":["a"]}"#], 2, Some("a"), (&[], false));
        check(
            &[r#"{"tags":["a"]}"#, r#"{"name":"x","tags":["not a tag","b"]}"#],
            2,
            None,
            (&["a", "b"], false),
        );
        check(&[r#"{"tags":null}"#, r#"{"x":[1]}"#], 2, None, (&[], false));
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for body in
            ["", "[]", "<html>", r#"{"tags":[1]}"#, r#"{"tags":["a"],"Tags":["b"]}"#, r#"{"tags":"a"}"#]
        {
            assert_eq!(TagWindow::new(9, None).read(body.as_bytes()), Err(InvalidTags), "{body}");
        }
    }

    #[test]
    fn fuzzed_lists_of_tags_are_read_for_one_page() {
        let target =
            crate::fuzz::Target { name: "tags", words: &["\"a\",", "\"tags\":", "\"Tags\":", "\"name\":"] };
        target.holds_for_json(|input| {
            for (n, last) in [(3, None), (usize::MAX, Some("a"))] {
                let (peak, window) = crate::fuzz::peak(|| {
                    let mut window = TagWindow::new(n, last);
                    window.read(input).map(|()| window)
                });
                assert!(
                    peak <= crate::fuzz::FIXED_BYTES_MAX + 8 * input.len(),
                    "{peak} bytes of {}",
                    input.len()
                );
                let Ok(window) = window else { continue };
                let tags = window.finish();
                assert!(
                    tags.len() <= n.min(TAGS_MAX)
                        && tags.iter().all(|tag| Tag::parse(tag.as_str()).as_ref() == Ok(tag))
                );
            }
        });
    }
}
