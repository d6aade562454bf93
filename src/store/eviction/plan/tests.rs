//! The plan by cases, and against plain LRU and Belady's optimum on a trace of pulls.

use std::collections::{BTreeSet, HashSet};

use super::*;
use crate::store::eviction::plan::stock::OwnerId;
use crate::store::eviction::plan::stock::{ContentNode, Item};

// === Cases

/// A stock from text: blobs `name bytes worth`, with ` = part part` behind a manifest; `!` in front: held.
struct Case {
    names: Vec<&'static str>,
    stock: Stock,
}

/// Of the one registry there is.
fn item(bytes: u64, worth: u64) -> Item {
    Item { bytes, worth, owner: OwnerId(OwnerId::FIRST), is_recent: true }
}

fn case(blobs: &'static str, partials: &[(u64, u64)]) -> Case {
    let lines: Vec<&str> = blobs.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let name_of = |line: &'static str| line.split(' ').next().unwrap().trim_start_matches('!');
    let names: Vec<&str> = lines.iter().copied().map(name_of).collect();
    let mut stock = Stock::default();
    for (number, line) in (0..).zip(&lines) {
        let (blob, parts) = line.split_once(" = ").unwrap_or((line, ""));
        let fields: Vec<&str> = blob.split(' ').collect();
        stock.blobs.push(item(fields[1].parse().unwrap(), fields[2].parse().unwrap()));
        if line.starts_with('!') {
            stock.held.push(number);
        }
        if !parts.is_empty() {
            let from = u32::try_from(stock.parts.len()).unwrap();
            let position = |part: &str| names.iter().position(|name| *name == part).unwrap();
            stock.parts.extend(parts.split(' ').map(|part| u32::try_from(position(part)).unwrap()));
            let to = u32::try_from(stock.parts.len()).unwrap();
            stock.manifests.push(ContentNode { blob: number, from, to });
        }
    }
    stock.partials = partials.iter().map(|(bytes, worth)| item(*bytes, *worth)).collect();
    Case { names, stock }
}

impl Case {
    /// What goes, in order, units apart by commas.
    fn goes(&self, bytes: u64, in_use: &[&str]) -> String {
        let plan = plan(&self.stock, Goal::of(bytes), &|number| in_use.contains(&self.names[index(number)]));
        let name = |number: &u32| self.names[index(*number)];
        let unit = |unit: &Unit| match unit {
            Unit::Blobs(blobs) => blobs.iter().map(name).collect::<Vec<_>>().join(" "),
            Unit::Partial(number) => format!("partial{number}"),
        };
        plan.units.iter().map(unit).collect::<Vec<_>>().join(", ")
    }
}

#[test]
fn images_go_whole_and_the_least_recently_used_first() {
    let case = case(
        "old 1 10 = base old-layer
         new 1 20 = base new-layer
         base 100 20
         old-layer 100 10
         new-layer 100 20",
        &[],
    );
    assert_eq!(case.goes(0, &[]), "");
    assert_eq!(case.goes(1, &[]), "old old-layer", "whole, and not what the new one needs");
    assert_eq!(case.goes(101, &[]), "old old-layer", "enough");
    assert_eq!(case.goes(102, &[]), "old old-layer, new base new-layer");
    assert_eq!(case.goes(9999, &[]), "old old-layer, new base new-layer");
}

#[test]
fn all_platforms_of_an_image_go_together_as_late_as_its_most_wanted_manifest() {
    let case = case(
        "index 1 10 = amd64 arm64
         amd64 1 30 = a
         arm64 1 10 = b
         a 100 30
         b 100 10
         other 1 20 = c
         c 100 20",
        &[],
    );
    assert_eq!(case.goes(1, &[]), "other c");
    assert_eq!(case.goes(102, &[]), "other c, index amd64 arm64 a b");
}

#[test]
fn a_layer_that_others_used_later_waits_for_its_turn() {
    let case = case(
        "one 1 10 = base x
         base 100 40
         x 100 10
         two 1 30 = y
         y 100 30",
        &[],
    );
    assert_eq!(case.goes(102, &[]), "one x, two y");
    assert_eq!(case.goes(250, &[]), "one x, two y, base");
}

#[test]
fn what_nothing_needs_and_what_nobody_finishes_goes_by_its_own_time() {
    let case = case(
        "stray 100 15
         image 1 20 = layer
         layer 100 20",
        &[(50, 10), (50, 30)],
    );
    assert_eq!(case.goes(9999, &[]), "partial0, stray, image layer, partial1");
}

#[test]
fn what_is_held_stays_with_all_that_it_refers_to() {
    let case = case(
        "!index 1 1 = amd64
         amd64 1 1 = a base
         a 100 1
         base 100 1
         other 1 2 = base b
         b 100 2
         !alone 100 1",
        &[],
    );
    assert_eq!(case.goes(9999, &[]), "other b");
}

#[test]
fn an_image_stays_while_anything_that_would_go_with_it_is_in_use() {
    let case = case(
        "one 1 10 = base x
         two 1 20 = base y
         base 100 20
         x 100 10
         y 100 20",
        &[],
    );
    assert_eq!(case.goes(9999, &["x"]), "two y");
    assert_eq!(case.goes(9999, &["base"]), "one x", "the base does not go with the first");
    assert_eq!(case.goes(9999, &["one"]), "two y");
}

#[test]
fn a_part_that_is_named_twice_goes_once() {
    let case = case("image 1 10 = layer layer\nlayer 100 10", &[]);
    assert_eq!(case.goes(9999, &[]), "image layer");
    assert_eq!(case.goes(9999, &["layer"]), "");
}

#[test]
fn being_asked_for_again_counts_and_a_busy_hour_does_not() {
    assert_eq!(worth(1000, 1000), 1000);
    assert_eq!(worth(1000, 1000 + OCCASION_SECONDS), 1000 + OCCASION_SECONDS);
    assert!(worth(1000, 1001 + OCCASION_SECONDS) > AGAIN_SECONDS);
    let (old_favourite, new) = (worth(0, 2 * OCCASION_SECONDS), worth(AGAIN_SECONDS * 2, AGAIN_SECONDS * 2));
    assert!(old_favourite < new, "not for ever");
    assert_eq!(worth(5, 3), 3, "a clock that went back");
}

// === Several registries

/// Registries by number, each with `(blobs, bytes each, worth)`; the first blob of each is the oldest.
fn registries(all: &[(u64, u64, u64)], limit: u64) -> Stock {
    let mut stock = Stock { limit, ..Stock::default() };
    for (number, (count, bytes, worth)) in (OwnerId::FIRST..).zip(all) {
        let blob = |age| Item { owner: OwnerId(number), ..item(*bytes, worth + age) };
        stock.blobs.extend((0..*count).map(blob));
    }
    stock
}

/// Bytes that each registry loses when this one brings that much.
fn losses(stock: &mut Stock, bringer: Option<u16>, bytes: u64) -> Vec<u64> {
    stock.bringer = bringer.map(|number| OwnerId(OwnerId::FIRST + number));
    let mut losses = vec![0; 4];
    for unit in plan(stock, Goal::of(bytes), &|_| false).units {
        let Unit::Blobs(blobs) = unit else { unreachable!("there are no partial files") };
        for blob in blobs.into_iter().map(|number| stock.blobs[index(number)]) {
            losses[usize::from(blob.owner.0 - OwnerId::FIRST)] += blob.bytes;
        }
    }
    losses
}

#[test]
fn a_registry_that_brings_takes_from_another_no_more_than_is_beyond_its_share() {
    // The good one has been here for longer.
    let mut stock = registries(&[(10, 8, 100), (2, 8, 500)], 100);
    assert_eq!(losses(&mut stock, Some(1), 8), [8, 0, 0, 0], "it is below its share, and the other above");
    assert_eq!(losses(&mut stock, Some(1), 999), [40, 16, 0, 0], "never more");
    assert_eq!(losses(&mut stock, Some(0), 8), [8, 0, 0, 0], "the other is below its share");
    assert_eq!(losses(&mut stock, Some(0), 999)[1], 0);

    let mut stock = registries(&[(5, 8, 100), (5, 8, 500)], 100);
    assert_eq!(losses(&mut stock, Some(1), 24), [0, 24, 0, 0], "first of its own");

    let mut stock = registries(&[(3, 8, 100), (1, 8, 200), (7, 8, 500)], 100);
    assert_eq!(losses(&mut stock, Some(2), 999), [0, 0, 56, 0], "a flood beside several");
    assert_eq!(losses(&mut stock, None, 16), [0, 0, 16, 0], "behind, the largest is the one that brings");
}

#[test]
fn a_registry_alone_may_use_everything_and_so_may_one_whose_neighbours_nobody_asks_for() {
    let mut stock = registries(&[(10, 8, 100)], 100);
    assert_eq!(losses(&mut stock, Some(0), 999), [80, 0, 0, 0]);
    let mut stock = registries(&[(10, 8, 100), (2, 8, 500)], 100);
    stock.blobs.iter_mut().take(10).for_each(|blob| blob.is_recent = false);
    assert_eq!(losses(&mut stock, Some(1), 999), [80, 16, 0, 0]);
    stock.blobs.iter_mut().for_each(|blob| blob.owner = OwnerId::NOBODY);
    let all = plan(&stock, Goal::of(999), &|_| false);
    assert_eq!(all.bytes, 96, "what is nobody's is not spared");
}

#[test]
fn a_manifest_that_names_what_another_registry_has_keeps_nothing_of_that() {
    let mut stock = case("theirs 60 10\nlie 1 100 = theirs own\nown 30 100", &[]).stock;
    stock.limit = 100;
    stock.blobs[0].owner = OwnerId(OwnerId::FIRST + 1);
    stock.blobs[0].is_recent = false;
    stock.leased = vec![1];
    let kept = Sorting::new(&stock);
    assert_eq!((kept.held, kept.recent), (vec![false, true, true], vec![false, true, true]));
    assert_eq!(plan(&stock, Goal::of(999), &|_| false).bytes, 60);
    stock.held = vec![1];
    assert_eq!(plan(&stock, Goal::of(999), &|_| false).bytes, 0, "but a pin does");
}

#[test]
fn an_image_is_as_recent_as_its_manifest() {
    let mut stock = case(
        "image 1 100 = layer
layer 60 10
own 30 200",
        &[],
    )
    .stock;
    stock.limit = 100;
    stock.blobs[1].is_recent = false;
    stock.blobs[2].owner = OwnerId(OwnerId::FIRST + 1);
    stock.bringer = Some(OwnerId(OwnerId::FIRST + 1));
    assert_eq!(plan(&stock, Goal::of(50), &|_| false).bytes, 30, "the layer is part of what is asked for");
    stock.blobs[0].is_recent = false;
    assert_eq!(plan(&stock, Goal::of(50), &|_| false).bytes, 61);
}

#[test]
fn no_image_that_fills_the_half_goes_for_room_that_nobody_needs() {
    let case = case(
        "small 5 10
large 95 20
other 5 30",
        &[],
    );
    let goes = |bytes, excess_max| plan(&case.stock, Goal { bytes, excess_max }, &|_| false).bytes;
    assert_eq!((goes(10, 50), goes(10, 90), goes(4, 0)), (5, 100, 0));
    assert_eq!(goes(10, u64::MAX), 100);
}

// === The simulator

const IMAGES: usize = 2000;
const PULLS: usize = 10_000;
const ZIPF: f64 = 0.9;
const BASES: usize = 40;
/// The part of the images that is built on one of the bases.
const ON_A_BASE: f64 = 0.6;
const SEEDS: u64 = 5;
const DAY_SECONDS: f64 = 86_400.0;

/// What is pulled, in which order, and how much may be kept.
struct Trace {
    sizes: Vec<u64>,
    images: Vec<Vec<usize>>,
    pulls: Vec<usize>,
    budget: u64,
}

impl Trace {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut sizes = Vec::new();
        let mut layer = |bytes: u64| {
            sizes.push(bytes);
            sizes.len() - 1
        };
        let mut bases = Vec::new();
        for _ in 0..BASES {
            let layers = random.usize(1..4);
            bases.push((0..layers).map(|_| layer(random.u64(20_000_000..80_000_000))).collect::<Vec<_>>());
        }
        let mut images = Vec::new();
        for _ in 0..IMAGES {
            let base = (random.f64() < ON_A_BASE).then(|| random.choice(&bases).unwrap().clone());
            let mut image = base.unwrap_or_default();
            for _ in 0..random.usize(2..8) {
                // From 250 kB to 100 MB, as often below 5 MB as above it.
                image.push(layer((250_000.0 * (6.0 * random.f64()).exp()) as u64));
            }
            images.push(image);
        }
        let weights: Vec<f64> = (1..=IMAGES).map(|rank| (rank as f64).powf(-ZIPF)).collect();
        let mut sums = weights.clone();
        for at in 1..IMAGES {
            sums[at] += sums[at - 1];
        }
        let mut pull = || {
            let at = random.f64() * sums[IMAGES - 1];
            sums.partition_point(|sum| *sum < at).min(IMAGES - 1)
        };
        let pulls = (0..PULLS).map(|_| pull()).collect();
        let budget = sizes.iter().sum::<u64>() / 10;
        Self { sizes, images, pulls, budget }
    }

    /// Bytes that any cache fetches: each blob once.
    fn first_bytes(&self) -> u64 {
        let seen: HashSet<usize> = self.pulls.iter().flat_map(|pull| &self.images[*pull]).copied().collect();
        seen.into_iter().map(|blob| self.sizes[blob]).sum()
    }

    /// Evicts single blobs by a key that each use gives them, the lowest first.
    fn by_blob(&self, mut key: impl FnMut(usize, usize) -> u64) -> u64 {
        let mut keys = vec![0; self.sizes.len()];
        let mut here: BTreeSet<(u64, usize)> = BTreeSet::new();
        let (mut used, mut fetched) = (0, 0);
        for (time, pull) in self.pulls.iter().enumerate() {
            for blob in self.images[*pull].iter().copied() {
                if !here.remove(&(keys[blob], blob)) {
                    fetched += self.sizes[blob];
                    used += self.sizes[blob];
                }
                keys[blob] = key(time, blob);
                here.insert((keys[blob], blob));
            }
            while used > self.budget {
                used -= self.sizes[here.pop_first().unwrap().1];
            }
        }
        fetched
    }

    fn lru(&self) -> u64 {
        let mut uses = 0;
        self.by_blob(|_, _| {
            uses += 1;
            uses
        })
    }

    /// The blob whose next use is farthest goes first. With sizes that is an approximation of the optimum.
    fn belady(&self) -> u64 {
        let mut uses = vec![Vec::new(); self.sizes.len()];
        for (time, pull) in self.pulls.iter().enumerate().rev() {
            for blob in &self.images[*pull] {
                uses[*blob].push(time);
            }
        }
        self.by_blob(|_, blob| {
            uses[blob].pop();
            u64::MAX - uses[blob].last().map_or(u64::MAX, |next| *next as u64)
        })
    }

    /// What berth does, with its two marks.
    fn berth(&self, pulls_per_day: f64) -> u64 {
        let mut cached = Cached {
            trace: self,
            images: vec![None; self.images.len()],
            blobs: vec![None; self.sizes.len()],
        };
        let (mut used, mut fetched) = (0, 0);
        for (time, pull) in self.pulls.iter().enumerate() {
            let now = 1_000_000_000 + (time as f64 * DAY_SECONDS / pulls_per_day) as u64;
            cached.images[*pull].get_or_insert((now, now)).1 = now;
            for blob in self.images[*pull].iter().copied() {
                if cached.blobs[blob].is_none() {
                    fetched += self.sizes[blob];
                    used += self.sizes[blob];
                }
                cached.blobs[blob].get_or_insert((now, now)).1 = now;
            }
            if used > self.budget {
                used -= cached.evict(used - (self.budget - self.budget / 20));
            }
        }
        fetched
    }
}

/// Times of the first and of the last use.
type Uses = Option<(u64, u64)>;

struct Cached<'a> {
    trace: &'a Trace,
    images: Vec<Uses>,
    blobs: Vec<Uses>,
}

impl Cached<'_> {
    /// Makes a stock of what is here, plans, and takes that out.
    fn evict(&mut self, bytes: u64) -> u64 {
        let mut stock = Stock::default();
        let mut numbers = vec![None; self.blobs.len()];
        let mut names = Vec::new();
        for (blob, uses) in self.blobs.iter().enumerate() {
            let Some((first, last)) = uses else { continue };
            numbers[blob] = Some(u32::try_from(names.len()).unwrap());
            names.push(blob);
            stock.blobs.push(item(self.trace.sizes[blob], worth(*first, *last)));
        }
        let blobs = names.len();
        for (image, uses) in self.images.iter().enumerate() {
            let Some((first, last)) = uses else { continue };
            let blob = u32::try_from(names.len()).unwrap();
            names.push(image);
            stock.blobs.push(item(0, worth(*first, *last)));
            let from = u32::try_from(stock.parts.len()).unwrap();
            stock.parts.extend(self.trace.images[image].iter().filter_map(|blob| numbers[*blob]));
            let to = u32::try_from(stock.parts.len()).unwrap();
            stock.manifests.push(ContentNode { blob, from, to });
        }
        stock.limit = self.trace.budget;
        let plan = plan(&stock, Goal::of(bytes), &|_| false);
        for unit in plan.units {
            let Unit::Blobs(unit) = unit else { unreachable!("there are no partial files") };
            for number in unit.into_iter().map(index) {
                if number < blobs {
                    self.blobs[names[number]] = None;
                } else {
                    self.images[names[number]] = None;
                }
            }
        }
        plan.bytes
    }
}

/// Bytes fetched again, relative to plain LRU by blob, on the same pulls.
#[test]
fn less_is_fetched_again_than_with_plain_lru() {
    let mut table = String::from("seed  LRU GB  berth at 100, 1000 pulls a day  Belady by blob\n");
    let mut worst = 0.0_f64;
    for seed in 1..=SEEDS {
        let trace = Trace::new(seed);
        let first = trace.first_bytes();
        let lru = trace.lru() - first;
        let of_lru = |fetched: u64| (fetched - first) as f64 / lru as f64;
        let (some, many) = (of_lru(trace.berth(100.0)), of_lru(trace.berth(1000.0)));
        let belady = of_lru(trace.belady());
        worst = worst.max(some).max(many);
        table += &format!("{seed:>4}  {:>6}  {some:.3}  {many:.3}  {belady:.3}\n", lru / 1_000_000_000);
        assert!(belady < some.min(many), "it knows the future:\n{table}");
    }
    #[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
    {
        println!("{table}");
    }
    assert!(worst <= 0.9, "fetched again, relative to plain LRU:\n{table}");
}
