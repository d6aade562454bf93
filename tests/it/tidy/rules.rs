//! The rules, each a function from the tree to what it finds, and the comparison with what is known already.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::{Item, Kind, Path, Visibility};
use super::tree::{Arrow, Tree, circles, module_of};

/// Something that is not as a rule wants it.
pub(super) struct Finding {
    /// What it is about: a file, a folder, a type.
    pub(super) key: String,
    /// How bad it is. Nothing that may be so for a while is 0.
    pub(super) number: usize,
    /// Where it is.
    pub(super) detail: String,
}

/// What a rule finds beyond the exceptions that are known today, and the exceptions that have become smaller or are gone:
/// so none of them can grow back. Each text says what is to be done.
pub(super) fn news(
    rule: &str,
    advice: &str,
    findings: &[Finding],
    exceptions: &[(&str, usize)],
) -> Vec<String> {
    let mut news = Vec::new();
    let known: BTreeMap<&str, usize> = exceptions.iter().copied().collect();
    for Finding { key, number, detail } in findings {
        match known.get(&**key) {
            Some(known) if known == number && *number > 0 => {}
            Some(known) if number < known && *number > 0 => {
                news.push(format!(
                    "{rule}: {key} is better than it was: write (\"{key}\", {number}) instead of {known}"
                ));
            }
            _ if *number == 0 => news.push(format!("{rule}: {key}: {detail}")),
            known => {
                let was = known.map(|known| format!(", {known} before")).unwrap_or_default();
                news.push(format!("{rule}: {key} ({number}{was}): {advice}{detail}"));
            }
        }
    }
    let found: BTreeSet<&str> = findings.iter().map(|finding| &*finding.key).collect();
    let is_gone = |(key, _): &&(&str, usize)| !found.contains(key);
    let gone = exceptions.iter().filter(is_gone);
    news.extend(gone.map(|(key, _)| format!("{rule}: {key} is well now: take it out of the exceptions")));
    news
}

/// A top-level module uses those of lower floors only.
pub(super) fn floors(tree: &Tree, floors: &[&[&str]]) -> Vec<Finding> {
    let floor = |room: &str| floors.iter().position(|rooms| rooms.contains(&room));
    let room = |file: usize| module_of(tree.path(file)).first().cloned().unwrap_or_else(|| "lib".to_owned());
    let mut findings = Vec::new();
    let rooms: BTreeSet<String> = (0..tree.files.len()).map(room).filter(|room| room != "lib").collect();
    for room in rooms.iter().filter(|room| floor(room).is_none()) {
        findings.push(finding(room.clone(), 0, "it has no floor".to_owned()));
    }
    let mut up: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for arrow in tree.arrows(true) {
        let (from, to) = (room(arrow.from), room(arrow.to));
        // The root itself has nothing but modules.
        if from != to && from != "lib" && to != "lib" && floor(&to) >= floor(&from) {
            up.entry(format!("{from} -> {to}")).or_default().push(written(tree, &arrow));
        }
    }
    findings.extend(up.into_iter().map(|(key, lines)| finding(key, lines.len(), list(&lines))));
    findings
}

/// A folder holds at most so many files. A room's own file, beside its folder, counts for neither.
pub(super) fn folders(paths: &[String], files_max: usize) -> Vec<Finding> {
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for path in paths {
        let beside = format!("{}/", path.strip_suffix(".rs").unwrap_or(path));
        let is_of_room = paths.iter().any(|other| other.starts_with(&beside));
        if let Some((folder, _)) = path.rsplit_once('/').filter(|_| !is_of_room) {
            *folders.entry(folder).or_default() += 1;
        }
    }
    let large = folders.into_iter().filter(|(_, files)| *files > files_max);
    large.map(|(folder, files)| finding(folder.to_owned(), files, String::new())).collect()
}

/// No more than so many files use each other in a circle. A circle is known by its first file.
pub(super) fn circles_of_files(tree: &Tree, files_max: usize) -> Vec<Finding> {
    let arrows = tree.arrows(false);
    let pairs = arrows.iter().map(|arrow| (arrow.from, arrow.to)).collect();
    let large = circles(&pairs).into_iter().filter(|circle| circle.len() > files_max);
    let tell = |circle: Vec<usize>| {
        let is_inside = |arrow: &&Arrow| circle.contains(&arrow.from) && circle.contains(&arrow.to);
        let lines: Vec<String> = arrows.iter().filter(is_inside).map(|arrow| written(tree, arrow)).collect();
        finding(tree.path(circle[0]).to_owned(), circle.len(), list(&lines))
    };
    large.map(tell).collect()
}

/// The inherent methods of a type are in at most so many files. A trait of ours that is private, or that has no other
/// implementer, is a way to write inherent methods.
pub(super) fn spread(tree: &Tree, files_max: usize) -> Vec<Finding> {
    let item = |module: &Path, path: &Path| {
        let (home, name) = tree.item(module, path)?;
        let found = tree.items().find(|(_, at, item)| **at == home && item.name == name)?;
        Some((full_name(&home, &name), found.2))
    };
    let mut implementers: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for (file, module) in tree.modules() {
        for block in &module.impls {
            let own_trait = block.of_trait.as_ref().map(|path| item(&module.path, path));
            if let Some(Some((name, _))) = &own_trait {
                *implementers.entry(name.clone()).or_default() += 1;
            }
            let Some((name, Item { kind: Kind::Type, .. })) = item(&module.path, &block.of_type) else {
                continue;
            };
            found.push((name, own_trait, file, block.line));
        }
    }
    let mut files: BTreeMap<String, BTreeMap<usize, usize>> = BTreeMap::new();
    for (name, own_trait, file, line) in found {
        let is_inherent = match own_trait {
            None => true,
            Some(None) => false,
            Some(Some((name, item))) => item.visibility != Visibility::Wide || implementers[&name] == 1,
        };
        if is_inherent {
            files.entry(name).or_default().entry(file).or_insert(line);
        }
    }
    let large = files.into_iter().filter(|(_, files)| files.len() > files_max);
    let place = |(file, line): (&usize, &usize)| format!("{}:{line}", tree.path(*file));
    large
        .map(|(name, files)| finding(name, files.len(), list(&files.iter().map(place).collect::<Vec<_>>())))
        .collect()
}

/// The fields of a type are its own file's: none says `pub(super)` or `pub(in …)`.
pub(super) fn open_fields(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, module, item) in tree.items() {
        // In a module that is written inside the file, they stay in the file.
        if item.narrow_fields > 0 && *module == module_of(tree.path(file)) {
            let place = format!("\n    {}:{}", tree.path(file), item.line);
            findings.push(finding(full_name(module, &item.name), item.narrow_fields, place));
        }
    }
    findings
}

/// A type that others see has a name of its own in the crate.
pub(super) fn double_names(tree: &Tree, allowed: &[&str]) -> Vec<Finding> {
    let mut names: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (file, _, item) in tree.items() {
        let is_type = matches!(item.kind, Kind::Type | Kind::Trait);
        if is_type && item.visibility != Visibility::Private && !allowed.contains(&&*item.name) {
            names.entry(&item.name).or_default().push(format!("{}:{}", tree.path(file), item.line));
        }
    }
    let double = names.into_iter().filter(|(_, places)| places.len() > 1);
    double.map(|(name, places)| finding(name.to_owned(), places.len(), list(&places))).collect()
}

/// A heavy crate is named in its home only, so that it can be replaced there.
pub(super) fn homes(tree: &Tree, homes: &[(&str, &[&str])]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, homes) in homes {
        let uses = |path: &str, text: &str| {
            let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
            let named = code.enumerate().find(|(_, line)| line.contains(&format!("{name}::")));
            named.map(|(line, _)| format!("{path}:{}", line + 1))
        };
        let named: Vec<_> = tree
            .files
            .iter()
            .filter(|file| !file.is_tests)
            .map(|file| (&*file.path, uses(&file.path, without_tests(&file.text))))
            .filter_map(|(path, place)| Some((path, place?)))
            .collect();
        for home in homes.iter().filter(|home| !named.iter().any(|(path, _)| path == *home)) {
            findings.push(finding(
                format!("{name}: {home}"),
                0,
                "it is no home of it: take it out".to_owned(),
            ));
        }
        for (path, place) in named.iter().filter(|(path, _)| !homes.contains(path)) {
            findings.push(finding(format!("{name}: {path}"), 1, format!("\n    {place}")));
        }
    }
    findings
}

/// A file's text up to its unit tests.
pub(super) fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

pub(super) fn finding(key: String, number: usize, detail: String) -> Finding {
    Finding { key, number, detail }
}

fn full_name(module: &Path, name: &str) -> String {
    [&module[..], &[name.to_owned()]].concat().join("::")
}

pub(super) fn written(tree: &Tree, arrow: &Arrow) -> String {
    format!("{}:{} names `{}` of {}", tree.path(arrow.from), arrow.line, arrow.name, tree.path(arrow.to))
}

pub(super) fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n    {line}")).collect()
}
