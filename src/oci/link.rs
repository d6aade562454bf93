//! `Link` headers (RFC 8288): where the next page of a list is.
//!
//! Several links may stand in one line, a parameter may be quoted or not, and `rel` may name several relations. As
//! go-containerregistry and skopeo do, a link with a query that does not say what it is counts as one to the next page.

/// What separates the parts of a line without a meaning of its own.
const BLANKS: [u8; 2] = *b" \t";

/// The target of the link to the next page in these lines, as it stands there.
pub fn next_page<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let mut unnamed = None;
    for link in lines.into_iter().flat_map(Links) {
        match link.is_next {
            Some(true) => return Some(link.target),
            Some(false) => {}
            None if link.target.contains(&b'?') => unnamed = unnamed.or(Some(link.target)),
            None => {}
        }
    }
    unnamed
}

/// One link of a line.
struct Link<'a> {
    target: &'a [u8],
    /// Whether its relation is `next`; none if it has no relation.
    is_next: Option<bool>,
}

/// The links of what is left of a line.
struct Links<'a>(&'a [u8]);

impl<'a> Iterator for Links<'a> {
    type Item = Link<'a>;

    fn next(&mut self) -> Option<Link<'a>> {
        self.skip(|byte| BLANKS.contains(&byte) || byte == b',');
        let target = if self.eat(b'<') {
            let target = self.take(|byte| byte != b'>');
            if !self.eat(b'>') {
                return None;
            }
            target
        } else {
            self.take(|byte| !BLANKS.contains(&byte) && byte != b';' && byte != b',')
        };
        if target.is_empty() && self.0.is_empty() {
            return None;
        }
        let mut is_next = None;
        while let Some((name, value)) = self.parameter() {
            // Of several the first counts.
            if name.eq_ignore_ascii_case(b"rel") && is_next.is_none() {
                let mut relations = value.split(|byte| byte.is_ascii_whitespace());
                is_next = Some(relations.any(|relation| relation.eq_ignore_ascii_case(b"next")));
            }
        }
        // What is no parameter belongs to no other link.
        self.skip(|byte| byte != b',');
        Some(Link { target, is_next })
    }
}

impl<'a> Links<'a> {
    /// Name and value of the next parameter of a link.
    fn parameter(&mut self) -> Option<(&'a [u8], Vec<u8>)> {
        self.skip_blanks();
        if !self.eat(b';') {
            return None;
        }
        self.skip_blanks();
        let name = self.take(|byte| !BLANKS.contains(&byte) && !b"=;,".contains(&byte));
        self.skip_blanks();
        if !self.eat(b'=') {
            return Some((name, Vec::new()));
        }
        self.skip_blanks();
        if !self.eat(b'"') {
            let value = self.take(|byte| !BLANKS.contains(&byte) && byte != b';' && byte != b',');
            return Some((name, value.to_vec()));
        }
        let mut value = Vec::new();
        while let Some((byte, rest)) = self.0.split_first() {
            self.0 = rest;
            match byte {
                b'"' => break,
                b'\\' => value.extend(self.take_one()),
                other => value.push(*other),
            }
        }
        Some((name, value))
    }

    fn eat(&mut self, byte: u8) -> bool {
        let rest = self.0.strip_prefix(&[byte]);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn take(&mut self, is_part: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|byte| !is_part(*byte)).unwrap_or(self.0.len());
        let (part, rest) = self.0.split_at(end);
        self.0 = rest;
        part
    }

    fn take_one(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn skip(&mut self, is_part: impl Fn(u8) -> bool) {
        self.take(is_part);
    }

    fn skip_blanks(&mut self) {
        self.skip(|byte| BLANKS.contains(&byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_however_a_server_writes_it() {
        let check = |lines: &[&str], expected: Option<&str>| {
            let found = next_page(lines.iter().map(|line| line.as_bytes()));
            assert_eq!(found, expected.map(str::as_bytes), "{lines:?}");
        };
        for line in [
            r#"</t?n=2>; rel="next""#,
            "</t?n=2>; rel=next",
            "</t?n=2>;rel=next",
            "</t?n=2> ; REL = \"Next\"",
            r#"</t?n=2>; title="a;b,c=\"d\"<e>"; rel="next""#,
            r#"</t?n=2>; rel="start next""#,
            r#"</first>; rel="first", </t?n=2>; rel="next", </last>; rel="last""#,
            "</first>;rel=first,</t?n=2>;rel=next",
            r#"</a>; rel="prev"; rel="next", </t?n=2>; rel="next""#,
            "</t?n=2>",
            "</docs>; rel=help, </t?n=2>",
            "</x?y>, </t?n=2>; rel=next",
            "/t?n=2; rel=\"next\"",
            " , ,</t?n=2>;;rel=next;",
            r#"</t?n=2>; rel="ne\xt""#,
        ] {
            check(&[line], Some("/t?n=2"));
        }
        check(&["</p>; rel=prev", "</t?n=2,3>; rel=next"], Some("/t?n=2,3"));
        check(&["<https://other/v2/t?last=b%20c>; rel=next"], Some("https://other/v2/t?last=b%20c"));
        for line in [
            "",
            " ",
            ",",
            "nonsense",
            r#"</t>; rel="prev""#,
            "</t>; rel=nextish",
            "<",
            "</t; rel=next",
            "</t>; rel",
        ] {
            check(&[line], None);
        }
        check(&["<>; rel=next"], Some(""));
    }

    #[test]
    fn fuzzed_links_lead_to_a_part_of_the_line_only() {
        let target = crate::fuzz::Target {
            name: "link",
            words: &[
                "<",
                ">",
                ";",
                ",",
                "=",
                "\"",
                "\\",
                "?",
                "&",
                "#",
                " ",
                "\t",
                "rel",
                "next",
                "prev",
                "https://evil",
                "/v2/a/tags/list",
                "n=2",
                "last=b",
                "\n",
            ],
        };
        target.holds(|input| {
            let lines: Vec<_> = input.split(|byte| *byte == b'\n').collect();
            if let Some(found) = next_page(lines.iter().copied()) {
                assert!(!found.contains(&b'\n'));
                assert!(
                    lines
                        .iter()
                        .any(|line| line.as_ptr_range().contains(&found.as_ptr()) || found.is_empty())
                );
            }
        });
    }
}
