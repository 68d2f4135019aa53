//! Pages of docs whose end a measurement writes. Knows nothing of what was measured.

use std::path::Path;

use anyhow::{Context, Result};

/// The heading that results stand below.
const RESULTS: &str = "## Results";

/// Replaces what stands below the page's last heading.
///
/// # Errors
/// Fails when the page has no such heading, cannot be read or cannot be written.
pub fn write_results(page: &Path, results: &str) -> Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let (above, _) = text.split_once(RESULTS).with_context(|| format!("{} has no line {RESULTS:?}", page.display()))?;
    std::fs::write(page, format!("{above}{RESULTS}\n\n{results}")).with_context(|| format!("write {}", page.display()))
}

/// When and on what this runs, as a sentence.
#[must_use]
pub fn run_on() -> String {
    let date = jiff::Zoned::now().date();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Run on {date}, {processors} processors, Linux {}.", kernel.trim())
}
