//! The outcome as a table, on the terminal and in docs/benchmarks.md.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use crate::binaries::workspace;
use crate::page;

const PAGE: &str = "docs/benchmarks.md";

/// What one kind of work showed.
#[derive(Debug)]
pub(super) struct Table {
    /// What was done.
    pub(super) title: String,
    /// What is aimed at.
    pub(super) goal: &'static str,
    /// What was measured.
    pub(super) columns: Vec<&'static str>,
    /// Server and values.
    pub(super) lines: Vec<(String, Vec<String>)>,
}

impl Table {
    pub(super) fn text(&self) -> String {
        let mut text = format!("### {}\n\nGoal: {}\n\n| |", self.title, self.goal);
        for column in &self.columns {
            let _ = write!(text, " {column} |");
        }
        let _ = write!(text, "\n|---|{}\n", "---:|".repeat(self.columns.len()));
        for (server, values) in &self.lines {
            let _ = writeln!(text, "| {server} | {} |", values.join(" | "));
        }
        text
    }
}

/// Writes what was measured below the prose of docs/benchmarks.md.
pub(super) fn write(tables: &[Table]) -> Result<()> {
    let tables: Vec<_> = tables.iter().map(Table::text).collect();
    page::write_results(&workspace().join(PAGE), &format!("{}\n\n{}", machine()?, tables.join("\n")))
}

/// Processor, cores, memory, kernel and day.
pub(super) fn machine() -> Result<String> {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        Ok::<_, anyhow::Error>(line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned()))
    };
    let memory = field("/proc/meminfo", "MemTotal")?;
    let gibibytes = memory.trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0 / 1024.0;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let processor = field("/proc/cpuinfo", "model name")?;
    let day = jiff::Timestamp::now().strftime("%Y-%m-%d");
    Ok(format!("Machine: {processor}, {cores} cores, {gibibytes:.0} GiB, Linux {}; {day}.", kernel.trim()))
}

pub(super) fn milliseconds(time: std::time::Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1048576.0)
}

pub(super) fn ratio(value: f64, mark: f64) -> String {
    format!("{:.2}x", value / mark)
}
