//! What does a pull through berth cost, next to the caches and servers that people run today?
//!
//! - `cold`: many clients want one blob that nobody has yet. What is asked of upstream, when does who joins
//!   late get the first byte, when are all served, and in how much memory?
//! - `hot`: a blob and a manifest that are there. How fast, and for how much CPU time?
//! - `scale`: a store of a million blobs. How long does a start take, what does a hit cost, in how much memory?
//!
//! Server, clients and upstream share one machine, so its cores limit them together; figures compare only
//! within one run. The servers take turns in each of several rounds, and medians are shown. Standard output is
//! Markdown. `cold`, `hot` or `scale` as argument measures only that; with `quick` everything is small, which shows that it
//! works, and nothing else.

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

mod client;
mod cold;
mod hot;
mod scale;
mod server;
mod table;
mod usage;

use std::time::Instant;

/// How large and how often.
pub(crate) struct Plan {
    /// Turns that each server takes with each cold fan-out.
    pub(crate) cold_rounds: usize,
    /// Turns that each server takes with hot content.
    pub(crate) hot_rounds: usize,
    /// Seconds of one turn with hot content.
    pub(crate) hot_seconds: u64,
    /// Bytes of the blob of the cold fan-out.
    pub(crate) cold_bytes: usize,
    /// Bytes of the hot blob.
    pub(crate) hot_bytes: usize,
    /// Blobs of a large store.
    pub(crate) many_blobs: usize,
}

const FULL: Plan = Plan {
    cold_rounds: 3,
    hot_rounds: 5,
    hot_seconds: 2,
    cold_bytes: 128 << 20,
    hot_bytes: 16 << 20,
    many_blobs: 1_000_000,
};
const QUICK: Plan = Plan {
    cold_rounds: 1,
    hot_rounds: 1,
    hot_seconds: 1,
    cold_bytes: 8 << 20,
    hot_bytes: 1 << 20,
    many_blobs: 20_000,
};

fn main() {
    let is_asked = |word: &str| std::env::args().any(|arg| arg == word);
    let plan = if is_asked("quick") { QUICK } else { FULL };
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let is_alone =
        |part: &str| !["cold", "hot", "scale"].iter().any(|other| *other != part && is_asked(other));
    if is_alone("cold") {
        cold::run(&runtime, &plan);
    }
    if is_alone("hot") {
        hot::run(&runtime, &plan);
    }
    if is_alone("scale") {
        scale::run(&runtime, &plan);
    }
    eprintln!("{:.0} s in all", began.elapsed().as_secs_f64());
}
