//! The demo: a real cluster, real registries, and what Breakwater does when they fail. `make demo` prints it, a test holds it.
//!
//! Start at [`story`]: it is the demo, told in order.

mod report;
mod stage;
mod story;

use std::time::Instant;

use anyhow::Result;

use report::Report;
use stage::Stage;

/// Sets the stage, tells the story, prints the table of what held, removes everything.
///
/// # Errors
/// Fails at the first claim that does not hold.
pub async fn show() -> Result<()> {
    let begun = Instant::now();
    let stage = Stage::set().await?;
    let mut report = Report::default();
    let told = story::tell(&stage, &mut report).await;
    report.print(begun.elapsed());
    stage.strike().await?;
    told
}

/// Sets the stage with Breakwater and both mirrors, prints how to use it, and keeps it until this is dropped.
///
/// # Errors
/// Fails when something does not come up.
pub async fn playground() -> Result<()> {
    Stage::set().await?.linger().await
}
