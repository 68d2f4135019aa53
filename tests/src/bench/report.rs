//! The outcome as a table, on the terminal and in docs/benchmarks.md.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use crate::binaries::workspace;

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

/// Writes docs/benchmarks.md.
pub(super) fn write(tables: &[Table]) -> Result<()> {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `make bench`, which measures every server in one run on one machine, with one load\n\
         generator, over loopback. Ratios are to nginx serving the same bytes as static files unless another mark is named.\n\
         Bytes, memory and processor time are steady from run to run; rates and latencies on a shared machine are not.\n\n",
    );
    let _ = writeln!(text, "{}\n", machine()?);
    for table in tables {
        let _ = writeln!(text, "{}", table.text());
    }
    let path = workspace().join("docs/benchmarks.md");
    fs::write(&path, text.trim_end().to_owned() + "\n").with_context(|| format!("write {}", path.display()))
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
