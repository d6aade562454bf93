//! The rules, each shown to fail on a small made-up tree, and to leave alone what is right.

use super::order::{Room, order};
use super::rules::{self, Finding, news};
use super::tree::Tree;

fn tree(files: &[(&str, &str)]) -> Tree {
    Tree::of_files(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
}

/// Keys and numbers.
fn found(findings: &[Finding]) -> Vec<(&str, usize)> {
    findings.iter().map(|finding| (&*finding.key, finding.number)).collect()
}

/// Which file uses which.
fn arrows(tree: &Tree, passed_on: bool) -> Vec<String> {
    let arrow = |arrow: super::tree::Arrow| format!("{} -> {}", tree.path(arrow.from), tree.path(arrow.to));
    tree.arrows(passed_on).into_iter().map(arrow).collect()
}

#[test]
fn an_arrow_is_found_however_a_path_is_written() {
    let uses = [
        "use crate::b::B;",
        "use crate::{b::{self, B as C}, c};",
        "use crate::b; fn f() -> b::B { b::B }",
        "fn f() { let x = vec![crate::b::B::new()]; }",
        "fn f<'a>(x: &'a [super::b::B; 3]) {}",
        "fn f() { use crate::b::B; }",
        "use crate::b::*; fn f(b: B) {}",
        "mod inside { use super::super::b::B; }",
        "use crate::passed::B;",
        "use crate::passed::deeper::Named;",
        "impl From<crate::b::B> for u8 {}",
        "struct S { #[serde(default)] b: crate::b::B }",
    ];
    for uses in uses {
        let tree = tree(&[
            ("src/a.rs", uses),
            ("src/b.rs", "pub struct B;"),
            ("src/c.rs", ""),
            ("src/lib.rs", "pub mod a; pub mod b; pub mod c; pub mod passed;"),
            ("src/passed.rs", "pub use crate::b::*; pub mod deeper { pub use super::super::b::B as Named; }"),
        ]);
        assert_eq!(arrows(&tree, false), ["src/a.rs -> src/b.rs"], "{uses}");
    }
}

#[test]
fn what_is_no_use_is_no_arrow() {
    let no_uses = [
        "// crate::b::B\n/// [`crate::b::B`]\nfn f() { \"crate::b::B\"; r#\"crate::b::B\"#; }",
        "#[cfg(test)]\nuse crate::b::B;",
        "#[cfg(test)]\nmod tests { use crate::b::B; }",
        "impl A { #[cfg(test)] fn f<X, Y>() { crate::b::B } }",
        "struct A { #[cfg(test)] b: crate::b::B, c: u8 }",
        "fn f(b: u8) { x.b.B; b::<u8>(); }",
        "use other::crate_b::B; fn f() { ::b::B }",
        "pub use crate::b::B;",
        "fn b() {} fn f() { b() }",
    ];
    for no_use in no_uses {
        let tree = tree(&[
            ("src/a.rs", no_use),
            ("src/b.rs", "pub struct B;"),
            ("src/lib.rs", "pub mod a; pub mod b;"),
        ]);
        assert_eq!(arrows(&tree, false), [""; 0], "{no_use}");
    }
    // What is passed on is named, if not used.
    let tree =
        tree(&[("src/a.rs", "pub use crate::b::B;"), ("src/b.rs", "pub enum B {}"), ("src/lib.rs", "")]);
    assert_eq!(arrows(&tree, true), ["src/a.rs -> src/b.rs"]);
}

#[test]
fn files_of_unit_tests_have_no_arrows() {
    let tree = tree(&[
        ("src/a.rs", "#[cfg(test)]\nmod tests;"),
        ("src/a/tests.rs", "mod more; use crate::b::B;"),
        ("src/a/tests/more.rs", "use crate::b::B;"),
        ("src/b.rs", "pub struct B;"),
        ("src/lib.rs", ""),
    ]);
    assert_eq!(arrows(&tree, false), [""; 0]);
    assert!(tree.files[1].is_tests && tree.files[2].is_tests && !tree.files[0].is_tests);
}

#[test]
fn a_room_uses_lower_floors_only() {
    let tree = tree(&[
        ("src/cellar.rs", "use crate::attic::Roof;"),
        ("src/cellar/wine.rs", "use crate::attic::Roof; use super::super::door::Door;"),
        ("src/attic.rs", "pub struct Roof; use crate::cellar::wine::Red; pub use crate::door::Door;"),
        ("src/door.rs", "pub struct Door;"),
        ("src/main.rs", "use berth::attic::Roof;"),
        ("src/lib.rs", "pub mod cellar; pub mod attic;"),
    ]);
    let floors = rules::floors(&tree, &[&["cellar"], &["attic", "door"], &["main"]]);
    assert_eq!(found(&floors), [("attic -> door", 1), ("cellar -> attic", 2), ("cellar -> door", 1)]);
    assert!(floors[1].detail.contains("src/cellar.rs:1 names `crate::attic::Roof` of src/attic.rs"));
    let floors = rules::floors(&tree, &[&["cellar"], &["attic"]]);
    assert!(found(&floors).contains(&("door", 0)) && found(&floors).contains(&("main", 0)));
}

const STORE: [(&str, &str); 6] = [
    ("src/store.rs", "mod blobs; mod disk; mod index; pub use disk::Disk; pub struct Store(blobs::Blobs);"),
    ("src/store/blobs.rs", "use super::index::key::Key; use super::Disk; pub(super) struct Blobs;"),
    ("src/store/disk.rs", "pub struct Disk;"),
    ("src/store/index.rs", "mod key; use super::disk::Disk; pub(super) use key::Key;"),
    ("src/store/index/key.rs", "pub(in crate::store) struct Key;"),
    ("src/lib.rs", "mod store;"),
];

#[test]
fn a_sub_room_uses_lower_ones_of_its_room_only() {
    let right: [Room; 1] = [("store", &["disk", "index", "blobs"])];
    assert_eq!(found(&order(&tree(&STORE), &right)), []);
    let wrong: [Room; 1] = [("store", &["disk blobs", "index"])];
    let findings = order(&tree(&STORE), &wrong);
    assert_eq!(found(&findings), [("store: blobs -> disk", 1), ("store: blobs -> index", 1)]);
    assert!(findings[1].detail.contains("src/store/blobs.rs:1"), "{}", findings[1].detail);

    let mut files = STORE;
    files[2].1 = "pub struct Disk(super::Store);";
    let findings = order(&tree(&files), &right);
    assert_eq!(found(&findings), [("store: disk -> self", 1)]);
    let named: [Room; 1] = [("store", &["self", "disk", "index", "blobs"])];
    assert_eq!(found(&order(&tree(&files), &named)), [("store: self -> blobs", 1)]);

    let incomplete: [Room; 1] = [("store", &["cellar disk", "index"])];
    let findings = order(&tree(&STORE), &incomplete);
    assert_eq!(found(&findings)[..2], [("store: cellar", 0), ("store: blobs", 0)]);
}

#[test]
fn a_room_without_an_order_is_told_one_or_its_circles() {
    let findings = order(&tree(&STORE), &[]);
    assert_eq!(found(&findings), [("store", 0)]);
    assert!(findings[0].detail.contains(r#"("store", &["disk", "index", "blobs"]),"#));
    let mut files = STORE;
    files[2].1 = "pub struct Disk(super::Store);";
    let findings = order(&tree(&files), &[]);
    assert_eq!(found(&findings), [("store", 4)]);
    assert!(findings[0].detail.contains("blobs disk index self"), "{}", findings[0].detail);
}

#[test]
fn a_folder_holds_few_files() {
    let paths = ["a/x.rs", "a/y.rs", "a/z.rs", "a/z/1.rs", "a/z/2.rs", "a.rs", "b.rs"].map(str::to_owned);
    assert_eq!(found(&rules::folders(&paths, 1)), [("a", 2), ("a/z", 2)]);
    assert_eq!(found(&rules::folders(&paths, 2)), []);
}

#[test]
fn files_use_each_other_in_small_circles() {
    let tree = tree(&[
        ("src/a.rs", "use crate::b::B; pub struct A;"),
        ("src/b.rs", "use crate::c::C; use crate::d::D; pub struct B;"),
        ("src/c.rs", "use crate::a::A; pub struct C;"),
        ("src/d.rs", "pub struct D;"),
        ("src/lib.rs", "pub mod a; pub mod b; pub mod c; pub mod d;"),
    ]);
    let findings = rules::circles_of_files(&tree, 2);
    assert_eq!(found(&findings), [("src/a.rs", 3)]);
    assert!(findings[0].detail.contains("src/c.rs:1 names `crate::a::A` of src/a.rs"));
    assert!(!findings[0].detail.contains("src/d.rs"));
    assert_eq!(found(&rules::circles_of_files(&tree, 3)), []);
}

#[test]
fn methods_of_a_type_are_in_few_files() {
    let spread = |first: &str, second: &str| {
        let tree = tree(&[
            (
                "src/a.rs",
                "pub struct A<T>(T); impl<T: Into<Vec<u8>>> A<T> {} pub trait Ours {} pub struct Z;",
            ),
            ("src/b.rs", first),
            ("src/c.rs", second),
            ("src/lib.rs", "pub mod a; pub mod b; pub mod c;"),
        ]);
        found(&rules::spread(&tree, 2))
            .iter()
            .map(|(key, number)| format!("{key} {number}"))
            .collect::<Vec<_>>()
    };
    let inherent = "use crate::a::A; impl A<u8> { fn f() {} }";
    assert_eq!(spread(inherent, ""), [""; 0]);
    assert_eq!(spread(inherent, "impl<T> crate::a::A<T> where T: Clone {}"), ["a::A 3"]);
    assert_eq!(spread(inherent, "use crate::a::A as X; impl<F: Fn() -> u8> X<F> {}"), ["a::A 3"]);
    assert_eq!(spread(inherent, "#[cfg(test)]\nmod tests { impl crate::a::A<u8> {} }"), [""; 0]);
    // Another crate's trait, and one of ours that several have.
    assert_eq!(
        spread(inherent, "use crate::a::A; impl<T> Drop for A<T> {} impl std::fmt::Debug for A<u8> {}"),
        [""; 0]
    );
    let two = "use crate::a::{A, Ours, Z}; impl<T> Ours for A<T> {} impl Ours for Z {}";
    assert_eq!(spread(inherent, two), [""; 0]);
    // A trait that is private, or nobody else's.
    assert_eq!(spread(inherent, "use crate::a::{A, Ours}; impl<T> Ours for A<T> {}"), ["a::A 3"]);
    let private = "use crate::a::{A, Z}; trait More {} impl<T> More for A<T> {} impl More for Z {}";
    assert_eq!(spread(inherent, private), ["a::A 3"]);
}

#[test]
fn fields_are_their_files_own() {
    let tree = tree(&[
        (
            "src/a.rs",
            "pub struct A { pub(super) x: Vec<(u8, u8)>, pub(in crate::a) y: u8, z: u8, pub w: u8 }",
        ),
        (
            "src/b.rs",
            "pub(crate) struct B(pub(super) fn(u8) -> u8, pub (u8, u8)); pub(super) struct C { x: u8 }",
        ),
        ("src/c.rs", "mod inside { pub(super) struct C { pub(super) x: u8 } }"),
        (
            "src/d.rs",
            "pub struct D { #[cfg(test)] pub(super) x: u8 } #[cfg(test)]\nmod tests { struct T(pub(super) u8); }",
        ),
        ("src/lib.rs", "pub mod a; pub mod b;"),
    ]);
    assert_eq!(found(&rules::open_fields(&tree)), [("a::A", 2), ("b::B", 1)]);
}

#[test]
fn a_type_has_a_name_of_its_own() {
    let tree = tree(&[
        ("src/a.rs", "pub struct Line; pub enum Error {} struct Own; pub type Way = u8;"),
        (
            "src/b.rs",
            "pub(super) enum Line {} pub enum Error {} pub struct Own; pub fn Way() {} pub trait Seen {}",
        ),
        ("src/lib.rs", "mod a; mod b; mod c { pub(crate) union Seen {} } pub use a::Line;"),
    ]);
    let findings = rules::double_names(&tree, &["Error"]);
    assert_eq!(found(&findings), [("Line", 2), ("Seen", 2)]);
    assert!(findings[0].detail.contains("src/a.rs:1") && findings[0].detail.contains("src/b.rs:1"));
}

#[test]
fn a_heavy_crate_has_its_homes() {
    let tree = tree(&[
        ("src/a.rs", "// sled::Db\nuse sled::Db;\n#[cfg(test)]\nmod tests { use clap::Parser; }"),
        ("src/b.rs", "\nfn f() { sled::open() }"),
        ("src/lib.rs", ""),
    ]);
    let findings = rules::homes(&tree, &[("sled", &["src/a.rs"]), ("clap", &["src/a.rs"])]);
    assert_eq!(found(&findings), [("sled: src/b.rs", 1), ("clap: src/a.rs", 0)]);
    assert!(findings[0].detail.contains("src/b.rs:2"), "{}", findings[0].detail);
}

#[test]
fn exceptions_are_exact_and_only_become_smaller() {
    let finding = |key: &str, number| Finding { key: key.to_owned(), number, detail: "; there".to_owned() };
    let news =
        |findings: &[Finding], exceptions: &[(&str, usize)]| news("rule", "mend it", findings, exceptions);
    assert_eq!(news(&[finding("a", 3)], &[("a", 3)]), [""; 0]);
    assert_eq!(news(&[finding("a", 4)], &[("a", 3)]), ["rule: a (4, 3 before): mend it; there"]);
    assert_eq!(news(&[finding("a", 4)], &[]), ["rule: a (4): mend it; there"]);
    assert_eq!(
        news(&[finding("a", 2)], &[("a", 3)]),
        ["rule: a is better than it was: write (\"a\", 2) instead of 3"]
    );
    assert_eq!(news(&[], &[("a", 3)]), ["rule: a is well now: take it out of the exceptions"]);
    // What is no matter of numbers is no exception.
    assert_eq!(news(&[finding("a", 0)], &[("a", 0)]), ["rule: a: ; there"]);
}
