//! Logs: text for people, JSON for collectors, both on stderr; stdout is for the addresses.
//!
//! Lines are written by a thread of their own. Whoever reads them may stop reading: then lines are left out and counted,
//! and no pull waits.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

/// Lines that may wait for their reader.
const BACKLOG: usize = 4096;
/// The last lines get this long at the end.
const FAREWELL: Duration = Duration::from_secs(1);

static LOST: AtomicU64 = AtomicU64::new(0);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line each.
    Text,
    /// One JSON object each.
    Json,
}

/// Starts logging; `RUST_LOG` decides what, `info` by default. Lines are written for as long as the log is held.
pub fn init(format: LogFormat) -> io::Result<Log> {
    let (lines, waiting) = sync_channel(BACKLOG);
    thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&waiting))?;
    let filter = filter(std::env::var("RUST_LOG").ok().as_deref());
    let queue = lines.clone();
    let subscriber = fmt().with_env_filter(filter).with_target(false).with_writer(move || Queue(queue.clone()));
    let subscriber = subscriber.with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_target(true).init(),
    }
    Ok(Log(lines))
}

/// What the environment asks for; the default where it asks for nothing, or for what is no filter.
fn filter(environment: Option<&str>) -> EnvFilter {
    let asked = environment.filter(|text| !text.is_empty());
    asked.and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new("info"))
}

/// Lines left out so far because nobody read them in time.
pub fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The running log.
pub struct Log(SyncSender<Entry>);

impl Drop for Log {
    fn drop(&mut self) {
        let (done, flushed) = sync_channel(1);
        if self.0.try_send(Entry::Flush(done)).is_ok() {
            // Nobody may be reading.
            let _ = flushed.recv_timeout(FAREWELL);
        }
    }
}

/// Takes one line at a time: a formatted event comes in a single write.
struct Queue(SyncSender<Entry>);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.0.try_send(Entry::Line(line.to_vec())) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(waiting: &Receiver<Entry>) {
    let mut stderr = io::stderr();
    while let Ok(entry) = waiting.recv() {
        match entry {
            // A closed stderr is no reason to stop serving.
            Entry::Line(line) => drop(stderr.write_all(&line)),
            Entry::Flush(done) => drop(done.try_send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_silences_nothing() {
        for (asked, level) in [(None, "info"), (Some(""), "info"), (Some("a=b=c"), "info"), (Some("debug"), "debug")] {
            assert_eq!(filter(asked).to_string(), level, "{asked:?}");
        }
    }
}
