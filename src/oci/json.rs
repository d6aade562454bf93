//! JSON of strangers, read without building what nobody asked for.
//!
//! A general tree of values costs up to a hundred times the bytes of its text. So each kind of document names the
//! members that it needs, and everything else is passed over: by a loop without recursion, with a byte of memory for
//! each level of nesting, whatever the text is. What a document may make of its bytes is counted while it is read.
//!
//! Clients written in Go take a member's name in any letter case, and of two with one name the last. A document that
//! means one thing here and another there is how an image is smuggled past a check (CVE-2021-41190), so names are
//! compared as those clients do, and a member that comes twice is an error.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Most descriptors in one document. An index of 100 platforms with their attestations has 200, an image at most 127
/// layers that a kernel can stack, and a signed artifact a few hundred referrers.
pub const DESCRIPTORS_MAX: usize = 10_000;

/// Reads the members of `names`, each of which may come once, and passes over all others.
pub(super) fn members<'de, A: MapAccess<'de>>(
    map: &mut A,
    names: &[&'static str],
    mut read: impl FnMut(&'static str, &mut A) -> Result<(), A::Error>,
) -> Result<(), A::Error> {
    let mut seen = 0_u32;
    while let Some(at) =
        map.next_key_seed(Text(|name: &str| names.iter().position(|it| is_named(name, it))))?
    {
        let Some(at) = at.flatten() else {
            map.next_value::<IgnoredAny>()?;
            continue;
        };
        if seen & 1 << at != 0 {
            return Err(A::Error::custom(format_args!("`{}` comes twice", names[at])));
        }
        seen |= 1 << at;
        read(names[at], map)?;
    }
    Ok(())
}

/// Reads the members of `names` as often as each comes, and passes over all others. Names may hold what is no text, such
/// as half of a surrogate pair: a client written in Go takes that, too.
pub(super) fn all_members<'de, A: MapAccess<'de>>(
    map: &mut A,
    names: &[&'static str],
    mut read: impl FnMut(&'static str, &mut A) -> Result<(), A::Error>,
) -> Result<(), A::Error> {
    while let Some(name) = map.next_key_seed(Name(names))? {
        match name {
            Some(name) => read(name, map)?,
            None => drop(map.next_value::<IgnoredAny>()?),
        }
    }
    Ok(())
}

/// Which of these a member's name is.
struct Name<'a>(&'a [&'static str]);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        // As bytes, because a text is refused if it is not one.
        json.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Self::Value, E> {
        let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
        Ok(self.0.iter().copied().find(|it| is_named(name, it)))
    }
}

/// Whether a member's name is `name` to a client written in Go: in any letter case, and there are two letters beyond
/// ASCII whose other case is within.
pub fn is_named(text: &str, name: &str) -> bool {
    let fold = |character: char| match character {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    text == name || (text.len() <= 3 * name.len() && text.chars().map(fold).eq(name.chars().map(fold)))
}

/// A member that is no list and no object.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scalar {
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// Anything else, or nothing at all.
    #[default]
    Other,
}

/// The members of these names of an object that a stranger wrote, and none if it is no object: no more than
/// texts and numbers are made of it.
pub fn scalars<const N: usize>(body: &[u8], names: [&'static str; N]) -> Option<[Scalar; N]> {
    struct Whole<const N: usize>([&'static str; N]);

    impl<'de, const N: usize> Visitor<'de> for Whole<N> {
        type Value = [Scalar; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = std::array::from_fn(|_| Scalar::Other);
            members(&mut map, &self.0, |name, map| {
                let value = map.next_value::<&RawValue>()?.get();
                if let Some(at) = self.0.iter().position(|it| *it == name) {
                    found[at] = scalar(value);
                }
                Ok(())
            })?;
            Ok(found)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(body);
    let found = json.deserialize_map(Whole(names)).ok()?;
    json.end().ok().map(|()| found)
}

fn scalar(value: &str) -> Scalar {
    match value.as_bytes().first() {
        Some(b'"') => serde_json::from_str(value).map_or(Scalar::Other, Scalar::Text),
        Some(b'-' | b'0'..=b'9') => serde_json::from_str(value).map_or(Scalar::Other, Scalar::Number),
        _ => Scalar::Other,
    }
}

/// A text, of which only what the function makes of it is kept; null is as good as absent.
pub(super) struct Text<F>(pub(super) F);

impl<'de, T, F: FnOnce(&str) -> T> DeserializeSeed<'de> for Text<F> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Text<F> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some((self.0)(text)))
    }
}

/// A list, of which each entry is read by the seed, which keeps what is needed of it; null is an empty list.
pub(super) struct List<'a, S>(pub(super) &'a mut S);

impl<'de, S> DeserializeSeed<'de> for List<'_, S>
where
    for<'b> &'b mut S: DeserializeSeed<'de, Value = ()>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, S> Visitor<'de> for List<'_, S>
where
    for<'b> &'b mut S: DeserializeSeed<'de, Value = ()>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_element_seed(&mut *self.0)?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_a_client_in_go_takes_it_for() {
        for (text, expected) in [
            ("layers", true),
            ("Layers", true),
            ("LAYERS", true),
            ("layer\u{17f}", true),
            ("layer", false),
            ("layerss", false),
            ("läyers", false),
        ] {
            assert_eq!(is_named(text, "layers"), expected, "{text}");
        }
        assert!(is_named("to\u{212a}en", "token"));
    }
}
