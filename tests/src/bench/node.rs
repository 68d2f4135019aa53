//! `make bench-node`: what the agent costs a node: processor time and memory of the relay, alone and under load, and how soon
//! files are written. The agent is the release binary; the cache behind its relay is one too. START HERE.

mod mirrors;
mod relay;
mod scene;

use std::path::Path;

use anyhow::{Context, Result};

use super::report;
use crate::binaries::workspace;
use crate::page;
use crate::release::{self, NodePath};
use crate::toolchain::Toolchain;

const PAGE: &str = "docs/node-footprint.md";

/// One measurement.
struct Figure {
    what: &'static str,
    value: f64,
    unit: &'static str,
    /// The most that it may be, where there is a goal.
    most: Option<f64>,
}

impl Figure {
    fn new(what: &'static str, value: f64, unit: &'static str, most: impl Into<Option<f64>>) -> Self {
        Self { what, value, unit, most: most.into() }
    }

    fn is_missed(&self) -> bool {
        self.most.is_some_and(|most| self.value > most)
    }

    fn line(&self) -> String {
        let Self { what, value, unit, most } = self;
        let goal = most.map(|most| format!("at most {most} {unit}")).unwrap_or_default();
        let missed = if self.is_missed() { " (missed)" } else { "" };
        format!("| {what} | {goal} | {value:.2} {unit}{missed} |\n")
    }
}

/// Measures a build of this checkout and writes docs/node-footprint.md, or the programs in a folder and writes nothing; says whether
/// every goal was reached.
///
/// # Errors
/// Fails when a program cannot be built, started or measured.
pub fn run(programs: Option<&Path>) -> Result<bool> {
    Toolchain::install_nginx()?;
    let is_whole = programs.is_none();
    let programs = programs.map_or_else(release::node_path, |folder| Ok(NodePath::within(folder)))?;
    let mut figures = relay::figures(&programs)?;
    let runtime = tokio::runtime::Runtime::new().context("start the asynchronous runtime")?;
    figures.extend(runtime.block_on(mirrors::figures(&programs))?);
    let mut table = String::from("| | goal | measured |\n|---|---|---|\n");
    figures.iter().for_each(|figure| table.push_str(&figure.line()));
    println!("{table}");
    if is_whole {
        page::write_results(&workspace().join(PAGE), &format!("{}\n\n{table}", report::machine()?))?;
    }
    Ok(!figures.iter().any(Figure::is_missed))
}
