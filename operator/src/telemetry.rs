//! Sets up the log. Knows nothing of what is logged.

use crate::args::LogFormat;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Without the runtime's span around each pass, whose facts our own lines carry under their usual keys, and without the client's
/// warnings, which print whole answers and hence Secrets.
const DEFAULT: &str = "info,kube_runtime=warn,kube_client=error";

/// Starts logging to standard error; `RUST_LOG` is respected, the default is info.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
