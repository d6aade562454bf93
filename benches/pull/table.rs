//! Medians, means, percentiles, and Markdown tables of them.

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

/// The mean for ratios: twice as much here and half as much there is as much.
pub(crate) fn geometric_mean(figures: impl IntoIterator<Item = f64>) -> f64 {
    let logarithms: Vec<f64> = figures.into_iter().map(f64::ln).collect();
    (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp()
}

/// The figure that this share of all does not exceed.
pub(crate) fn percentile(figures: &mut [f64], share: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    let rank = (figures.len() as f64 * share).ceil() as usize;
    figures[rank.max(1) - 1]
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
