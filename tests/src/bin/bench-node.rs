//! `make bench-node`.

use std::process::ExitCode;

use breakwater_tests::bench::node;
use clap::Parser;

/// Measures what the node agent costs a node, and writes docs/node-footprint.md
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    match node::run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
