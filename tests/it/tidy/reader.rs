//! Reads one source file: which modules and items it has, what it imports, which paths it names, and what it implements.
//!
//! It works on tokens, so comments and strings are no code. Whatever is built for unit tests only is left out. It knows
//! items by their keywords and does not expand macros; of an item inside a function only the paths are read.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path as it is written: `crate`, `store`, `Pin`.
pub(super) type Path = Vec<String>;

#[derive(Default)]
pub(super) struct Module {
    /// Names of the modules around it, from the crate's root, and its own: none for the root.
    pub(super) path: Path,
    pub(super) items: Vec<Item>,
    pub(super) imports: Vec<Import>,
    /// The paths in its code, with the first line of each.
    pub(super) mentions: BTreeMap<Path, usize>,
    pub(super) impls: Vec<Impl>,
    /// Modules inside it that exist in unit tests only.
    pub(super) tests: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Type,
    Trait,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Visibility {
    Private,
    /// `pub(super)`, `pub(in …)`, `pub(self)`.
    Narrow,
    /// `pub` and `pub(crate)`.
    Wide,
}

pub(super) struct Item {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) visibility: Visibility,
    pub(super) line: usize,
    /// How many of its fields are visible for some modules outside its own.
    pub(super) narrow_fields: usize,
}

/// A name that `use` brings, or `*`.
pub(super) struct Import {
    pub(super) name: String,
    pub(super) target: Path,
    pub(super) visibility: Visibility,
    pub(super) line: usize,
}

pub(super) struct Impl {
    pub(super) of_trait: Option<Path>,
    pub(super) of_type: Path,
    pub(super) line: usize,
}

/// The modules of a file: its own first, then those that are written inside it.
pub(super) fn read(path: Path, text: &str) -> Result<Vec<Module>, String> {
    let tokens = TokenStream::from_str(text).map_err(|error| error.to_string())?;
    let mut modules = Vec::new();
    read_module(path, &trees(tokens), &mut modules);
    Ok(modules)
}

fn trees(tokens: TokenStream) -> Vec<TokenTree> {
    tokens.into_iter().collect()
}

fn read_module(path: Path, tokens: &[TokenTree], modules: &mut Vec<Module>) {
    let at = modules.len();
    modules.push(Module { path, ..Module::default() });
    let mut rest = tokens;
    while !rest.is_empty() {
        rest = read_item(at, rest, modules);
    }
}

/// Reads the item that the tokens begin with. Returns the tokens behind it.
fn read_item<'a>(at: usize, tokens: &'a [TokenTree], modules: &mut Vec<Module>) -> &'a [TokenTree] {
    let (is_test, tokens) = skip_attributes(tokens);
    let (visibility, tokens) = visibility(tokens);
    let tokens = skip_qualifiers(tokens);
    let word = |at: usize| tokens.get(at).map(ToString::to_string).unwrap_or_default();
    let (keyword, mut name) = (word(0), word(1));
    let ends_with_braces = !["use", "const", "static", "type"].contains(&&*keyword);
    let (item, rest) = split_at_end(tokens, ends_with_braces);
    let module = &mut modules[at];
    if is_test {
        if keyword == "mod" {
            module.tests.push(name);
        }
        return rest;
    }
    match &*keyword {
        "use" => {
            read_use(&[], visibility, &item[1..], module);
            return rest;
        }
        "mod" => {
            if let Some(body) = item.get(2).and_then(|tree| group(tree, Delimiter::Brace)) {
                let path = [&module.path[..], &[name]].concat();
                read_module(path, &body, modules);
            }
            return rest;
        }
        "impl" => module.impls.extend(read_impl(&item[1..])),
        _ => {}
    }
    let kind = match &*keyword {
        "struct" | "enum" | "union" | "type" => Some(Kind::Type),
        "trait" => Some(Kind::Trait),
        "fn" | "const" | "static" | "macro_rules" => Some(Kind::Other),
        _ => None,
    };
    if let Some(kind) = kind {
        if keyword == "macro_rules" {
            name = word(2);
        }
        let narrow_fields = if keyword == "struct" { narrow_fields(item) } else { 0 };
        let line = item.first().map_or(0, line_of);
        module.items.push(Item { name, kind, visibility, line, narrow_fields });
    }
    read_code(item, module);
    rest
}

/// Cuts behind the first `;`, or behind the first braces if they end it, too.
fn split_at_end(tokens: &[TokenTree], ends_with_braces: bool) -> (&[TokenTree], &[TokenTree]) {
    let is_end = |tree: &TokenTree| match tree {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => ends_with_braces && group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    let end = tokens.iter().position(is_end).map_or(tokens.len(), |at| at + 1);
    tokens.split_at(end)
}

/// Whether one of the attributes in front says that this is for unit tests, and what is behind them.
fn skip_attributes(mut tokens: &[TokenTree]) -> (bool, &[TokenTree]) {
    let mut is_test = false;
    loop {
        let attribute = match tokens {
            [hash, bang, attribute, ..] if is_punct(hash, '#') && is_punct(bang, '!') => {
                tokens = &tokens[3..];
                attribute
            }
            [hash, attribute, ..] if is_punct(hash, '#') => {
                tokens = &tokens[2..];
                attribute
            }
            _ => return (is_test, tokens),
        };
        is_test |= attribute.to_string().replace(' ', "") == "[cfg(test)]";
    }
}

fn visibility(tokens: &[TokenTree]) -> (Visibility, &[TokenTree]) {
    let [first, rest @ ..] = tokens else { return (Visibility::Private, tokens) };
    if !is_word(first, "pub") {
        return (Visibility::Private, tokens);
    }
    match rest.first().and_then(|tree| group(tree, Delimiter::Parenthesis)) {
        // `pub (A, B)` in a tuple: a field's type.
        Some(inside) if ["crate", "super", "self", "in"].iter().any(|word| is_word(&inside[0], word)) => {
            let visibility = if is_word(&inside[0], "crate") { Visibility::Wide } else { Visibility::Narrow };
            (visibility, &rest[1..])
        }
        _ => (Visibility::Wide, rest),
    }
}

/// What is behind `async`, `unsafe`, `extern "C"`, and `const` before a function.
fn skip_qualifiers(mut tokens: &[TokenTree]) -> &[TokenTree] {
    loop {
        tokens = match tokens {
            [first, second, ..] if is_word(first, "const") && !is_word(second, "fn") => {
                let is_function = ["unsafe", "async", "extern"].iter().any(|word| is_word(second, word));
                if !is_function {
                    return tokens;
                }
                &tokens[1..]
            }
            [first, ..] if ["async", "unsafe", "const", "extern"].iter().any(|word| is_word(first, word)) => {
                &tokens[1..]
            }
            [TokenTree::Literal(_), ..] => &tokens[1..],
            _ => return tokens,
        };
    }
}

/// `use a::{b, c as d, e::*};`, without the `use`; `before` is what stands in front of the braces around it.
fn read_use(before: &[String], visibility: Visibility, tokens: &[TokenTree], module: &mut Module) {
    for tokens in tokens.split(|tree| is_punct(tree, ',')) {
        let mut target = before.to_vec();
        let mut name = None;
        let mut line = 0;
        let mut words = tokens.iter().peekable();
        while let Some(tree) = words.next() {
            match tree {
                TokenTree::Ident(word) if word == "as" => name = words.next().map(ToString::to_string),
                TokenTree::Ident(word) => {
                    line = line_of(tree);
                    // `store::{self}` is `store`.
                    if word != "self" || target.is_empty() {
                        target.push(word.to_string());
                    }
                }
                TokenTree::Group(group) => {
                    read_use(&target, visibility, &trees(group.stream()), module);
                    target.clear();
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    line = line_of(tree);
                    name = Some("*".to_owned());
                }
                _ => {}
            }
        }
        if let Some(last) = target.last() {
            let name = name.unwrap_or_else(|| last.clone());
            module.imports.push(Import { name, target, visibility, line });
        }
    }
}

/// `impl<T> Trait<T> for Type<T> where … {…}`, without the `impl`. None if it is for no named type.
fn read_impl(tokens: &[TokenTree]) -> Option<Impl> {
    let line = tokens.first().map_or(0, line_of);
    let tokens = skip_angles(tokens);
    let mut depth = 0;
    let mut paths = vec![Vec::new()];
    for (at, tree) in tokens.iter().enumerate() {
        match tree {
            TokenTree::Punct(punct) if punct.as_char() == '<' => depth += 1,
            TokenTree::Punct(punct) if punct.as_char() == '>' && !is_arrow(tokens, at) => depth -= 1,
            TokenTree::Ident(word) if depth == 0 && word == "for" => paths.push(Vec::new()),
            TokenTree::Ident(word) if depth == 0 && word == "where" => break,
            TokenTree::Ident(word) if depth == 0 && word != "dyn" => {
                paths.last_mut().expect("it begins with one").push(word.to_string());
            }
            TokenTree::Group(group) if depth == 0 && group.delimiter() == Delimiter::Brace => break,
            _ => {}
        }
    }
    let of_type = paths.pop().filter(|path| !path.is_empty())?;
    Some(Impl { of_trait: paths.pop(), of_type, line })
}

fn skip_angles(tokens: &[TokenTree]) -> &[TokenTree] {
    if !tokens.first().is_some_and(|tree| is_punct(tree, '<')) {
        return tokens;
    }
    let mut depth = 0;
    for (at, tree) in tokens.iter().enumerate() {
        if is_punct(tree, '<') {
            depth += 1;
        } else if is_punct(tree, '>') && !is_arrow(tokens, at) {
            depth -= 1;
            if depth == 0 {
                return &tokens[at + 1..];
            }
        }
    }
    &[]
}

/// Whether the `>` at this place is a part of `->`.
fn is_arrow(tokens: &[TokenTree], at: usize) -> bool {
    at > 0 && is_punct(&tokens[at - 1], '-')
}

/// How many fields of a `struct` say `pub(super)` or `pub(in …)`.
fn narrow_fields(tokens: &[TokenTree]) -> usize {
    let body = tokens.iter().filter_map(|tree| match tree {
        TokenTree::Group(group) if group.delimiter() != Delimiter::Bracket => Some(trees(group.stream())),
        _ => None,
    });
    let mut count = 0;
    for body in body {
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (is_test, field) = skip_attributes(rest);
            let is_narrow = visibility(field).0 == Visibility::Narrow;
            count += usize::from(is_narrow && !is_test);
            let mut depth = 0;
            let end = field.iter().enumerate().position(|(at, tree)| {
                depth += i32::from(is_punct(tree, '<'));
                depth -= i32::from(is_punct(tree, '>') && !is_arrow(field, at));
                depth == 0 && is_punct(tree, ',')
            });
            rest = end.map_or(&[], |end| &field[end + 1..]);
        }
    }
    count
}

/// Collects the paths that code names, and what `use` brings inside of functions.
fn read_code(tokens: &[TokenTree], module: &mut Module) {
    let mut at = 0;
    while at < tokens.len() {
        let (is_test, behind) = skip_attributes(&tokens[at..]);
        at = tokens.len() - behind.len();
        if is_test {
            at += test_only(behind);
            continue;
        }
        match tokens.get(at) {
            Some(TokenTree::Group(group)) => read_code(&trees(group.stream()), module),
            Some(TokenTree::Ident(word)) if word == "use" => {
                let (item, rest) = split_at_end(&tokens[at..], false);
                read_use(&[], Visibility::Private, &item[1..], module);
                at = tokens.len() - rest.len();
                continue;
            }
            Some(TokenTree::Ident(_)) => {
                let path = path_at(&tokens[at..]);
                let is_other = is_part_of_more(&tokens[..at]);
                let line = line_of(&tokens[at]);
                at += 3 * (path.len() - 1);
                if !is_other {
                    module.mentions.entry(path).or_insert(line);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// Whether the tokens before a path make it something else: a field or method, a lifetime, a path of another crate.
fn is_part_of_more(before: &[TokenTree]) -> bool {
    match before {
        [.., first, second] if is_punct(second, '.') => !is_punct(first, '.'),
        [.., last] if is_punct(last, '.') || is_punct(last, '\'') => true,
        _ => is_double_colon(&before[before.len().saturating_sub(2)..]),
    }
}

/// The idents with `::` between them that the tokens begin with.
fn path_at(tokens: &[TokenTree]) -> Path {
    let mut path = vec![tokens[0].to_string()];
    let mut rest = &tokens[1..];
    while let [_, _, TokenTree::Ident(word), ..] = rest
        && is_double_colon(rest)
    {
        path.push(word.to_string());
        rest = &rest[3..];
    }
    path
}

fn is_double_colon(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [first, second, ..] if is_punct(first, ':') && is_punct(second, ':'))
}

/// How many tokens belong to what an attribute has said is for tests: an item, a field, a statement.
fn test_only(tokens: &[TokenTree]) -> usize {
    let mut is_item = false;
    for (at, tree) in tokens.iter().enumerate() {
        match tree {
            TokenTree::Ident(word) => is_item |= word == "fn" || word == "impl" || word == "mod",
            TokenTree::Punct(punct) if punct.as_char() == ';' => return at + 1,
            TokenTree::Punct(punct) if punct.as_char() == ',' && !is_item => return at + 1,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

fn group(tree: &TokenTree, delimiter: Delimiter) -> Option<Vec<TokenTree>> {
    match tree {
        TokenTree::Group(group) if group.delimiter() == delimiter => Some(trees(group.stream())),
        _ => None,
    }
}

fn is_punct(tree: &TokenTree, char: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == char)
}

fn is_word(tree: &TokenTree, word: &str) -> bool {
    matches!(tree, TokenTree::Ident(ident) if ident == word)
}

fn line_of(tree: &TokenTree) -> usize {
    tree.span().start().line
}
