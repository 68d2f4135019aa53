//! The agent's process: settings, log, signals. The story is in [`breakwater_node_agent::agent`].

use anyhow::{Context, Result};
use breakwater_node_agent::args::{Args, Cli, Command, LogFormat};
use breakwater_node_agent::offline::{OfflineFault, Told};
use breakwater_node_agent::{agent, offline};
use clap::Parser;
use kube::{Client, Config};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// What is logged where `RUST_LOG` asks for nothing.
const LOGGED: &str = "info,kube_runtime=error";
/// The client's lines are left out whatever is asked for: it tells each failed attempt, and prints whole answers and hence Secrets. What
/// fails is told by who asked.
const NEVER: &str = "kube_client=off";

/// A connection on which the API server says nothing for so long is dead: it ends each watch sooner, and whatever else is asked has a deadline.
const SILENCE: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    // Fails only where one is installed already, which nobody else does.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let Cli { command, agent } = Cli::parse().check().unwrap_or_else(|error| error.exit());
    log_to_stderr(agent.log_format);
    let done = match command {
        None => run(agent).map(|()| ExitCode::SUCCESS),
        Some(Command::Plan(args)) => tell(offline::plan(args)),
        Some(Command::Restore(args)) => tell(offline::restore(&args)),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Exit code 1 also where only a part could be done.
fn tell(told: Result<Told, OfflineFault>) -> Result<ExitCode> {
    let Told { text, troubles } = told?;
    // Not by `print!`: whoever reads may have gone, as `head` does.
    io::stdout().write_all(text.as_bytes()).context("print")?;
    for trouble in &troubles {
        eprintln!("error: {trouble}");
    }
    Ok(if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(args: Args) -> Result<()> {
    // Two workers: one that is busy with a download never holds up the relay's health.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    runtime.block_on(async {
        let mut config = Config::infer().await.context("find the API server")?;
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        // Who asked tries again, and knows how soon; the client itself would be minutes late after a long outage.
        config.default_retry = false;
        let client = Client::try_from(config).context("make a client for the API server")?;
        let stop = stop_on_signal()?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), node = args.node_name, "starting");
        agent::run(client, args, stop).await.context("run")
    })
}

/// A token that the first SIGTERM or SIGINT cancels.
fn stop_on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    // Lives as long as the process, and does nothing else.
    drop(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    }));
    Ok(stop)
}

fn log_to_stderr(format: LogFormat) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(std::env::var("RUST_LOG").ok().as_deref()))
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// What the environment asks for; the default where it asks for nothing, or for what is no filter.
fn filter(environment: Option<&str>) -> EnvFilter {
    let asked = environment.filter(|text| !text.is_empty());
    let understood = asked.and_then(|text| EnvFilter::try_new(format!("{text},{NEVER}")).ok());
    understood.unwrap_or_else(|| EnvFilter::new(format!("{LOGGED},{NEVER}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wish_brings_out_what_the_client_prints_and_nonsense_silences_nothing() {
        for (asked, level) in [
            (None, "info"),
            (Some(""), "info"),
            (Some("a=b=c"), "info"),
            (Some("debug"), "debug"),
            (Some("trace,kube_client=trace"), "trace"),
        ] {
            let filter = filter(asked).to_string();
            assert!(filter.contains(NEVER) && !filter.contains("kube_client=trace"), "{asked:?}: {filter}");
            assert!(filter.split(',').any(|one| one == level), "{asked:?}: {filter}");
        }
    }
}
