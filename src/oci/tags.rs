//! Lists of tags, passed on while they are read.
//!
//! A list may have hundreds of thousands of tags and comes in one piece from registries that know no pages. So nothing of
//! it is kept: it is checked byte by byte, as far as is needed to know that it is a list of tags and whole, and goes on as
//! it came. Entries stay as they are, and so do members that are a registry's own; only the name of the repository is
//! replaced by the one that clients know.
//!
//! Texts are not looked into: what a client makes of an odd escape it makes of it without berth too.

use super::json::is_named;

/// Nesting of a list at most. Google's, which describe each manifest, have four levels; each takes a bit.
const DEPTH_MAX: u32 = 64;
/// Bytes of a member's name that are kept: `name` and `tags` with every letter escaped are shorter.
const NAME_BYTES_MAX: usize = 64;

/// A body is something else than a list of tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the JSON of a list of tags")]
pub struct InvalidTags;

/// A list of tags that is being read.
#[derive(Debug)]
pub struct TagScan {
    /// The name to put in, as JSON.
    own_name: String,
    expected: Expected,
    depth: u32,
    /// For each level a bit, the innermost lowest: whether it is an object.
    objects: u64,
    /// The outermost member that is being read.
    member: Member,
    /// Its name so far; none once it is longer than any that matters.
    name: Option<Vec<u8>>,
    has_name: bool,
    has_tags: bool,
}

/// What the next byte may be, besides a blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The brace that begins it all.
    Begin,
    Value,
    /// The first value of an array, or its end.
    ValueOrEnd,
    Name,
    /// The first name of an object, or its end.
    NameOrEnd,
    Colon,
    CommaOrEnd,
    /// More of a text: of a name, of one that is left out, behind a backslash.
    Text {
        is_name: bool,
        is_hidden: bool,
        is_escaped: bool,
    },
    /// More of a number.
    Number,
    /// The rest of `true`, `false` or `null`; of the last one that stands for no tags, which is put in as an empty list.
    Word(&'static [u8], bool),
    /// Nothing.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Name,
    Tags,
    Other,
}

impl TagScan {
    /// A list of the tags of the repository of this name.
    pub fn new(name: &str) -> Self {
        Self {
            own_name: serde_json::Value::from(name).to_string(),
            expected: Expected::Begin,
            depth: 0,
            objects: 0,
            member: Member::Other,
            name: None,
            has_name: false,
            has_tags: false,
        }
    }

    /// Reads more of it, and adds to `out` what is to be passed on.
    ///
    /// # Errors
    /// [`InvalidTags`]; nothing more is to be read then.
    pub fn read(&mut self, mut data: &[u8], out: &mut Vec<u8>) -> Result<(), InvalidTags> {
        while let Some((byte, rest)) = data.split_first() {
            if let Expected::Text { is_name, is_hidden, is_escaped } = self.expected {
                data = self.text((is_name, is_hidden, is_escaped), data, out)?;
                continue;
            }
            data = rest;
            if let Expected::Word(word, is_hidden) = self.expected {
                self.word(word, is_hidden, *byte, out)?;
                continue;
            }
            if self.expected == Expected::Number {
                if byte.is_ascii_digit() || b"+-.eE".contains(byte) {
                    out.push(*byte);
                    continue;
                }
                self.expected = Expected::CommaOrEnd;
            }
            if !b" \t\r\n".contains(byte) {
                self.step(*byte, out)?;
            } else {
                out.push(*byte);
            }
        }
        Ok(())
    }

    /// That there is no more of it.
    ///
    /// # Errors
    /// [`InvalidTags`], if it is not whole, or says neither tags nor whose they are.
    pub fn finish(&self) -> Result<(), InvalidTags> {
        let is_list = self.expected == Expected::Nothing && (self.has_name || self.has_tags);
        if is_list { Ok(()) } else { Err(InvalidTags) }
    }

    /// One byte that is no part of a value.
    fn step(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), InvalidTags> {
        use Expected::{Begin, Colon, CommaOrEnd, Name, NameOrEnd, Value, ValueOrEnd};
        let is_in_object = self.objects & 1 == 1;
        match (self.expected, byte) {
            (NameOrEnd, b'}') | (ValueOrEnd, b']') => self.leave(),
            (CommaOrEnd, b'}') if is_in_object => self.leave(),
            (CommaOrEnd, b']') if !is_in_object => self.leave(),
            (CommaOrEnd, b',') => self.expected = if is_in_object { Name } else { Value },
            (Name | NameOrEnd, b'"') => {
                self.name = (self.depth == 1).then(|| vec![byte]);
                self.expected = Expected::Text { is_name: true, is_hidden: false, is_escaped: false };
            }
            (Colon, b':') => self.expected = Value,
            (Begin, b'{') => self.enter(true)?,
            (Value | ValueOrEnd, _) => return self.begin_value(byte, out),
            _ => return Err(InvalidTags),
        }
        out.push(byte);
        Ok(())
    }

    fn begin_value(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), InvalidTags> {
        let is_list = self.depth == 1 && self.member == Member::Tags;
        let is_tag = self.depth == 2 && self.member == Member::Tags;
        let is_other = !is_list && !is_tag;
        match byte {
            b'"' if !is_list => {
                let is_hidden = self.depth == 1 && self.member == Member::Name;
                self.expected = Expected::Text { is_name: false, is_hidden, is_escaped: false };
                if is_hidden {
                    out.extend_from_slice(self.own_name.as_bytes());
                    return Ok(());
                }
            }
            b'[' if !is_tag => self.enter(false)?,
            b'{' if is_other => self.enter(true)?,
            b'n' => {
                self.expected = Expected::Word(b"ull", is_list);
                if is_list {
                    return Ok(());
                }
            }
            b't' if is_other => self.expected = Expected::Word(b"rue", false),
            b'f' if is_other => self.expected = Expected::Word(b"alse", false),
            b'-' | b'0'..=b'9' if is_other => self.expected = Expected::Number,
            _ => return Err(InvalidTags),
        }
        out.push(byte);
        Ok(())
    }

    fn word(
        &mut self,
        word: &'static [u8],
        is_hidden: bool,
        byte: u8,
        out: &mut Vec<u8>,
    ) -> Result<(), InvalidTags> {
        let (expected, rest) = word.split_first().ok_or(InvalidTags)?;
        if byte != *expected {
            return Err(InvalidTags);
        }
        if !is_hidden {
            out.push(byte);
        }
        self.expected = Expected::Word(rest, is_hidden);
        if rest.is_empty() {
            self.expected = Expected::CommaOrEnd;
            if is_hidden {
                out.extend_from_slice(b"[]");
            }
        }
        Ok(())
    }

    /// A part of a text, up to its end, or to a backslash and what is behind it. Returns what is behind the part.
    fn text<'d>(
        &mut self,
        (is_name, is_hidden, is_escaped): (bool, bool, bool),
        data: &'d [u8],
        out: &mut Vec<u8>,
    ) -> Result<&'d [u8], InvalidTags> {
        let length = match is_escaped {
            true => 1,
            false => memchr::memchr2(b'"', b'\\', data).map_or(data.len(), |at| at + 1),
        };
        let (part, rest) = data.split_at(length);
        if !is_hidden {
            out.extend_from_slice(part);
        }
        if let Some(name) = self.name.as_mut().filter(|_| is_name) {
            name.extend_from_slice(&part[..part.len().min(NAME_BYTES_MAX)]);
            if name.len() > NAME_BYTES_MAX {
                self.name = None;
            }
        }
        match part.last() {
            Some(b'"') if !is_escaped && is_name => return self.named().map(|()| rest),
            Some(b'"') if !is_escaped => self.expected = Expected::CommaOrEnd,
            last => {
                let is_escaped = !is_escaped && last == Some(&b'\\');
                self.expected = Expected::Text { is_name, is_hidden, is_escaped };
            }
        }
        Ok(rest)
    }

    /// A member's name is whole.
    fn named(&mut self) -> Result<(), InvalidTags> {
        self.expected = Expected::Colon;
        if self.depth != 1 {
            return Ok(());
        }
        let name = self.name.take().and_then(|name| serde_json::from_slice::<String>(&name).ok());
        self.member = match name.as_deref() {
            // Clients would take the last of two, or the first.
            Some(name) if is_named(name, "tags") && self.has_tags => return Err(InvalidTags),
            Some(name) if is_named(name, "tags") => Member::Tags,
            Some(name) if is_named(name, "name") => Member::Name,
            Some(_) | None => Member::Other,
        };
        self.has_tags |= self.member == Member::Tags;
        self.has_name |= self.member == Member::Name;
        Ok(())
    }

    fn enter(&mut self, is_object: bool) -> Result<(), InvalidTags> {
        if self.depth == DEPTH_MAX {
            return Err(InvalidTags);
        }
        self.depth += 1;
        self.objects = self.objects << 1 | u64::from(is_object);
        self.expected = if is_object { Expected::NameOrEnd } else { Expected::ValueOrEnd };
        Ok(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
        self.expected = if self.depth == 0 { Expected::Nothing } else { Expected::CommaOrEnd };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What is passed on of a list that comes in pieces of this length.
    fn passed_on(body: &[u8], piece: usize) -> Result<Vec<u8>, InvalidTags> {
        let (mut scan, mut out) = (TagScan::new("own/name"), Vec::new());
        for piece in body.chunks(piece) {
            scan.read(piece, &mut out)?;
        }
        scan.finish().map(|()| out)
    }

    #[test]
    fn a_list_goes_on_as_it_came_under_the_name_that_clients_know() {
        let check = |body: &str, expected: &str| {
            for piece in [1, 2, 7, body.len()] {
                let out = passed_on(body.as_bytes(), piece).map(|out| String::from_utf8(out).unwrap());
                assert_eq!(out.as_deref(), Ok(expected), "{body} in pieces of {piece}");
            }
        };
        check(r#"{"name":"a","tags":["b","c"]}"#, r#"{"name":"own/name","tags":["b","c"]}"#);
        check(
            "{ \"tags\" : [ ] , \"name\" : \"a\\\"b\" }\n",
            "{ \"tags\" : [ ] , \"name\" : \"own/name\" }\n",
        );
        check(r#"{"name":"a","tags":null}"#, r#"{"name":"own/name","tags":[]}"#);
        check(r#"{"Name":"a"}"#, r#"{"Name":"own/name"}"#);
        check(
            r#"{"na\u006de":"\\","tags":[null,"\u0041","not a tag"]}"#,
            r#"{"na\u006de":"own/name","tags":[null,"\u0041","not a tag"]}"#,
        );
        check(r#"{"tags":[],"name":null}"#, r#"{"tags":[],"name":null}"#);
        // Google's.
        let manifest = r#""child":["x"],"manifest":{"sha256:0":{"name":"m","tag":["1"],"n":-1.5e3,"ok":true,"no":[false,{}]}}"#;
        let body = format!(r#"{{{manifest},"tags":["1"],"name":"p/x"}}"#);
        check(&body, &body.replace("p/x", "own/name"));
        let long = format!(r#"{{"{}":1,"tags":["a"]}}"#, "tags".repeat(100));
        check(&long, &long);
    }

    #[test]
    fn what_is_no_list_of_tags_or_not_whole_is_refused() {
        for body in [
            "",
            " ",
            "[]",
            "<html>",
            "{}",
            r#"{"errors":[]}"#,
            r#"{"tags":[1]}"#,
            r#"{"tags":[["a"]]}"#,
            r#"{"tags":[{}]}"#,
            r#"{"tags":[true]}"#,
            r#"{"tags":["a"],"Tags":["b"]}"#,
            r#"{"tags":"a"}"#,
            r#"{"tags":{}}"#,
            r#"{"tags":["a""#,
            r#"{"tags":["a"]"#,
            r#"{"tags":["a"]}}"#,
            r#"{"tags":["a"]} more"#,
            r#"{"tags":["a"}}"#,
            r#"{"tags":["a",]}"#,
            r#"{"tags":["a"],}"#,
            r#"{"tags" ["a"]}"#,
            r#"{"tags":["a" "b"]}"#,
            r#"{"tags":[nul]}"#,
            r#"{"name":"a"#,
            &format!(r#"{{"tags":[],"x":{}1{}}}"#, "[".repeat(64), "]".repeat(64)),
        ] {
            assert_eq!(passed_on(body.as_bytes(), 5), Err(InvalidTags), "{body}");
        }
    }

    #[test]
    fn fuzzed_lists_of_tags_go_on_as_they_came() {
        let target = crate::fuzz::Target {
            name: "tags",
            words: &["\"a\",", "\"tags\":", "\"Tags\":", "\"name\":", "\\", "\"n\\u0061me\":"],
        };
        target.holds_for_json(|input| {
            let (peak, out) = crate::fuzz::peak(|| passed_on(input, 5));
            assert!(
                peak <= crate::fuzz::FIXED_BYTES_MAX + 8 * input.len(),
                "{peak} bytes of {}",
                input.len()
            );
            assert_eq!(passed_on(input, input.len().max(1)), out);
            let whole: Option<Value> = serde_json::from_slice(input).ok();
            let Some(Value::Object(whole)) = whole else { return };
            let Ok(out) = out else { return };
            // Whatever is JSON stays JSON, with the same tags.
            let out: Value = serde_json::from_slice(&out).unwrap();
            let tags = whole.iter().find(|(name, _)| is_named(name, "tags"));
            let Some((name, tags)) = tags else { return };
            let expected = if tags.is_null() { json!([]) } else { tags.clone() };
            assert_eq!(out[name], expected);
        });
    }
}
