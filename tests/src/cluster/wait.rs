//! Waiting for a condition with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_millis(50);

/// Asks `probe` every 50 ms until it gives a value; an error of the probe ends the wait at once.
///
/// # Errors
/// Fails when the probe fails, or when `limit` has passed, naming `what` was waited for.
pub async fn until<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        // The probe itself may hang, as a request to a frozen server does.
        match tokio::time::timeout_at(deadline, probe()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) if Instant::now() < deadline => tokio::time::sleep(INTERVAL).await,
            Ok(Ok(None)) | Err(_) => bail!("waited {:.1} s in vain for {what}", limit.as_secs_f64()),
            Ok(Err(error)) => return Err(error.context(format!("waiting for {what}"))),
        }
    }
}
