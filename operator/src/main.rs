//! The process of the operator: reads the command line, connects, runs until a signal. Start reading at `controller.rs`.

use anyhow::Context as _;
use breakwater_operator::args::Args;
use breakwater_operator::telemetry::LogLevel;
use breakwater_operator::{error_chain, run, telemetry};
use clap::Parser;
use kube::Client;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    // Fails only if a provider is already there, which serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args = Args::parse();
    let log_level = telemetry::init(args.log_format);
    match start(args, log_level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start(args: Args, log_level: LogLevel) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let client =
        Client::try_default().await.context("cannot find a cluster: neither a service account nor a kubeconfig")?;
    let signalled = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        stopped = run::run(args, client, log_level, stop.clone()) => Ok(stopped?),
        () = signalled => Ok(()),
    }
}
