//! The chaos suite: a matrix of faults and of what a mirror is asked meanwhile, for this cache or any other.
//!
//! Each row has an upstream and a mirror process of its own ([`matrix`] lists them, `scene` sets them up), so rows run side
//! by side. Each cell is judged by what a client saw byte by byte ([`judge`]).

pub mod cells;
pub mod judge;
pub mod matrix;
pub mod mirror;
mod names;
pub mod report;
mod scene;
mod volume;

use std::time::Instant;

use futures::{StreamExt, stream};

use cells::Cell;
use judge::Verdict;
pub use matrix::Row;
pub use mirror::MirrorSpec;

use report::{Outcome, Table};

/// Runs rows, so many at a time; `done` hears of each.
pub async fn run(spec: &MirrorSpec, rows: Vec<Row>, at_once: usize, done: impl Fn(&Outcome)) -> Table {
    let began = Instant::now();
    let mut outcomes: Vec<(usize, Outcome)> = stream::iter(rows.into_iter().enumerate())
        .map(async |(place, row)| {
            let outcome = play(row, spec).await;
            done(&outcome);
            (place, outcome)
        })
        .buffer_unordered(at_once)
        .collect()
        .await;
    outcomes.sort_by_key(|(place, _)| *place);
    let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    Table { mirror: spec.name.clone(), outcomes, took: began.elapsed() }
}

/// Again, and once more, if nothing but the time was wrong: the machine may have been busy.
async fn play(row: Row, spec: &MirrorSpec) -> Outcome {
    let once = async || cells::play(&row, spec).await.map_err(|error| format!("{error:#}"));
    let mut cells = once().await;
    let is_only_slow = |cells: &Vec<Option<Cell>>| {
        let worst = cells.iter().flatten().map(|cell| cell.verdict).max();
        worst == Some(Verdict::Slow)
    };
    for _ in 0..2 {
        if !cells.as_ref().is_ok_and(is_only_slow) {
            break;
        }
        cells = once().await;
    }
    Outcome { row, cells }
}
