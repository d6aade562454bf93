//! What an error about a configuration file says of it: never a secret.
//!
//! An error names line, key, value and what was expected. The value of a line that could hold a login is left out: people
//! paste what they are shown.

/// Words in a line, or in the head of its section, that tell that a value there may be secret.
const MAY_BE_LOGIN: [&str; 5] = ["credentials", "password", "headers", "token", "secret"];
/// A key that has one of these words in it, and never a secret as its value.
const NO_LOGIN: &str = "token_seconds";

/// What is wrong with `text`: line, key, value and what was expected.
pub(super) fn describe(error: &toml::de::Error, text: &str) -> String {
    let message = error.message();
    let Some(span) = error.span().filter(|span| text.is_char_boundary(span.start)) else {
        return without_quoted(message);
    };
    let before = &text[..span.start];
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    let section = before.lines().rev().find(|line| line.trim_start().starts_with('[')).unwrap_or_default();
    let plain = line.replace(NO_LOGIN, "");
    let is_about = |word: &&str| plain.contains(word) || section.contains(word);
    let may_be_login = MAY_BE_LOGIN.iter().any(is_about) || line.contains('@');
    let key = match line.split_once('=') {
        // A value of several lines may have such a sign in it.
        Some((key, _)) if !may_be_login || is_key(key) => key.trim(),
        _ if may_be_login => "a login",
        _ => line,
    };
    if may_be_login {
        return format!("line {number}: {key}: {}", without_quoted(message));
    }
    let value = match text.get(span).unwrap_or_default() {
        value if value.is_empty() || value == key || value.contains(['@', '\n']) => String::new(),
        value => format!(" {value}:"),
    };
    let path = path_to(&before[before.rfind('\n').map_or(0, |end| end + 1)..]);
    format!("line {number}: {}:{value} {message}", path.as_deref().unwrap_or(key))
}

/// The key that the text after `line`, the beginning of a line, is the value of, with the keys of the tables around it in
/// that line: `limits = { connections = 1, bytes_per_second = ` is about `limits.bytes_per_second`. None if it is unclear.
fn path_to(line: &str) -> Option<String> {
    let (mut tables, mut key, mut begin) = (Vec::new(), "", 0);
    for (at, c) in line.char_indices() {
        match c {
            '=' => key = line[begin..at].trim(),
            '{' => tables.push(std::mem::take(&mut key)),
            '}' => key = tables.pop()?,
            ',' => {}
            _ => continue,
        }
        begin = at + 1;
    }
    tables.push(key);
    let path: Vec<_> = tables.into_iter().filter(|key| !key.is_empty()).collect();
    (!path.is_empty() && path.iter().all(|key| is_key(key))).then(|| path.join("."))
}

/// Whether a text in front of a `=` is one key, or several joined by dots, and nothing else.
fn is_key(text: &str) -> bool {
    text.trim().chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// A message without the values that it quotes. The parser puts numbers in backticks, as it does the names of keys.
fn without_quoted(message: &str) -> String {
    // A quote within a value has a backslash before it, and so has a backslash.
    let plain = message.replace("\\\\", "").replace("\\\"", "");
    let parts = plain.split('"').enumerate();
    let unquoted: String = parts.map(|(at, part)| if at % 2 == 0 { part } else { "\"…\"" }).collect();
    let parts = unquoted.split('`').enumerate();
    let show = |(at, part): (usize, &str)| match at % 2 {
        0 => part.to_owned(),
        _ if part.contains('@') => "`…`".to_owned(),
        _ if part.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => "`…`".to_owned(),
        _ => format!("`{part}`"),
    };
    parts.map(show).collect()
}
