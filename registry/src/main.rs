//! The cache's executable: reads the command line and runs. START HERE for how pulls are served: pull.rs.

use anyhow::Context;
use breakwater_registry::{args::Args, run, telemetry};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() {
    // Wrong usage ends here with exit code 2.
    let args = Args::parse();
    if let Err(error) = start(args) {
        // One sentence, the last line, also where a Pod's termination message is read from.
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    // A client is a descriptor or two; what the soft limit protects is programs that use select(2).
    raise_file_limit();
    let _log = telemetry::init(args.log_format).context("cannot start a thread")?;
    // The first who asks for TLS would otherwise have to guess which provider is meant.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().map_err(|_| anyhow::anyhow!("a crypto provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let outcome = runtime.block_on(run::run(args));
    // Blocking look-ups that hang must not keep the process.
    runtime.shutdown_background();
    Ok(outcome?)
}

fn raise_file_limit() {
    let Rlimit { current: _, maximum } = getrlimit(Resource::Nofile);
    // Where that is not allowed, there are fewer connections.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
