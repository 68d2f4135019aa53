//! Processes seen from the host: who runs below whom, and the signals that stop, freeze and thaw them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::wait::until;

/// How much of a log a failure message carries.
const TAIL_LINES: usize = 25;

/// A program that was started in a machine and goes on running, with its output in a log file.
#[derive(Debug)]
pub struct Part {
    name: String,
    /// `nsenter`, which waits for the program it started in the namespaces.
    entry: Child,
    pid: u32,
    log: PathBuf,
}

impl Part {
    /// Starts `command`, which is to enter a PID namespace, and appends its output to `log`.
    pub(super) async fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let output = fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("share a log file")?;
        let mut entry = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let entry_pid = entry.id().with_context(|| format!("{name} ended at once"))?;
        let found = until(Duration::from_secs(5), "a process entering its namespaces", async || {
            if entry.try_wait()?.is_some() {
                bail!("it ended at once");
            }
            Ok(child_of(entry_pid))
        })
        .await;
        let pid = found.with_context(|| format!("start {name}\n{}", tail(log)))?;
        Ok(Self { name: name.to_owned(), entry, pid, log: log.to_owned() })
    }

    /// Fails, with the end of the log, if the program has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.entry.try_wait().context("look after a process")? {
            bail!("{} ended with {status}\n{}", self.name, self.tail());
        }
        Ok(())
    }

    /// The last lines of its log, under a heading.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.log)
    }

    /// Stops it in mid-step without ending it: connections to it are accepted by the kernel and never answered.
    ///
    /// # Errors
    /// Fails when it is not running.
    pub fn freeze(&self) -> Result<()> {
        signal(self.pid, Signal::STOP).with_context(|| format!("freeze {}", self.name))
    }

    /// Lets a frozen program go on.
    ///
    /// # Errors
    /// Fails when it is not running.
    pub fn thaw(&self) -> Result<()> {
        self.thaw_entry();
        signal(self.pid, Signal::CONT).with_context(|| format!("thaw {}", self.name))
    }

    /// Ends it as a crash would, with SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// Fails when it cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        // An error means that it is gone already.
        let _ = signal(self.pid, Signal::KILL);
        until(Duration::from_secs(10), &format!("the end of {}", self.name), async || {
            self.thaw_entry();
            Ok(self.entry.try_wait()?)
        })
        .await
        .map(drop)
    }

    /// `nsenter` stops itself a moment after what it started was stopped, and would then never see its end.
    fn thaw_entry(&self) {
        // An error means that it has ended.
        let _ = self.entry.id().map(|entry| signal(entry, Signal::CONT));
    }
}

pub(super) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).context("a process id out of range")?;
    let pid = Pid::from_raw(raw).context("no process id")?;
    kill_process(pid, signal).context("send a signal")
}

/// The end of a log file, under a heading, for a failure message.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    format!("--- end of {}:\n{end}", log.display())
}

/// Waits for the init (`tini`) of the namespaces that the process `ancestor` is making.
pub(super) async fn init_below(ancestor: u32) -> Result<u32> {
    until(Duration::from_secs(10), "an init in new namespaces", async || {
        let mut pid = ancestor;
        while let Some(child) = child_of(pid) {
            if fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim() == "tini") {
                return Ok(Some(child));
            }
            pid = child;
        }
        if !Path::new(&format!("/proc/{ancestor}")).exists() {
            bail!("it ended at once");
        }
        Ok(None)
    })
    .await
}

/// The first child of a process; the kernel may lack `/proc/<pid>/task/<pid>/children`.
fn child_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        (parent_of(&fs::read_to_string(entry.path().join("stat")).ok()?)? == parent).then_some(pid)
    })
}

/// The parent's id in a `/proc/<pid>/stat` line, whose second field may hold spaces and parentheses.
fn parent_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parent_of;

    #[test]
    fn the_parent_is_found_behind_a_strange_name() {
        assert_eq!(parent_of("12 (a b) c) S 7 12 12 0"), Some(7));
        assert_eq!(parent_of("12 (sh"), None);
    }
}
