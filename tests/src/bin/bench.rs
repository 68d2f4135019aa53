//! `make bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use breakwater_tests::{bench, outcome};
use clap::Parser;

/// Measures this cache beside nginx and distribution, and writes docs/benchmarks.md
#[derive(Parser)]
struct Args {
    /// Rows to measure; all, if none is named. Only all of them are written down
    #[arg(value_delimiter = ',')]
    rows: Vec<String>,
    /// The cache's program, in place of a release build of this checkout
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Be the bare relay that misses are compared with
    #[arg(long, hide = true, num_args = 3, value_names = ["UPSTREAM", "LISTEN", "DIR"])]
    relay: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let Args { rows, program, relay } = Args::parse();
    let outcome = match relay.as_deref() {
        Some([upstream, listen, folder]) => be_relay(upstream, listen, folder),
        _ => bench::run(&rows, program),
    };
    outcome::code(outcome.map(|()| true))
}

fn be_relay(upstream: &str, listen: &str, folder: &str) -> anyhow::Result<()> {
    let (upstream, listen): (SocketAddr, SocketAddr) = (upstream.parse()?, listen.parse()?);
    bench::relay::run(upstream, listen, folder.as_ref())
}
