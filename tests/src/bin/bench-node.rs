//! `make bench-node`.

use std::path::PathBuf;
use std::process::ExitCode;

use breakwater_tests::bench::node;
use breakwater_tests::outcome;
use clap::Parser;

/// Measures what the node agent costs a node, and writes docs/node-footprint.md
#[derive(Parser)]
struct Args {
    /// Folder of both programs, in place of a release build of this checkout; then nothing is written down
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Args { programs } = Args::parse();
    outcome::code(node::run(programs.as_deref()))
}
