//! The order inside a room: a sub-room uses those of lower floors only.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::Path;
use super::rules::{Finding, finding, list, written};
use super::tree::{Arrow, Tree, circles, module_of};

/// A room, and its sub-rooms floor by floor from the lowest; those of one floor, in one text, do not use each other.
/// `self` is the room's own file. Where it is not named, it is above all others.
pub(super) type Room = (&'static str, &'static [&'static str]);

/// What is not in the order that a room has here. A room without an order is found with how many of its sub-rooms use each
/// other in circles, or with an order that it can have.
pub(super) fn order(tree: &Tree, rooms: &[Room]) -> Vec<Finding> {
    let files = tree.files.iter().filter(|file| !file.is_tests).map(|file| module_of(&file.path));
    let top = files.filter(|path| path.len() > 1).map(|path| path[0].clone());
    let all: BTreeSet<String> = top.chain(rooms.iter().map(|(room, _)| (*room).to_owned())).collect();
    let arrows = tree.arrows(false);
    let mut findings = Vec::new();
    for room in all {
        let inside = Inside::of(tree, &room, &arrows);
        match rooms.iter().find(|(name, _)| *name == room) {
            Some((_, floors)) => inside.check(tree, floors, &mut findings),
            None => findings.push(inside.without_order()),
        }
    }
    findings
}

/// A room's sub-rooms, and the arrows between them.
struct Inside<'a> {
    room: String,
    names: Vec<String>,
    /// With the places of both ends in `names`.
    arrows: Vec<(usize, usize, &'a Arrow)>,
}

impl<'a> Inside<'a> {
    fn of(tree: &Tree, room: &str, arrows: &'a [Arrow]) -> Self {
        let path: Path = room.split("::").map(str::to_owned).collect();
        let name = |file: usize| {
            let module = module_of(tree.path(file));
            let is_inside = module.starts_with(&path) && !tree.files[file].is_tests;
            is_inside.then(|| module.get(path.len()).map_or_else(|| "self".to_owned(), Clone::clone))
        };
        let of_files: Vec<Option<String>> = (0..tree.files.len()).map(name).collect();
        let names: BTreeSet<String> = of_files.iter().flatten().cloned().collect();
        let names: Vec<String> = names.into_iter().collect();
        let place = |file: usize| {
            let name = of_files[file].as_ref()?;
            names.iter().position(|known| known == name)
        };
        let ends = |arrow: &'a Arrow| Some((place(arrow.from)?, place(arrow.to)?, arrow));
        let arrows = arrows.iter().filter_map(ends).filter(|(from, to, _)| from != to).collect();
        Self { room: room.to_owned(), names, arrows }
    }

    fn check(&self, tree: &Tree, floors: &[&str], findings: &mut Vec<Finding>) {
        let listed = floors
            .iter()
            .enumerate()
            .flat_map(|(floor, names)| names.split(' ').map(move |name| (name, floor)));
        let mut listed: BTreeMap<&str, usize> = listed.collect();
        listed.entry("self").or_insert(usize::MAX);
        let mut wrong = |name: &str, what: &str| {
            findings.push(finding(format!("{}: {name}", self.room), 0, what.to_owned()));
        };
        for name in
            listed.keys().filter(|name| **name != "self" && !self.names.iter().any(|known| known == *name))
        {
            wrong(name, "there is no such sub-room");
        }
        for name in self.names.iter().filter(|name| !listed.contains_key(&***name)) {
            wrong(name, "it has no floor in its room");
        }
        let mut up: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (from, to, arrow) in &self.arrows {
            let (from, to) = (&*self.names[*from], &*self.names[*to]);
            if listed.get(to) >= listed.get(from) {
                up.entry(format!("{}: {from} -> {to}", self.room)).or_default().push(written(tree, arrow));
            }
        }
        findings.extend(up.into_iter().map(|(key, lines)| finding(key, lines.len(), list(&lines))));
    }

    fn without_order(&self) -> Finding {
        let pairs: BTreeSet<(usize, usize)> = self.arrows.iter().map(|(from, to, _)| (*from, *to)).collect();
        let circles = circles(&pairs);
        let (room, levels) = (self.room.clone(), self.levels(&pairs));
        match circles.iter().map(Vec::len).sum() {
            0 => {
                finding(room, 0, format!("write its order into ROOMS, as: (\"{}\", &{levels:?}),", self.room))
            }
            tied => {
                finding(room, tied, list(&circles.iter().map(|circle| self.told(circle)).collect::<Vec<_>>()))
            }
        }
    }

    fn told(&self, places: &[usize]) -> String {
        places.iter().map(|place| &*self.names[*place]).collect::<Vec<_>>().join(" ")
    }

    /// An order of sub-rooms that use each other in no circle: each as low as what it uses allows.
    fn levels(&self, pairs: &BTreeSet<(usize, usize)>) -> Vec<String> {
        let mut level = vec![0; self.names.len()];
        for _ in 0..self.names.len() {
            for (from, to) in pairs {
                level[*from] = level[*from].max(level[*to] + 1);
            }
        }
        let is_named =
            |place: &usize| self.names[*place] != "self" || pairs.iter().any(|(_, to)| to == place);
        let names = |wanted: usize| {
            let is_there = |place: &usize| level[*place] == wanted && is_named(place);
            self.told(&(0..self.names.len()).filter(is_there).collect::<Vec<_>>())
        };
        (0..=self.names.len()).map(names).filter(|names| !names.is_empty()).collect()
    }
}
