//! The matrix as text: for the terminal and for a page of Markdown. Pure.

use std::time::Duration;

use super::cells::{COLUMNS, Cell};
use super::judge::Verdict;
use super::matrix::Row;

/// What came of a row.
#[derive(Debug)]
pub struct Outcome {
    /// The row.
    pub row: Row,
    /// Its cells, or why it could not be run.
    pub cells: Result<Vec<Option<Cell>>, String>,
}

/// What came of all rows.
#[derive(Debug)]
pub struct Table {
    /// The mirror's name.
    pub mirror: String,
    /// The rows.
    pub outcomes: Vec<Outcome>,
    /// How long all of it took.
    pub took: Duration,
}

impl Outcome {
    /// The columns that failed.
    pub fn failures(&self) -> Vec<String> {
        match &self.cells {
            Err(error) => vec![format!("{}: not run: {error}", self.row.name)],
            Ok(cells) => COLUMNS
                .iter()
                .zip(cells)
                .filter_map(|(column, cell)| Some((column, cell.as_ref().filter(|cell| !cell.verdict.passes())?)))
                .map(|(column, cell)| format!("{}, {column}: {}", self.row.name, text(cell)))
                .collect(),
        }
    }

    /// One line for the terminal.
    pub fn line(&self) -> String {
        let cells = match &self.cells {
            Ok(cells) => cells.iter().map(|cell| format!("{:<15}", brief(cell.as_ref()))).collect(),
            Err(error) => format!("not run: {error}"),
        };
        format!("{:<16}{cells}", self.row.name)
    }
}

/// The head of the terminal's table.
pub fn head() -> String {
    let columns: String = COLUMNS.iter().map(|column| format!("{column:<15}")).collect();
    format!("{:<16}{columns}", "")
}

impl Table {
    /// Every cell that failed.
    pub fn failures(&self) -> Vec<String> {
        self.outcomes.iter().flat_map(Outcome::failures).collect()
    }

    /// How many cells there are of each verdict.
    pub fn summary(&self) -> String {
        let cells: Vec<_> =
            self.outcomes.iter().filter_map(|outcome| outcome.cells.as_ref().ok()).flatten().flatten().collect();
        let count = |verdict| cells.iter().filter(|cell| cell.verdict == verdict).count();
        let verdicts = [
            Verdict::Ok,
            Verdict::Refused,
            Verdict::Cut,
            Verdict::Slow,
            Verdict::Storm,
            Verdict::Error,
            Verdict::Hang,
            Verdict::Wrong,
        ];
        let counts: Vec<_> = verdicts
            .into_iter()
            .filter(|verdict| count(*verdict) > 0)
            .map(|verdict| format!("{} {}", count(verdict), verdict.word()))
            .collect();
        let passed = cells.iter().filter(|cell| cell.verdict.passes()).count();
        let (all, seconds) = (cells.len(), self.took.as_secs());
        format!("{}: {passed} of {all} cells passed ({}), in {seconds} s", self.mirror, counts.join(", "))
    }

    fn cells_of(&self, row: &str) -> String {
        let outcome = self.outcomes.iter().find(|outcome| outcome.row.name == row);
        match outcome.map(|outcome| &outcome.cells) {
            Some(Ok(cells)) => cells.iter().map(|cell| format!(" {} |", marked(cell.as_ref()))).collect(),
            _ => " did not run |".repeat(COLUMNS.len()),
        }
    }
}

/// Markdown: how each mirror did, a table with a line for each fault and mirror, and what the faults are.
pub fn markdown(tables: &[Table]) -> String {
    let mut text: String = tables.iter().map(|table| format!("- {}\n", table.summary())).collect();
    text.push_str(&format!(
        "\n| fault | mirror | {} |\n|---|---|{}\n",
        COLUMNS.join(" | "),
        "---|".repeat(COLUMNS.len())
    ));
    let rows: Vec<_> =
        tables.first().into_iter().flat_map(|table| &table.outcomes).map(|outcome| &outcome.row).collect();
    for row in &rows {
        for table in tables {
            text.push_str(&format!("| {} | {} |{}\n", row.name, table.mirror, table.cells_of(row.name)));
        }
    }
    text.push_str("\n| fault | what happens |\n|---|---|\n");
    for row in rows {
        text.push_str(&format!("| {} | {} |\n", row.name, row.what));
    }
    text
}

fn duration(took: Duration) -> String {
    match took.as_millis() {
        0 => String::new(),
        millis @ 1..1000 => format!(" {millis} ms"),
        _ => format!(" {:.1} s", took.as_secs_f64()),
    }
}

fn brief(cell: Option<&Cell>) -> String {
    cell.map_or_else(|| "-".to_owned(), |cell| format!("{}{}", cell.verdict.word(), duration(cell.took)))
}

fn text(cell: &Cell) -> String {
    let traffic = match (cell.requests, cell.bytes) {
        (0, _) => String::new(),
        (requests, 0) => format!(", {requests} req"),
        (requests, bytes) => format!(", {requests} req, {} KB", bytes / 1000),
    };
    format!("{}{}{traffic}", cell.verdict.word(), duration(cell.took))
}

fn marked(cell: Option<&Cell>) -> String {
    match cell {
        None => "-".to_owned(),
        Some(cell) if cell.verdict.passes() => text(cell),
        Some(cell) => format!("**{}**", text(cell)),
    }
}
