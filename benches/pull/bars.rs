//! What must be reached, and what was: each part holds its figures against the bars that are for them, and the
//! last table shows all.

use std::cell::RefCell;

use crate::table;

/// What was held against a bar so far.
#[derive(Default)]
pub(crate) struct Bars(RefCell<Vec<Bar>>);

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
        self.0.borrow_mut().push(Bar { scenario, what, measured, limit, is_floor });
    }

    /// Prints the table.
    pub(crate) fn show(&self, title: &str) {
        let rows: Vec<_> = self.0.borrow().iter().map(Bar::row).collect();
        table::print(title, &["scenario", "what", "bar", "measured", "holds"], &rows);
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
