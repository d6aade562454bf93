//! What is done to an input of the corpus to make another one.

use proptest::prelude::*;
use proptest::sample::Index;

/// No input grows beyond this: the parsers' own limits are far below or are tried on their own.
const INPUT_BYTES_MAX: usize = 256 * 1024;
/// Parts that are moved about are rarely longer.
const PART_BYTES_MAX: usize = 64;
/// How often a part is repeated at most: often enough to find what costs more than it should.
const REPEATS_MAX: usize = 20_000;

/// What inputs are made from.
pub(super) struct Material {
    pub(super) corpus: Vec<Vec<u8>>,
    pub(super) words: Vec<&'static str>,
}

/// One change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Flip(Index, u8),
    Byte(Index, u8),
    /// A word in the place of so many bytes.
    Word(Index, usize, Index),
    Number(Index, u64),
    Remove(Index, usize),
    Cut(Index),
    /// So many bytes, so often.
    Repeat(Index, usize, usize),
    /// So many bytes of another input.
    Splice(Index, Index, Index, usize),
    /// Brackets around the rest, so deep.
    Nest(Index, bool, usize),
}

impl Change {
    pub(super) fn any() -> impl Strategy<Value = Self> + use<> {
        let at = any::<Index>;
        // Much of something is rare, so that most inputs are small.
        let repeats = || prop_oneof![20 => 2..6_usize, 3 => 6..300_usize, 1 => 300..REPEATS_MAX];
        let part = || 0..PART_BYTES_MAX;
        prop_oneof![
            3 => (at(), 0..8_u8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            2 => (at(), any::<u8>()).prop_map(|(at, byte)| Self::Byte(at, byte)),
            6 => (at(), prop_oneof![Just(0), part()], at()).prop_map(|(at, len, word)| Self::Word(at, len, word)),
            1 => (at(), number()).prop_map(|(at, number)| Self::Number(at, number)),
            3 => (at(), part()).prop_map(|(at, len)| Self::Remove(at, len)),
            1 => at().prop_map(Self::Cut),
            2 => (at(), part(), repeats()).prop_map(|(at, len, times)| Self::Repeat(at, len, times)),
            3 => (at(), at(), at(), part()).prop_map(|(at, of, from, len)| Self::Splice(at, of, from, len)),
            1 => (at(), any::<bool>(), repeats()).prop_map(|(at, list, depth)| Self::Nest(at, list, depth)),
        ]
    }
}

/// Numbers at the edges of what fits.
fn number() -> impl Strategy<Value = u64> {
    const EDGES: [u64; 13] =
        [0, 1, 127, 128, 255, 256, 65_535, 65_536, 1 << 31, 1 << 32, (1 << 53) + 1, 1 << 62, 1 << 63];
    prop_oneof![proptest::sample::select(&EDGES[..]), (0..3_u64).prop_map(|by| u64::MAX - by), any::<u64>()]
}

impl Material {
    /// An input of the corpus after some changes.
    pub(super) fn changed(&self, which: Index, changes: &[Change]) -> Vec<u8> {
        let mut input = match self.corpus.len() {
            0 => Vec::new(),
            count => self.corpus[which.index(count)].clone(),
        };
        for change in changes {
            self.apply(&mut input, change);
            input.truncate(INPUT_BYTES_MAX);
        }
        input
    }

    fn apply(&self, input: &mut Vec<u8>, change: &Change) {
        let place = |at: &Index, len: usize| {
            let start = at.index(input.len() + 1);
            start..(start + len).min(input.len())
        };
        match change {
            Change::Flip(at, bit) => {
                let part = place(at, 1);
                input[part].iter_mut().for_each(|byte| *byte ^= 1 << bit);
            }
            Change::Byte(at, byte) => drop(input.splice(place(at, 1), [*byte])),
            Change::Word(at, len, word) => {
                let word = self.words[word.index(self.words.len())];
                input.splice(place(at, *len), word.bytes());
            }
            Change::Number(at, number) => drop(input.splice(place(at, 1), number.to_string().into_bytes())),
            Change::Remove(at, len) => drop(input.drain(place(at, *len))),
            Change::Cut(at) => input.truncate(at.index(input.len() + 1)),
            Change::Repeat(at, len, times) => {
                let part = place(at, *len);
                let most = INPUT_BYTES_MAX / part.len().max(1);
                let repeated = input[part.clone()].repeat((*times).min(most));
                input.splice(part, repeated);
            }
            Change::Splice(at, of, from, len) => {
                let other = &self.corpus[of.index(self.corpus.len().max(1))];
                let start = from.index(other.len() + 1);
                let part = other[start..(start + len).min(other.len())].to_vec();
                input.splice(place(at, 0), part);
            }
            Change::Nest(at, is_list, depth) => {
                let (open, close) = if *is_list { ("[", "]") } else { ("{\"a\":", "}") };
                let depth = (*depth).min(INPUT_BYTES_MAX / 8);
                input.splice(place(at, 0), open.repeat(depth).into_bytes());
                input.extend_from_slice(close.repeat(depth).as_bytes());
            }
        }
    }
}
