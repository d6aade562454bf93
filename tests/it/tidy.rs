//! The rules of the house that a compiler does not check: floors and rooms, homes of heavy crates, sizes, names, docs.
//!
//! [`house`] is the plan, [`rules`] are the rules, and [`exceptions`] is what does not hold them yet. An exception can
//! only become smaller: a rule fails on whatever is worse than its number, and on a number that is no longer true.

mod exceptions;
mod house;
mod order;
mod reader;
mod rules;
mod rules_themselves;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use house::{CIRCLE_MAX, FILES_MAX, FLOORS, HOMES, LINES_MAX, NAMES_OF_MANY, ROOMS, SPREAD_MAX};
use rules::{Finding, news, without_tests};
use tree::{Tree, files_below};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn crate_tree() -> Tree {
    Tree::of_folder(Path::new(ROOT))
}

/// A rule's name, what is to be done, what it finds, and what it is known to find.
type Checked = (&'static str, &'static str, Vec<Finding>, &'static [(&'static str, usize)]);

#[test]
fn the_house_is_built_by_its_rules() {
    let tree = crate_tree();
    let root = Path::new(ROOT);
    let files: Vec<String> =
        ["src", "tests", "benches"].iter().flat_map(|folder| files_below(root, folder)).collect();
    let checked: [Checked; 8] = [
        (
            "floors",
            "use lower floors only (FLOORS in tests/it/tidy/house.rs): move down what both need",
            rules::floors(&tree, FLOORS),
            &[],
        ),
        (
            "order",
            "sub-rooms use lower ones only (ROOMS in tests/it/tidy/house.rs): move down what both need",
            order::order(&tree, ROOMS),
            exceptions::ORDER,
        ),
        (
            "folders",
            "too many files for one folder: make sub-rooms",
            rules::folders(&files, FILES_MAX),
            exceptions::FOLDERS,
        ),
        (
            "circles",
            "files that use each other in a circle: move what closes it into a file below",
            rules::circles_of_files(&tree, CIRCLE_MAX),
            exceptions::CIRCLES,
        ),
        (
            "spread",
            "a type with inherent methods in too many files: make several types with their own state of it",
            rules::spread(&tree, SPREAD_MAX),
            exceptions::SPREAD,
        ),
        (
            "fields",
            "fields are their type's own: give it methods",
            rules::open_fields(&tree),
            exceptions::FIELDS,
        ),
        (
            "names",
            "one name for several types: say what each is",
            rules::double_names(&tree, &NAMES_OF_MANY),
            exceptions::NAMES,
        ),
        (
            "homes",
            "a heavy crate outside of its home (HOMES in tests/it/tidy/house.rs)",
            rules::homes(&tree, HOMES),
            &[],
        ),
    ];
    let news: Vec<String> = checked
        .iter()
        .flat_map(|(rule, advice, findings, exceptions)| news(rule, advice, findings, exceptions))
        .collect();
    assert!(news.is_empty(), "\n{}\n", news.join("\n"));
}

#[test]
fn files_are_small_and_say_what_they_are() {
    for file in &crate_tree().files {
        let (path, code) = (&file.path, without_tests(&file.text));
        assert!(code.starts_with("//! "), "{path} does not begin with a doc comment");
        let lines = code.lines().count();
        assert!(file.is_tests || lines <= LINES_MAX, "{path} has {lines} lines, more than {LINES_MAX}");
        assert!(!path.ends_with("mod.rs"), "{path}: modules are name.rs and name/");
        for word in ["TODO", "FIXME", "XXX", "unimplemented!"] {
            assert!(!code.contains(word), "{path}: {word} belongs in an issue");
        }
    }
}

#[test]
fn every_metric_is_in_the_readme_and_no_other() {
    let names = |text: &str, quote: char| -> BTreeSet<String> {
        let is_name = |word: &&str| {
            let prefix = ["registry_http_", "registry_proxy_", "registry_storage_", "berth_"];
            let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
            prefix.iter().any(|prefix| word.starts_with(prefix)) && word.chars().all(is_word)
        };
        text.split(quote).filter(is_name).map(str::to_owned).collect()
    };
    let tree = crate_tree();
    let files = tree.files.iter().filter(|file| file.path.starts_with("src/telemetry/metrics"));
    let code: String = files.map(|file| without_tests(&file.text)).collect();
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    assert_eq!(names(&readme, '`'), names(&code, '"'));
}

#[test]
fn the_top_level_is_what_was_asked_for() {
    let expected = [
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "benches",
        "config",
        "src",
        "systemd",
        "tests",
    ];
    for entry in fs::read_dir(ROOT).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_known = name.starts_with('.') || name == "target" || expected.contains(&name.as_str());
        assert!(is_known, "{name} has no place at the top level");
    }
}
