//! Fuzzing of what reads bytes from outside: one test beside each parser, all with this generator.
//!
//! [`Target::holds`] shows a property every input of the corpus `tests/fuzz/<target>`, and then inputs that are made
//! from those: bits flipped, parts cut out, repeated, nested and taken from each other, words of the target's own put
//! in. Few are made of nothing but words, or of noise. An input that breaks a property is made smaller as long as it
//! does, and is written to the corpus, so that it is tried first from then on.
//!
//! The tests try [`CASES`] inputs for each target. `BERTH_FUZZ_CASES=1000000 BERTH_FUZZ_SEED=7 cargo test --lib fuzzed` is
//! a long run: another seed, other inputs.
//!
//! Why not cargo-fuzz: it needs a nightly compiler, and the house has one toolchain, a stable one.

mod change;
mod heap;

use std::fs::{self, File};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use change::{Change, Material};

pub(crate) use heap::peak;

/// Inputs that a target is shown in every run of the tests: a second of it, at most.
const CASES: u32 = 4000;
/// Changes that are made to an input of the corpus.
const CHANGES_MAX: usize = 8;
/// Words, or bytes of noise, of an input that is not made from the corpus.
const WORDS_MAX: usize = 24;
const NOISE_MAX: usize = 300;
/// Tries to make a failing input smaller.
const SHRINKS_MAX: u32 = 4096;
/// Of a failing input, what is shown.
const SHOWN_BYTES_MAX: usize = 2000;

/// What JSON is made of, and values of it that readers stumble over.
const JSON: [&str; 15] =
    ["{", "}", "[", "]", ",", ":", "\"", "{},", "0,", "null", "true", "-1", "1e309", "\\u0000", "\\ud800"];

/// What a document may become in memory besides a few times its own bytes: as many descriptors as are read at most.
pub(crate) const FIXED_BYTES_MAX: usize = 4 << 20;

/// Something that reads bytes.
pub(crate) struct Target {
    /// The folder of its corpus.
    pub(crate) name: &'static str,
    /// What its inputs are made of, beside the corpus.
    pub(crate) words: &'static [&'static str],
}

impl Target {
    /// Tries the property with many inputs. It is to panic if it does not hold.
    pub(crate) fn holds(&self, property: impl Fn(&[u8])) {
        self.holds_with(&[], property);
    }

    /// The same for something that reads JSON: its inputs are made of what JSON is made of, too.
    pub(crate) fn holds_for_json(&self, property: impl Fn(&[u8])) {
        self.holds_with(&JSON, property);
    }

    fn holds_with(&self, syntax: &[&'static str], property: impl Fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(self.name);
        let corpus = corpus(&folder);
        for (path, input) in &corpus {
            if catch_unwind(AssertUnwindSafe(|| property(input))).is_err() {
                panic!("{} breaks the property: {}", path.display(), shown(input));
            }
        }
        let inputs = corpus.into_iter().map(|(_, input)| input).collect();
        let material = Arc::new(Material { corpus: inputs, words: [self.words, syntax].concat() });
        let seed = number("BERTH_FUZZ_SEED", 0);
        let config = Config {
            cases: number("BERTH_FUZZ_CASES", CASES.into()).try_into().expect("a number of cases"),
            max_shrink_iters: SHRINKS_MAX,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, random(seed, self.name));
        let outcome = runner.run(&inputs_of(&material), |input| {
            property(&input);
            Ok(())
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(reason, input)) => {
                let path = folder.join(name_of(&input));
                let written = File::create(&path).and_then(|mut file| file.write_all(&input));
                panic!("seed {seed}: {reason}\n{}\nkept as {}: {written:?}", shown(&input), path.display());
            }
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }
    }
}

/// The numbers that a run begins with; another target has others.
fn random(seed: u64, target: &str) -> TestRng {
    let mut start = [0; 32];
    start[..8].copy_from_slice(&seed.to_be_bytes());
    start[8..].iter_mut().zip(target.bytes()).for_each(|(at, byte)| *at = byte);
    TestRng::from_seed(RngAlgorithm::ChaCha, &start)
}

/// Every input that is kept, by the file that it is in.
fn corpus(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a file of the corpus").path()).collect();
    paths.sort();
    let read = |path: PathBuf| (fs::read(&path).expect("a file of the corpus"), path);
    paths.into_iter().map(read).map(|(input, path)| (path, input)).collect()
}

fn inputs_of(material: &Arc<Material>) -> impl Strategy<Value = Vec<u8>> + use<> {
    let changed = (any::<Index>(), vec(Change::any(), 0..CHANGES_MAX));
    let material = Arc::clone(material);
    let words = material.words.clone();
    prop_oneof![
        8 => changed.prop_map(move |(which, changes)| material.changed(which, &changes)),
        1 => vec(select(words), 0..WORDS_MAX).prop_map(|words| words.concat().into_bytes()),
        1 => vec(any::<u8>(), 0..NOISE_MAX),
    ]
}

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    let parse = |text: String| text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number"));
    std::env::var(name).map_or(default, parse)
}

/// The beginning of an input, so that it can be read and copied.
fn shown(input: &[u8]) -> String {
    let start = &input[..input.len().min(SHOWN_BYTES_MAX)];
    format!("b\"{}\", {} bytes in all", start.escape_ascii(), input.len())
}

/// The file of an input, named by what is in it.
fn name_of(input: &[u8]) -> String {
    // FNV-1a: the same in every build, and nothing here comes from an enemy.
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("found-{:016x}", input.iter().fold(0xcbf2_9ce4_8422_2325, mix))
}
