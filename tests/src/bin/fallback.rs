//! `make fallback`: what each fault costs a pull, on every version of containerd, and writes docs/fallback.md.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use breakwater_tests::binaries::workspace;
use breakwater_tests::fallback::{self, Cell, report};
use breakwater_tests::toolchain::{Runtime, SERIES, Toolchain};
use breakwater_tests::{outcome, page};
use clap::Parser;

const PAGE: &str = "docs/fallback.md";
/// What a busy machine may add to a pull.
const NOISE: Duration = Duration::from_millis(300);

/// Pulls through Breakwater under every fault, beside pulls without it, and writes docs/fallback.md
#[derive(Parser)]
struct Args {
    /// Series of containerd; all, if none is named. Only all of them are written down
    #[arg(long, value_delimiter = ',')]
    runtimes: Vec<String>,
    /// Faults whose names contain this; only all of them are written down
    #[arg(value_delimiter = ',')]
    faults: Vec<String>,
    /// Versions side by side: most of their time is waiting
    #[arg(long, default_value_t = 2)]
    at_once: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    outcome::code(run(Args::parse()).await)
}

/// Whether every cell is as promised.
async fn run(args: Args) -> Result<bool> {
    let Args { runtimes, faults, at_once } = args;
    let is_whole = runtimes.is_empty() && faults.is_empty();
    let series = if runtimes.is_empty() { SERIES.map(str::to_owned).to_vec() } else { runtimes };
    Toolchain::ready().await?;
    let runtimes =
        tokio::task::spawn_blocking(move || series.iter().map(|one| Runtime::of(one)).collect::<Result<_>>());
    let runtimes: Vec<Runtime> = runtimes.await.context("the builder ended early")??;
    let mut matrix = fallback::matrix();
    matrix.retain(|(fault, _)| faults.is_empty() || faults.iter().any(|part| fault.name().contains(part)));
    let all = fallback::run_all(&runtimes, &matrix, at_once, |runtime, cell| {
        let complaint = cell.complaint(NOISE).map(|complaint| format!("   <- {complaint}")).unwrap_or_default();
        println!("{}{complaint}", report::line(runtime, cell));
    });
    let columns: Vec<(Runtime, Vec<Cell>)> = runtimes.iter().cloned().zip(all.await?).collect();
    if is_whole {
        let results = format!("{}\n\n{}", page::run_on(), report::markdown(&columns));
        page::write_results(&workspace().join(PAGE), &results)?;
    }
    Ok(columns.iter().flat_map(|(_, cells)| cells).all(|cell| cell.complaint(NOISE).is_none()))
}
