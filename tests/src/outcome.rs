//! How the programs of the harness end. Knows nothing of what they do.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Success if all is as it should be; an error is told on stderr.
pub fn code(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ends by Ctrl-C too: dropping what runs removes the cluster, so that nothing is left behind.
///
/// # Errors
/// Fails when the work does, or when Ctrl-C ends it.
pub async fn until_ctrl_c<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => bail!("stopped by Ctrl-C; the cluster is removed"),
    }
}
