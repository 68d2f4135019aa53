//! `make demo` and `make playground`.

use std::process::ExitCode;

use breakwater_tests::{demo, outcome};
use clap::Parser;

/// Shows on a real cluster that Pods start while their registries are down.
#[derive(Parser)]
struct Args {
    /// Set everything up, print how to use it, and keep it until Ctrl-C
    #[arg(long)]
    playground: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { playground } = Args::parse();
    let run = async { if playground { demo::playground().await } else { demo::show().await } };
    outcome::code(outcome::until_ctrl_c(run).await.map(|()| true))
}
