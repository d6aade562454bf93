//! Medians, and Markdown tables of them.

/// The middle one of some figures, or the mean of the two in the middle.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len().is_multiple_of(2) {
        (figures[middle - 1] + figures[middle]) / 2.0
    } else {
        figures[middle]
    }
}

/// Prints a table below a line that says what was measured.
pub(crate) fn print(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n{title}\n");
    println!("| {} |", head.join(" | "));
    println!("|{}", "---|".repeat(head.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// A figure, and how many times that of berth it is.
pub(crate) fn with_ratio(figure: f64, berth: f64, digits: usize) -> String {
    format!("{figure:.digits$} ({:.2}×)", figure / berth)
}
