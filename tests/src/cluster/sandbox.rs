//! The outermost namespaces of a cluster, the folder of its state, and the promise that both vanish with their owner.
//!
//! Everything of a cluster runs below one init in PID, mount, network and UTS namespaces of its own. That init lives as
//! long as a pipe that only the harness holds: a return, a panic, Ctrl-C and SIGKILL all close it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::process;
use crate::toolchain::Toolchain;

const JANITOR: &str = include_str!("janitor.sh");
/// Short, because socket paths below it end at 108 bytes, and away from /etc, /var and /run, which nodes overlay.
const STATE_PARENT: &str = "/tmp";
const PREFIX: &str = "breakwater-";
const END_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Sandbox {
    janitor: Option<Child>,
    name: String,
    state: PathBuf,
    machine: Machine,
}

impl Sandbox {
    pub(super) async fn start(toolchain: &Toolchain, address: std::net::Ipv4Addr) -> Result<Self> {
        sweep()?;
        let name = format!("{PREFIX}{}", super::random_hex(4)?);
        let state = Path::new(STATE_PARENT).join(&name);
        fs::create_dir_all(state.join("logs")).with_context(|| format!("make {}", state.display()))?;
        let mut janitor =
            janitor(&state, &name, "own").stdin(Stdio::piped()).spawn().context("start the cluster's janitor")?;
        let init = match process::init_below(janitor.id()).await {
            Ok(init) => init,
            Err(error) => {
                drop(janitor.stdin.take());
                return Err(error.context("start the cluster's init"));
            }
        };
        let machine = Machine::at(&name, address, init, toolchain.search_path());
        Ok(Self { janitor: Some(janitor), name, state, machine })
    }

    /// The outermost namespaces as a machine to run programs on.
    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The name that its folder and its cgroups carry.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub(super) fn log(&self, part: &str) -> PathBuf {
        self.logs().join(format!("{part}.log"))
    }

    /// Whether nobody has asked for its end.
    pub(super) fn is_running(&self) -> bool {
        self.janitor.is_some()
    }

    /// Ends every process and waits until nothing is left.
    pub(super) fn end(&mut self) -> Result<()> {
        let Some(mut janitor) = self.janitor.take() else {
            return Ok(());
        };
        drop(janitor.stdin.take());
        let begun = Instant::now();
        loop {
            match janitor.try_wait().context("wait for the cluster's janitor")? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the janitor of {} ended with {status}", self.name),
                None if begun.elapsed() > END_LIMIT => {
                    bail!("{} was not removed within {} s", self.name, END_LIMIT.as_secs());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

fn janitor(state: &Path, name: &str, task: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", JANITOR, "janitor"]).arg(state).args([name, task]);
    // Ctrl-C at a terminal goes to the whole process group; the janitor must survive it to clean up.
    command.process_group(0);
    command
}

/// Removes what clusters left behind whose janitor was killed as well.
fn sweep() -> Result<()> {
    let entries = fs::read_dir(STATE_PARENT).with_context(|| format!("list {STATE_PARENT}"))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Without a lock file it is someone else's folder, or a cluster that is being made right now.
        if !name.starts_with(PREFIX) || !entry.path().join("lock").exists() {
            continue;
        }
        janitor(&entry.path(), &name, "sweep")
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("remove what {name} left behind"))?;
    }
    Ok(())
}
