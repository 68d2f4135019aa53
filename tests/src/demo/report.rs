//! What was shown, printed step by step and as a table at the end.

use std::time::Duration;

/// The steps that held, with their figures.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<(String, String)>,
}

impl Report {
    /// Opens a chapter.
    pub(super) fn chapter(title: &str) {
        println!("\n\x1b[1m== {title}\x1b[0m");
    }

    /// Notes a step that held and its figure.
    pub(super) fn held(&mut self, what: &str, figure: impl Into<String>) {
        let figure = figure.into();
        println!("   ok  {what}: {figure}");
        self.rows.push((what.to_owned(), figure));
    }

    /// Prints text as it is, indented, such as what a command said.
    pub(super) fn quote(title: &str, text: &str) {
        println!("   $ {title}");
        for line in text.lines() {
            println!("     {line}");
        }
    }

    /// Prints the table of what was shown.
    pub(super) fn print(&self, elapsed: Duration) {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        println!("\n\x1b[1m== What was shown, in {:.0} s\x1b[0m", elapsed.as_secs_f64());
        for (what, figure) in &self.rows {
            println!("   {what:<width$}  {figure}");
        }
        println!();
    }
}

/// A duration as a person reads it.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
