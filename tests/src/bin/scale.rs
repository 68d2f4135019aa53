//! `make scale`: measures the operator beside a large simulated cluster and writes docs/scale.md.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use breakwater_tests::binaries::workspace;
use breakwater_tests::scale::{self, Plan, Size, report};
use breakwater_tests::{outcome, page, release};
use clap::Parser;

const PAGE: &str = "docs/scale.md";

/// Measures the operator beside a large simulated cluster; at full size it writes docs/scale.md
#[derive(Parser)]
struct Args {
    /// RegistryMirrors
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=100))]
    mirrors: u16,
    /// Nodes, each with an agent's Pod and a MirrorNode
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: u32,
    /// Pods besides those of agents and caches
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pods: u32,
    /// MirrorNodes that change each second while nodes are restless
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    churn: u32,
    /// How many seconds a steady state is watched
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// A build of the operator to be measured in place of a fresh one; nothing is written down then
    #[arg(long)]
    program: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = outcome::until_ctrl_c(run(Args::parse())).await;
    outcome::code(outcome.map(|()| true))
}

async fn run(args: Args) -> Result<()> {
    let Args { mirrors, nodes, pods, churn, seconds, program } = args;
    let is_whole = (mirrors, nodes, pods) == (50, 5_000, 50_000) && program.is_none();
    let size = Size { mirrors: mirrors.into(), nodes: nodes as usize, pods: pods as usize };
    let plan = Plan { size, watched: Duration::from_secs(seconds), churn };
    let program = match program {
        Some(program) => program,
        None => tokio::task::spawn_blocking(release::operator).await.context("build the operator")??,
    };
    let figures = scale::run(plan, &program, |news| println!("{news}")).await?;
    let results = report::markdown(&figures);
    println!("\n{results}");
    if is_whole {
        page::write_results(&workspace().join(PAGE), &format!("{} {results}", page::run_on()))?;
    }
    Ok(())
}
