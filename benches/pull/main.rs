//! What does a pull through berth cost, next to the caches and servers that people run today?
//!
//! Each of the [`parts`] answers the question that its file begins with.
//!
//! One core is the servers', another that of the clients and of upstream ([`cores`]); access logs are off
//! everywhere. The servers take turns in each of several rounds, so that a busy moment of the machine meets all
//! of them, and medians are shown: figures compare only within one run. Standard output is Markdown, and its
//! last table holds each of the [`bars`] against what was measured. Words choose parts; with `quick` everything
//! is small, which shows that it works, and nothing else. With `before=PROGRAM` an earlier berth is compared, twice, in
//! place of all other servers: has anything become worse?

#![allow(clippy::unwrap_used, reason = "a failed assumption of a benchmark is a failed benchmark")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its results")]

// An inline module, so that the files of the tests' language are found where they are; it names itself
// `crate::support`.
#[path = "../../tests/it"]
mod it {
    #[allow(dead_code, unused_imports, reason = "benchmarks say less in this language than tests do")]
    pub(crate) mod support;
}
use it::support;

mod bars;
mod client;
mod cores;
mod load;
mod parts;
mod plan;
mod requests;
mod scene;
mod server;
mod table;
mod usage;
mod yardstick;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use tokio::runtime::Runtime;

use bars::Bars;
use cores::Cores;
use parts::{cold, connections, hot, manifest, memory, ranges, scale, tls};
use plan::Plan;
use server::Kind;
use support::Setup;

/// What begins the word that names an earlier berth.
const BEFORE: &str = "before=";

/// The word for a part, and what measures it.
type Part = (&'static str, fn(&Bench));

/// In the order in which they run.
const PARTS: [Part; 8] = [
    ("hot", hot::run),
    ("tls", tls::run),
    ("manifest", manifest::run),
    ("cold", cold::run),
    ("ranges", ranges::run),
    ("connections", connections::run),
    ("memory", memory::run),
    ("scale", scale::run),
];

/// What all parts share.
pub(crate) struct Bench {
    /// For upstream, on the clients' core.
    pub(crate) runtime: Runtime,
    pub(crate) plan: Plan,
    pub(crate) cores: Cores,
    pub(crate) bars: Bars,
    /// An earlier berth that this one is compared with, in place of other servers.
    before: Option<PathBuf>,
}

impl Bench {
    /// What is compared: these servers, unless an earlier berth is.
    pub(crate) fn compared<'a>(&self, kinds: &'a [Kind]) -> &'a [Kind] {
        if self.is_against_before() { Kind::OF_BERTH } else { kinds }
    }

    pub(crate) fn is_against_before(&self) -> bool {
        self.before.is_some()
    }

    /// A set-up of one berth or the other.
    pub(crate) fn of(&self, kind: Kind, setup: Setup) -> Setup {
        let mut setup = setup.http("access_log = false");
        if kind != Kind::Berth {
            setup.program.clone_from(self.before.as_ref().unwrap());
        }
        setup
    }
}

fn main() -> ExitCode {
    // cargo adds a flag of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if let [yardstick::WORD, address, folder] = &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        yardstick::serve(address, folder);
        return ExitCode::SUCCESS;
    }
    let is_asked = |word: &str| words.iter().any(|asked| asked == word);
    let before = words.iter().find_map(|word| word.strip_prefix(BEFORE)).map(PathBuf::from);
    let is_known = |word: &String| {
        word == "quick" || word.starts_with(BEFORE) || PARTS.iter().any(|(name, _)| name == word)
    };
    if let Some(unknown) = words.iter().find(|word| !is_known(word)) {
        let names = PARTS.map(|(name, _)| name).join(", ");
        eprintln!("no part is called `{unknown}`: choose of {names}; or add `quick`, or `{BEFORE}PROGRAM`");
        return ExitCode::from(2);
    }
    let began = Instant::now();
    // Before the runtime, whose threads shall stay where this one is.
    let cores = Cores::divide();
    let plan = match (is_asked("quick"), &before) {
        (true, _) => Plan::quick(),
        (false, Some(_)) => Plan::against_before(),
        (false, None) => Plan::full(),
    };
    let bench = Bench { runtime: Runtime::new().unwrap(), plan, cores, bars: Bars::default(), before };
    let all = !PARTS.iter().any(|(name, _)| is_asked(name));
    let mut failed = Vec::new();
    for (name, run) in PARTS.into_iter().filter(|(name, _)| all || is_asked(name)) {
        // A part that fails has said why, and shall not take along what the others measured.
        if catch_unwind(AssertUnwindSafe(|| run(&bench))).is_err() {
            failed.push(name);
        }
        eprintln!("{name}: done after {:.0} s in all", began.elapsed().as_secs_f64());
    }
    bench.bars.show(if is_asked("quick") { ", of a quick run: figures that mean nothing" } else { "" });
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("these parts failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
