//! The crate as the rules see it: its files, its modules, and the arrows between files, each from the file that names
//! something to the file that defines it.
//!
//! A name that a module passes on with `pub use` is followed to where it is defined. So the file that passes it on is no
//! stop of the arrow; nor does passing on alone make an arrow, only use does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{self, PathBuf};

use super::reader::{self, Import, Item, Module, Path, Visibility};

pub(super) struct File {
    /// From the package's folder: `src/store/pins.rs`.
    pub(super) path: String,
    pub(super) text: String,
    /// Exists in unit tests only.
    pub(super) is_tests: bool,
}

pub(super) struct Tree {
    pub(super) files: Vec<File>,
    /// With the file that each is in.
    modules: BTreeMap<Path, (usize, Module)>,
    /// What was looked up already.
    known: RefCell<HashMap<Name, Option<Found>>>,
}

/// A name in a module, and whether it is the end of a path.
type Name = (Path, String, bool);

/// One file uses what another defines: once for each two files.
pub(super) struct Arrow {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) line: usize,
    /// The first that it uses, as it is written there.
    pub(super) name: String,
}

/// What a path leads to.
#[derive(Clone)]
enum Found {
    Module(Path),
    /// By its module and its name. What a macro has made is none of the module's known items.
    Item(Path, String),
}

impl Tree {
    /// The tree of a package.
    pub(super) fn of_folder(root: &path::Path) -> Self {
        let file = |path: String| {
            let text = fs::read_to_string(root.join(&path)).unwrap();
            (path, text)
        };
        Self::of_files(files_below(root, "src").into_iter().map(file).collect())
    }

    pub(super) fn of_files(files: Vec<(String, String)>) -> Self {
        let mut modules = BTreeMap::new();
        for (file, (path, text)) in files.iter().enumerate() {
            let read = reader::read(module_of(path), text);
            for module in read.unwrap_or_else(|error| panic!("{path}: {error}")) {
                modules.insert(module.path.clone(), (file, module));
            }
        }
        let tests: Vec<Path> = modules.values().flat_map(|(_, module)| test_modules(module)).collect();
        modules.retain(|path, _| !tests.iter().any(|tests| path.starts_with(tests)));
        let file = |(path, text): (String, String)| {
            let is_tests = tests.iter().any(|tests| module_of(&path).starts_with(tests));
            File { path, text, is_tests }
        };
        Self { files: files.into_iter().map(file).collect(), modules, known: RefCell::default() }
    }

    pub(super) fn path(&self, file: usize) -> &str {
        &self.files[file].path
    }

    /// All modules but those of unit tests, each with its file.
    pub(super) fn modules(&self) -> impl Iterator<Item = (usize, &Module)> {
        self.modules.values().map(|(file, module)| (*file, module))
    }

    /// Every item, with its file and the path of its module.
    pub(super) fn items(&self) -> impl Iterator<Item = (usize, &Path, &Item)> {
        self.modules()
            .flat_map(|(file, module)| module.items.iter().map(move |item| (file, &module.path, item)))
    }

    /// The arrows between files; `passed_on` also those of names that are only passed on.
    pub(super) fn arrows(&self, passed_on: bool) -> Vec<Arrow> {
        let mut arrows = BTreeMap::new();
        for (from, module) in self.modules() {
            let is_used = |import: &&Import| passed_on || import.visibility == Visibility::Private;
            let imports = module.imports.iter().filter(is_used).map(|import| (&import.target, import.line));
            let mentions = module.mentions.iter().map(|(path, line)| (path, *line));
            for (path, line) in imports.chain(mentions) {
                let Some((home, _)) = self.item(&module.path, path) else { continue };
                let Some((to, _)) = self.modules.get(&home) else { continue };
                let to = *to;
                if to != from {
                    arrows.entry((from, to)).or_insert_with(|| (line, path.join("::")));
                }
            }
        }
        let arrow = |((from, to), (line, name))| Arrow { from, to, line, name };
        arrows.into_iter().map(arrow).collect()
    }

    /// The module and the name of the item that a path in a module leads to, if it is one of this crate.
    pub(super) fn item(&self, module: &Path, path: &[String]) -> Option<(Path, String)> {
        match self.find(module, path)? {
            Found::Item(home, name) => Some((home, name)),
            Found::Module(_) => None,
        }
    }

    fn find(&self, module: &Path, path: &[String]) -> Option<Found> {
        let mut found = Found::Module(module.clone());
        for (at, name) in path.iter().enumerate() {
            let Found::Module(here) = found else { return Some(found) };
            found = match &**name {
                "crate" => Found::Module(Path::new()),
                "self" => Found::Module(here),
                "super" => Found::Module(here.split_last()?.1.to_vec()),
                name => match self.find_in(&here, name, at + 1 == path.len()) {
                    Some(found) => found,
                    // What a macro has made, or what this module passes on of another crate.
                    None if at > 0 => Found::Item(here, name.to_owned()),
                    // The program is a crate of its own.
                    None if name == "berth" => Found::Module(Path::new()),
                    None => return None,
                },
            };
        }
        Some(found)
    }

    /// What a name is in a module. A module and an item may have one name: then the item is meant at the end of a path.
    fn find_in(&self, here: &Path, name: &str, is_last: bool) -> Option<Found> {
        let key = (here.clone(), name.to_owned(), is_last);
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        // Until it is found, nothing: imports may go round in circles.
        self.known.borrow_mut().insert(key.clone(), None);
        let (_, module) = self.modules.get(here)?;
        let child = [&here[..], &[name.to_owned()]].concat();
        let child = self.modules.contains_key(&child).then_some(Found::Module(child));
        let item = module.items.iter().any(|item| item.name == name);
        let item = item.then(|| Found::Item(here.clone(), name.to_owned()));
        let own = if is_last { item.or(child) } else { child.or(item) };
        let follow = |import: &Import| self.find(here, &import.target);
        let named = || module.imports.iter().filter(|import| import.name == name).find_map(follow);
        let through = |import: &Import| match follow(import)? {
            Found::Module(there) => self.find_in(&there, name, is_last),
            Found::Item(..) => None,
        };
        let all = || module.imports.iter().filter(|import| import.name == "*").find_map(through);
        let found = own.or_else(named).or_else(all);
        self.known.borrow_mut().insert(key, found.clone());
        found
    }
}

/// The paths of all Rust files in a folder of the package and below it.
pub(super) fn files_below(root: &path::Path, folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    collect(&root.join(folder), &mut files);
    files.sort();
    let path = |file: PathBuf| file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    files.into_iter().map(path).collect()
}

fn collect(folder: &path::Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `src/store/pins.rs` is `store::pins`, `src/lib.rs` the root.
pub(super) fn module_of(path: &str) -> Path {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    if path == "lib" { Path::new() } else { path.split('/').map(str::to_owned).collect() }
}

fn test_modules(module: &Module) -> Vec<Path> {
    let path = |name: &String| [&module.path[..], std::slice::from_ref(name)].concat();
    module.tests.iter().map(path).collect()
}

/// The circles of a graph: nodes that reach one another, more than one, each circle and all of them in order.
pub(super) fn circles(arrows: &BTreeSet<(usize, usize)>) -> Vec<Vec<usize>> {
    let mut next: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (from, to) in arrows {
        next.entry(*from).or_default().push(*to);
    }
    let reached = |start: usize| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(node) = open.pop() {
            for to in next.get(&node).into_iter().flatten() {
                if seen.insert(*to) {
                    open.push(*to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<usize, BTreeSet<usize>> = next.keys().map(|node| (*node, reached(*node))).collect();
    let mut circles = BTreeSet::new();
    for (node, there) in &reached {
        let is_back = |to: &&usize| reached.get(to).is_some_and(|back| back.contains(node));
        let circle: Vec<usize> = there.iter().filter(is_back).copied().collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}
