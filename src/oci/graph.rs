//! The closure of an image: everything that it refers to, directly or by way of other manifests, with its limits.
//!
//! A [`Walk`] says which content is next, and is told what that refers to; where a manifest is read from, and what becomes
//! of it, is the business of its user. So one walk serves those that read files, those that wait for something on the way, and
//! those that stop early. A manifest can name anything, itself among it, so each digest is visited once, and a walk is
//! bounded in depth and in number: what is beyond the bounds is left out.

use std::collections::HashSet;

use super::digest::Digest;
use super::manifest::{Descriptor, is_manifest_type};

/// The levels below the root that are followed. An index of indexes of indexes is more than anybody makes.
pub const DEPTH_MAX: usize = 4;
/// The digests of one closure that are followed: an index of 100 platforms with 100 layers each.
pub const DIGESTS_MAX: usize = 10_000;

/// A walk over the closure of one image, the root first. Of what is still to be visited the last that was found is next.
#[derive(Debug)]
pub struct Walk<'a> {
    seen: HashSet<Digest>,
    waiting: Vec<Node<'a>>,
}

/// One content of a closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Its digest.
    pub digest: Digest,
    /// Its media type by the word of what refers to it; empty if that is not a manifest's.
    pub media_type: &'a str,
    /// The number of manifests between it and nothing: 0 for the root.
    pub depth: usize,
}

impl Node<'_> {
    /// Whether it is the root, or said to be a manifest.
    pub fn is_manifest(&self) -> bool {
        self.depth == 0 || is_manifest_type(self.media_type)
    }
}

impl<'a> Walk<'a> {
    /// A walk that begins at the manifest `root`.
    pub fn new(root: Digest, media_type: &'a str) -> Self {
        let root = Node { digest: root, media_type, depth: 0 };
        Self { seen: HashSet::from([root.digest]), waiting: vec![root] }
    }

    /// Goes on with `children`, to which the manifest at `node` refers, as far as the limits allow.
    pub fn descend<'c>(&mut self, node: &Node<'_>, children: impl IntoIterator<Item = &'c Descriptor>) {
        if node.depth >= DEPTH_MAX {
            return;
        }
        for child in children {
            let Some(digest) = child.digest() else { continue };
            if self.seen.len() < DIGESTS_MAX && self.seen.insert(digest) {
                let media_type = child.manifest_type().unwrap_or_default();
                self.waiting.push(Node { digest, media_type, depth: node.depth + 1 });
            }
        }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        self.waiting.pop()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::oci::{Algorithm, Manifest};

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn digest(name: &str) -> Digest {
        Digest::of(Algorithm::Sha256, name.as_bytes())
    }

    /// An index of these manifests, each of them another index.
    fn index(names: impl IntoIterator<Item = String>) -> Manifest {
        let entry = |name: String| {
            format!("{{\"mediaType\":\"{INDEX}\",\"size\":1,\"digest\":\"{}\"}}", digest(&name))
        };
        let entries: Vec<_> = names.into_iter().map(entry).collect();
        let body = format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", entries.join(","));
        Manifest::parse(Some(INDEX), body.as_bytes()).unwrap()
    }

    fn image(config: &str, layer: &str) -> Manifest {
        let part = |name: &str| {
            format!("{{\"mediaType\":\"application/x\",\"size\":1,\"digest\":\"{}\"}}", digest(name))
        };
        let body =
            format!("{{\"schemaVersion\":2,\"config\":{},\"layers\":[{}]}}", part(config), part(layer));
        Manifest::parse(Some(IMAGE), body.as_bytes()).unwrap()
    }

    /// What a walk visits among these manifests, with its depth and whether it is a manifest.
    fn walk(root: &str, manifests: &[(&str, Manifest)]) -> Vec<(Digest, usize, bool)> {
        let manifests: HashMap<_, _> = manifests.iter().map(|(name, it)| (digest(name), it)).collect();
        let mut walk = Walk::new(digest(root), INDEX);
        let mut visited = Vec::new();
        while let Some(node) = walk.next() {
            visited.push((node.digest, node.depth, node.is_manifest()));
            if let Some(manifest) = manifests.get(&node.digest) {
                walk.descend(&node, manifest.children());
            }
        }
        visited
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn everything_is_visited_once_and_the_root_first() {
        let root = index(names(&["a", "b", "a", "root"]));
        let manifests = [("root", root), ("a", image("config", "base")), ("b", image("other", "base"))];
        let visited = walk("root", &manifests);
        let expected = [
            ("root", 0, true),
            ("b", 1, true),
            ("base", 2, false),
            ("other", 2, false),
            ("a", 1, true),
            ("config", 2, false),
        ];
        assert_eq!(visited, expected.map(|(name, depth, is_manifest)| (digest(name), depth, is_manifest)));
        assert_eq!(walk("gone", &[]), [(digest("gone"), 0, true)], "what is not here refers to nothing");
    }

    #[test]
    fn a_closure_is_bounded_in_depth_and_in_number() {
        let chain: Vec<_> = (0..9).map(|level| level.to_string()).collect();
        let manifests: Vec<_> =
            chain.windows(2).map(|pair| (pair[0].as_str(), index([pair[1].clone()]))).collect();
        let depths: Vec<_> = walk("0", &manifests).into_iter().map(|(_, depth, _)| depth).collect();
        assert_eq!(depths, [0, 1, 2, 3, 4]);

        let parts = 1000;
        let root = index((0..20).map(|number| format!("{number}")));
        let children: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        let mut manifests = vec![("root", root)];
        for child in &children {
            manifests.push((child, index((0..parts).map(|part| format!("{child}/{part}")))));
        }
        assert_eq!(walk("root", &manifests).len(), DIGESTS_MAX);
    }
}
