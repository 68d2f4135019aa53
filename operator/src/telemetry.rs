//! Sets up the log and changes its level. Knows nothing of what is logged.

use crate::args::LogFormat;
use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// The client's lines are left out whatever is asked for: its warnings print whole answers and hence Secrets. Its errors are ours as well,
/// which say what failed.
const NEVER: &str = "kube_client=off";
const DEFAULT: &str = "info";
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The level of our own lines, which can be changed while the process runs.
#[derive(Clone)]
pub struct LogLevel {
    current: Arc<Mutex<String>>,
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why a level is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LevelRefused {
    /// It is none.
    #[error("must be one of error, warn, info, debug and trace")]
    Unknown,
    /// The log cannot be changed any more.
    #[error("the log cannot be changed")]
    Reload(#[source] reload::Error),
}

/// Starts logging to standard error; `RUST_LOG` is respected, the default is info.
pub fn init(format: LogFormat) -> LogLevel {
    let (level, filter) = wanted(std::env::var("RUST_LOG").ok().as_deref());
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    LogLevel { current: Arc::new(Mutex::new(level)), filter: handle }
}

/// What the environment asks for, and what that means; the default where it asks for nothing, or for what is no filter.
fn wanted(environment: Option<&str>) -> (String, EnvFilter) {
    let asked = environment.filter(|text| !text.is_empty());
    let understood =
        asked.and_then(|text| Some((text.to_owned(), EnvFilter::try_new(format!("{text},{NEVER}")).ok()?)));
    understood.unwrap_or_else(|| (DEFAULT.to_owned(), filter(DEFAULT)))
}

/// Everything at `level`, but libraries that would say too much at it.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("info,breakwater_operator={level},kube_runtime=warn,{NEVER}"))
}

impl LogLevel {
    /// The level, or what `RUST_LOG` said.
    #[must_use]
    pub fn get(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it until the process ends.
    ///
    /// # Errors
    /// The text is no level.
    pub fn set(&self, level: &str) -> Result<(), LevelRefused> {
        if !LEVELS.contains(&level) {
            return Err(LevelRefused::Unknown);
        }
        self.filter.reload(filter(level)).map_err(LevelRefused::Reload)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = level.to_owned();
        tracing::info!(%level, "log level changed");
        Ok(())
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevel").field(&self.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wish_brings_out_what_the_client_prints_and_nonsense_silences_nothing() {
        for (asked, level) in [
            (None, DEFAULT),
            (Some(""), DEFAULT),
            (Some("a=b=c"), DEFAULT),
            (Some("debug"), "debug"),
            (Some("trace,kube_client=trace"), "trace,kube_client=trace"),
        ] {
            let (told, filter) = wanted(asked);
            let filter = filter.to_string();
            assert_eq!(told, level, "{asked:?}");
            assert!(filter.contains(NEVER) && !filter.contains("kube_client=trace"), "{asked:?}: {filter}");
            assert!(
                ["info", "debug", "trace"].iter().any(|level| filter.split(',').any(|one| one == *level)),
                "{filter}"
            );
        }
    }
}
