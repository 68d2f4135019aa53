//! `make demo` and `make playground`.

use std::process::ExitCode;

use breakwater_tests::demo;
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
    // Dropping what runs removes the cluster, so Ctrl-C leaves nothing behind.
    let outcome = tokio::select! {
        outcome = run => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped by Ctrl-C; the cluster is removed")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
