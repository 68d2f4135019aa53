//! The cells as a table: a row for each fault, a column for each version. Pure.

use super::{Cell, Fault, Pull, Replicas};
use crate::toolchain::Runtime;

/// A line for one cell, to be read while it runs.
#[must_use]
pub fn line(runtime: &Runtime, cell: &Cell) -> String {
    format!("{:4} {:34} {:10} {}", runtime.series, cell.fault.name(), replicas(cell.replicas), outcome(cell))
}

/// The table in Markdown.
#[must_use]
pub fn markdown(columns: &[(Runtime, Vec<Cell>)]) -> String {
    let head: String = columns.iter().map(|(runtime, _)| format!(" containerd {} |", runtime.version)).collect();
    let rule = "---|".repeat(columns.len() + 2);
    let mut table = format!("| fault | replicas |{head}\n|{rule}\n");
    let rows = columns.first().map(|(_, cells)| cells.as_slice()).unwrap_or_default();
    for (number, row) in rows.iter().enumerate() {
        let cells: String = columns.iter().map(|(_, cells)| format!(" {} |", outcome(&cells[number]))).collect();
        table.push_str(&format!("| {} | {} |{cells}\n", row.fault.name(), replicas(row.replicas)));
    }
    table
}

fn replicas(replicas: Replicas) -> &'static str {
    match replicas {
        Replicas::One => "1",
        Replicas::FirstOfTwo => "2, one ill",
        Replicas::BothOfTwo => "2",
    }
}

/// The first pull, where need be its repetition, and the pull after the agent has noticed.
fn outcome(cell: &Cell) -> String {
    let pull = |pull: &Pull| match &pull.failed {
        Some(_) => "failed".to_owned(),
        None => format!("+{:.1} s", pull.extra.as_secs_f64()),
    };
    let Cell { fault, first, again, later, .. } = cell;
    let again = again.as_ref().map(|again| format!(", again {}", pull(again))).unwrap_or_default();
    match fault {
        Fault::None => pull(first),
        _ => format!("{}{again}; {}", pull(first), pull(later)),
    }
}
