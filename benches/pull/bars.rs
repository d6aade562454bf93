//! What must be reached, and what was: each part holds its figures against the bars that are for them, or against those
//! of an earlier berth, and the last table shows all.

use std::cell::RefCell;

use crate::server::Kind;
use crate::table;

/// How much worse than before is no worse: two runs differ by that.
const NO_WORSE: f64 = 1.03;

/// What was held against a bar so far.
#[derive(Default)]
pub(crate) struct Bars {
    bars: RefCell<Vec<Bar>>,
    comparisons: RefCell<Vec<Comparison>>,
}

/// What is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// A figure of a berth and of an earlier one.
struct Comparison {
    scenario: &'static str,
    what: String,
    better: Better,
    after: f64,
    before: f64,
    again: f64,
}

impl Comparison {
    /// Whether it is no worse by more than what two runs of the earlier one are apart.
    fn holds(&self) -> bool {
        if (self.after - self.before).abs() < f64::EPSILON {
            return true;
        }
        let worse = match self.better {
            Better::More => self.before / self.after,
            Better::Less => self.after / self.before,
        };
        let apart = (self.again / self.before).max(self.before / self.again);
        worse <= NO_WORSE.max(apart)
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.scenario.to_owned(),
            self.what.clone(),
            if self.better == Better::More { "more" } else { "less" }.to_owned(),
            figure(self.before),
            figure(self.after),
            format!("{:.3}", self.after / self.before),
            format!("{:.3}", self.again / self.before),
            if self.holds() { "yes" } else { "**no**" }.to_owned(),
        ]
    }
}

struct Bar {
    scenario: &'static str,
    what: String,
    measured: f64,
    limit: f64,
    /// Whether more is better.
    is_floor: bool,
}

impl Bars {
    pub(crate) fn at_least(&self, scenario: &'static str, what: &str, measured: f64, limit: f64) {
        self.add(scenario, what, measured, limit, true);
    }

    pub(crate) fn at_most(&self, scenario: &'static str, what: &str, measured: f64, limit: f64) {
        self.add(scenario, what, measured, limit, false);
    }

    fn add(&self, scenario: &'static str, what: &str, measured: f64, limit: f64, is_floor: bool) {
        let what = what.to_owned();
        self.bars.borrow_mut().push(Bar { scenario, what, measured, limit, is_floor });
    }

    /// Compares a berth with an earlier one.
    pub(crate) fn compare(
        &self,
        scenario: &'static str,
        what: &str,
        better: Better,
        figure: impl Fn(Kind) -> f64,
    ) {
        let (what, [after, before, again]) =
            (what.to_owned(), [Kind::Berth, Kind::Before, Kind::BeforeAgain].map(figure));
        self.comparisons.borrow_mut().push(Comparison { scenario, what, better, after, before, again });
    }

    /// Prints the tables that there are.
    pub(crate) fn show(&self, remark: &str) {
        let rows: Vec<_> = self.bars.borrow().iter().map(Bar::row).collect();
        if !rows.is_empty() {
            let title = format!("**Bars**{remark}");
            table::print(&title, &["scenario", "what", "bar", "measured", "holds"], &rows);
        }
        let rows: Vec<_> = self.comparisons.borrow().iter().map(Comparison::row).collect();
        if !rows.is_empty() {
            let title =
                format!("**Before and after**{remark}: no worse by 3 %, or by what two runs are apart");
            let head = [
                "scenario",
                "what",
                "better",
                "before",
                "after",
                "after/before",
                "before/before",
                "no worse",
            ];
            table::print(&title, &head, &rows);
        }
    }
}

impl Bar {
    fn row(&self) -> Vec<String> {
        let sign = if self.is_floor { "≥" } else { "≤" };
        vec![
            self.scenario.to_owned(),
            self.what.clone(),
            format!("{sign} {}", figure(self.limit)),
            figure(self.measured),
            if self.holds() { "yes" } else { "**no**" }.to_owned(),
        ]
    }

    /// Judges the figure as it is shown: a ratio of 1.001 meets 1.00.
    fn holds(&self) -> bool {
        let rounded = |figure: f64| (figure * 100.0).round();
        if self.is_floor {
            rounded(self.measured) >= rounded(self.limit)
        } else {
            rounded(self.measured) <= rounded(self.limit)
        }
    }
}

fn figure(figure: f64) -> String {
    if figure >= 20.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
}
