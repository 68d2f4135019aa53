//! `make chaos`: puts a mirror under the matrix of faults and prints the table.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use breakwater_tests::chaos::{self, MirrorSpec, matrix, report};
use breakwater_tests::{outcome, page};

/// Rows beside one another; most of their time is waiting.
const AT_ONCE: usize = 6;

#[tokio::main]
async fn main() -> ExitCode {
    outcome::code(run().await)
}

/// Whether every cell of every mirror passed.
async fn run() -> Result<bool> {
    let specs = specs()?;
    let wanted = std::env::var("ROWS").unwrap_or_default();
    let mut rows = matrix::rows();
    rows.retain(|row| wanted.is_empty() || wanted.split(',').any(|name| name.trim() == row.name));
    let mut tables = Vec::new();
    for spec in &specs {
        println!("{}, {} faults\n{}", spec.name, rows.len(), report::head());
        let table = chaos::run(spec, rows.clone(), AT_ONCE, |outcome| println!("{}", outcome.line())).await;
        println!("\n{}", table.summary());
        table.failures().iter().for_each(|failure| println!("  {failure}"));
        tables.push(table);
    }
    if let Ok(path) = std::env::var("PAGE") {
        let results = format!("Run on {}.\n\n{}", jiff::Zoned::now().date(), report::markdown(&tables));
        page::write_results(path.as_ref(), &results)?;
    }
    Ok(tables.iter().all(|table| table.failures().is_empty()))
}

fn specs() -> Result<Vec<MirrorSpec>> {
    if let Ok(command) = std::env::var("MIRROR_CMD") {
        let config = match std::env::var("MIRROR_CONFIG") {
            Ok(path) => Some(std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?),
            Err(_) => None,
        };
        return Ok(vec![MirrorSpec::custom(command, config)]);
    }
    let names = std::env::var("MIRROR").unwrap_or_else(|_| "breakwater".to_owned());
    names
        .split(',')
        .map(|name| match name.trim() {
            "breakwater" => Ok(MirrorSpec::ours()),
            "distribution" => MirrorSpec::distribution(),
            other => bail!(
                "MIRROR must be breakwater, distribution or both with a comma, not {other}; others go by MIRROR_CMD"
            ),
        })
        .collect()
}
