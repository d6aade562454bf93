//! Lists of what refers to a manifest: image indexes that a registry makes up when it is asked.
//!
//! Clients read more of an entry than berth knows, so entries are handled as the text that came. Nothing is built of
//! them, and of a list of four megabytes no second one is needed but what is written out.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::digest::Digest;
use super::json::{DESCRIPTORS_MAX, List, Text, is_named, members};

/// Why a body is no list of referrers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReferrers {
    /// It is something else.
    #[error("not the JSON of a list of referrers")]
    NotAList,
    /// It has more than anybody signs an image with.
    #[error("a list of more than {DESCRIPTORS_MAX} referrers")]
    TooMany,
}

/// How many entries a list has.
///
/// # Errors
/// [`InvalidReferrers`].
pub fn count(body: &[u8]) -> Result<usize, InvalidReferrers> {
    let mut merged = Merged::new(|_| false);
    merged.add(body)?;
    Ok(merged.count)
}

/// The pages of a list as one, with what the first says besides its entries.
///
/// # Errors
/// [`InvalidReferrers`], also when all pages together have too many entries.
pub fn merge(pages: &[impl AsRef<[u8]>]) -> Result<Vec<u8>, InvalidReferrers> {
    let mut merged = Merged::new(|_| true);
    pages.iter().try_for_each(|page| merged.add(page.as_ref()))?;
    Ok(merged.finish())
}

/// A list with only the entries of `artifact_type`.
///
/// # Errors
/// [`InvalidReferrers`].
pub fn filter(body: &[u8], artifact_type: &str) -> Result<Vec<u8>, InvalidReferrers> {
    let mut merged = Merged::new(|entry| is_of(entry, artifact_type));
    merged.add(body)?;
    Ok(merged.finish())
}

/// Whether a list can be one of what refers to `subject`: it is none if it is the subject itself, which some servers
/// answer with whatever stands in front of its digest.
pub fn is_about(body: &[u8], subject: &Digest) -> bool {
    Digest::of(subject.algorithm(), body) != *subject
}

/// Whether an entry is of a type; one that does not say its type in a way that clients understand is of none.
fn is_of(entry: &str, artifact_type: &str) -> bool {
    struct Fields<'a>(&'a str);

    impl<'de> Visitor<'de> for Fields<'_> {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a descriptor")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let mut is_it = false;
            members(&mut map, &["artifactType"], |_, map| {
                is_it = map.next_value_seed(Text(|text: &str| text == self.0))?.unwrap_or(false);
                Ok(())
            })?;
            Ok(is_it)
        }
    }

    serde_json::Deserializer::from_str(entry).deserialize_map(Fields(artifact_type)).unwrap_or(false)
}

/// Pages, put together as they are read.
struct Merged<K> {
    /// Whether an entry is kept.
    keep: K,
    /// Entries read, kept or not.
    count: usize,
    entries: Vec<u8>,
    /// The other members of the first page.
    others: Vec<u8>,
    /// Whether a page has been read.
    has_first: bool,
}

impl<K: FnMut(&str) -> bool> Merged<K> {
    fn new(keep: K) -> Self {
        Self { keep, count: 0, entries: Vec::new(), others: Vec::new(), has_first: false }
    }

    fn add(&mut self, page: &[u8]) -> Result<(), InvalidReferrers> {
        let mut json = serde_json::Deserializer::from_slice(page);
        let read = json.deserialize_map(&mut *self).and_then(|has_entries| json.end().map(|()| has_entries));
        self.has_first = true;
        match read {
            Ok(true) => Ok(()),
            Err(_) if self.count > DESCRIPTORS_MAX => Err(InvalidReferrers::TooMany),
            Ok(false) | Err(_) => Err(InvalidReferrers::NotAList),
        }
    }

    fn finish(self) -> Vec<u8> {
        [b"{\"manifests\":[", &*self.entries, b"]", &*self.others, b"}"].concat()
    }
}

impl<'de, K: FnMut(&str) -> bool> Visitor<'de> for &mut Merged<K> {
    /// Whether there is a list of entries.
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut has_entries = false;
        while let Some(name) = map.next_key::<&RawValue>()? {
            let is_entries = serde_json::Deserializer::from_str(name.get())
                .deserialize_any(Text(|name: &str| is_named(name, "manifests")))
                .map_err(A::Error::custom)?;
            if is_entries != Some(true) {
                let value = map.next_value::<&RawValue>()?;
                if !self.has_first {
                    for part in [",", name.get(), ":", value.get()] {
                        self.others.extend_from_slice(part.as_bytes());
                    }
                }
                continue;
            }
            if has_entries {
                return Err(A::Error::custom("`manifests` comes twice"));
            }
            has_entries = true;
            map.next_value_seed(List(&mut *self))?;
        }
        Ok(has_entries)
    }
}

impl<'de, K: FnMut(&str) -> bool> DeserializeSeed<'de> for &mut Merged<K> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        self.count += 1;
        if self.count > DESCRIPTORS_MAX {
            return Err(D::Error::custom("too many descriptors"));
        }
        let entry = <&RawValue as serde::Deserialize>::deserialize(json)?.get();
        if !entry.starts_with('{') {
            return Err(D::Error::custom("an entry that is no descriptor"));
        }
        if (self.keep)(entry) {
            if !self.entries.is_empty() {
                self.entries.push(b',');
            }
            self.entries.extend_from_slice(entry.as_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::Algorithm;

    fn value(text: &[u8]) -> Value {
        serde_json::from_slice(text).unwrap()
    }

    #[test]
    fn pages_become_one_list_with_what_the_first_says_besides() {
        let pages = [
            r#"{"schemaVersion":2, "manifests":[{"a":"\u00e9"} , {"b":[1]}],"annotations":{"x":"y"}}"#,
            r#"{"schemaVersion":3,"manifests":[]}"#,
            r#"{"manifests":[{"c":null}]}"#,
        ];
        let expected = json!({
            "schemaVersion": 2, "manifests": [{"a": "é"}, {"b": [1]}, {"c": null}], "annotations": {"x": "y"},
        });
        assert_eq!(value(&merge(&pages).unwrap()), expected);
        assert_eq!(pages.map(|page| count(page.as_bytes())), [Ok(2), Ok(0), Ok(1)]);
    }

    #[test]
    fn a_filter_keeps_entries_as_they_came() {
        let list = br#"{"manifests":[{"artifactType":"a","size":1e2,"x":{}},{"artifactType":"b"},{},
            {"artifactType":7},{"ArtifactType":"\u0061"}],"mediaType":"m"}"#;
        let filtered = filter(list, "a").unwrap();
        assert!(String::from_utf8(filtered.clone()).unwrap().contains(r#""size":1e2"#));
        assert_eq!(value(&filtered)["manifests"].as_array().unwrap().len(), 2);
        assert_eq!(value(&filtered)["mediaType"], "m");
        assert_eq!(value(&filter(list, "z").unwrap()), json!({ "manifests": [], "mediaType": "m" }));
    }

    #[test]
    fn the_subject_itself_is_no_list_about_it() {
        let list = br#"{"manifests":[]}"#;
        for algorithm in Algorithm::ALL {
            assert!(!is_about(list, &Digest::of(algorithm, list)));
            assert!(is_about(list, &Digest::of(algorithm, b"a manifest")));
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let check = |body: &str, expected: InvalidReferrers| {
            assert_eq!(count(body.as_bytes()), Err(expected), "{:.60}", body);
        };
        for body in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"manifests":{}}"#,
            r#"{"manifests":[0]}"#,
            r#"{"manifests":[{}]"#,
            r#"{"manifests":[],"manifests":[]}"#,
            r#"{"manifests":[],"Manifests":[]}"#,
            r#"{"manifests":[]} more"#,
        ] {
            check(body, InvalidReferrers::NotAList);
        }
        let many = |count: usize| format!(r#"{{"manifests":[{}]}}"#, vec!["{}"; count].join(","));
        check(&many(DESCRIPTORS_MAX + 1), InvalidReferrers::TooMany);
        assert_eq!(count(many(DESCRIPTORS_MAX).as_bytes()), Ok(DESCRIPTORS_MAX));
        assert_eq!(merge(&[many(DESCRIPTORS_MAX), many(1)]), Err(InvalidReferrers::TooMany));
    }

    #[test]
    fn fuzzed_lists_of_referrers_are_counted_and_stay_json() {
        let target = crate::fuzz::Target {
            name: "referrers",
            words: &[
                "\"a\",",
                "\"manifests\":",
                "\"artifactType\":",
                "\"application/x\"",
                "\"annotations\":",
                "\"digest\":",
                "\"size\":",
            ],
        };
        target.holds_for_json(|input| {
            let (peak, all) = crate::fuzz::peak(|| count(input));
            assert!(
                peak <= crate::fuzz::FIXED_BYTES_MAX + 4 * input.len(),
                "{peak} bytes of {}",
                input.len()
            );
            let (peak, some) = crate::fuzz::peak(|| filter(input, "application/x"));
            assert!(
                peak <= crate::fuzz::FIXED_BYTES_MAX + 8 * input.len(),
                "{peak} bytes of {}",
                input.len()
            );
            let Ok(all) = all else { return assert_eq!(some.err(), all.err()) };
            assert!(all <= DESCRIPTORS_MAX && count(&some.unwrap()).is_ok_and(|some| some <= all));
            match merge(&[input, input]) {
                Ok(merged) => assert_eq!(count(&merged), Ok(2 * all)),
                Err(error) => assert!(error == InvalidReferrers::TooMany && 2 * all > DESCRIPTORS_MAX),
            }
        });
    }
}
