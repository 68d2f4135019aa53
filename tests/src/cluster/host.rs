//! A machine on the cluster's network that is no node: where an upstream registry runs at an address of its own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::machine::Machine;
use super::process::Part;
use super::sandbox::Sandbox;

/// A host with a folder of its own, which sees the files of the machine that the harness runs on.
#[derive(Debug)]
pub struct Host {
    machine: Machine,
    folder: PathBuf,
    logs: PathBuf,
}

impl Host {
    pub(super) async fn boot(sandbox: &Sandbox, name: &str, address: Ipv4Addr) -> Result<Self> {
        let folder = sandbox.state().join(name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let log = sandbox.log(&format!("{name}-boot"));
        let machine = Machine::boot(sandbox.machine(), name, address, "", &log).await?;
        Ok(Self { machine, folder, logs: sandbox.logs() })
    }

    /// The machine it is, to run programs on.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.machine.address()
    }

    /// A folder for what runs on it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the output of a part of that name goes.
    #[must_use]
    pub fn log(&self, part: &str) -> PathBuf {
        self.logs.join(format!("{}-{part}.log", self.machine.name()))
    }

    /// Starts a program on it that goes on running.
    ///
    /// # Errors
    /// Fails, with the end of its log, when it ends at once.
    pub async fn spawn(&self, part: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Part> {
        self.machine.spawn(part, arguments, environment, &self.log(part)).await
    }
}
