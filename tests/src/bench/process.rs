//! A server as its operating system sees it: processor time and memory of a process and its children, and its end.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A started server. Dropping it ends it and its children.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    /// Starts a program; what it prints goes to a file.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log file")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { child })
    }

    /// Fails if it has ended.
    pub(super) fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait().context("look after a server")? {
            Some(status) => bail!("it ended with {status}"),
            None => Ok(()),
        }
    }

    fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        [own].into_iter().chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    /// Processor time used so far, in user and kernel mode, by it and its children.
    pub(super) fn cpu(&self) -> Duration {
        self.pids().into_iter().map(processor_time).sum()
    }

    /// Resident memory in bytes; a page shared by several of its processes counts once.
    pub(super) fn memory(&self) -> u64 {
        self.pids().into_iter().filter_map(proportional_set).sum()
    }
}

/// Processor time that a process has used so far, in user and kernel mode; none once it has ended.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks(pid).unwrap_or_default() as f64 / per_second as f64)
}

/// `utime` and `stime` of /proc/PID/stat. The name before them may hold anything, so they are counted from its bracket.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn proportional_set(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

impl Drop for Process {
    fn drop(&mut self) {
        let signal = |pid: u32, signal| {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended already.
                let _ = kill_process(pid, signal);
            }
        };
        let pids = self.pids();
        // nginx ends its workers itself, if it is asked.
        signal(self.child.id(), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for pid in pids {
            signal(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
