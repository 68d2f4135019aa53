//! The process of the operator: reads the command line, connects, runs until a signal. Start reading at `controller.rs`.

use anyhow::Context as _;
use breakwater_operator::args::{Args, Cli, Command};
use breakwater_operator::telemetry::LogLevel;
use breakwater_operator::{check, error_chain, run, telemetry};
use clap::Parser;
use kube::{Client, Config};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A connection on which the API server says nothing for so long is dead. It ends each watch after 290 s; before that a watch may be
/// silent, because bookmarks come only of kinds of which something ever changed.
const SILENCE: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    // Fails only if a provider is already there, which serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Cli { command, operator } = Cli::parse().complete().unwrap_or_else(|error| error.exit());
    let log_level = telemetry::init(operator.log_format);
    match start(command, operator, log_level) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start(command: Option<Command>, args: Args, log_level: LogLevel) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut config =
        Config::infer().await.context("cannot find a cluster: neither a service account nor a kubeconfig")?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // What fails is tried again by who asked, who knows how soon; the client itself would try eight times within a second.
    config.default_retry = command.is_some();
    let client = Client::try_from(config).context("cannot make a client for the cluster")?;
    if let Some(Command::Check(args)) = command {
        return Ok(if check::check(args, client).await { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let signalled = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        stopped = run::run(args, client, log_level, stop.clone()) => stopped?,
        () = signalled => {}
    }
    Ok(ExitCode::SUCCESS)
}
