//! A machine: network, mount, PID and UTS namespaces with an init, on the cluster's bridge.
//!
//! Killing the init is a power cut: every process of the machine ends at once, its mounts and addresses vanish.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::process::Command;

use super::process::{self, Part};
use super::wait::until;

/// The bridge's address, which is also the control plane's, the name server's and everyone's default route.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);
const PREFIX_LENGTH: u8 = 16;
const BRIDGE: &str = "br0";
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// Names of the bridge's ends of cables; a vanishing one may outlive its machine by a moment, so none is used twice.
static CABLES: AtomicU32 = AtomicU32::new(0);

/// A handle on a running machine.
#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    address: Ipv4Addr,
    init: u32,
    search_path: OsString,
}

impl Machine {
    pub(super) fn at(name: &str, address: Ipv4Addr, init: u32, search_path: OsString) -> Self {
        Self { name: name.to_owned(), address, init, search_path }
    }

    /// Boots a machine inside `outer` and plugs it into the bridge. `setup` is a shell script that runs in the new
    /// namespaces before the init.
    pub(super) async fn boot(outer: &Self, name: &str, address: Ipv4Addr, setup: &str, log: &Path) -> Result<Self> {
        let script = format!("set -eu\n{setup}\nhostname {name}\nexec tini -s -- sleep infinity");
        let mut command = outer.command("unshare");
        command.args(["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]).args([
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            &script,
        ]);
        // The machine lives until its init or the outer one dies, not until someone waits for `nsenter`.
        command.kill_on_drop(false);
        let output = std::fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
        let errors = output.try_clone().context("share a log file")?;
        let entry = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("boot {name}"))?;
        let entry_pid = entry.id().with_context(|| format!("{name} ended at once"))?;
        let init =
            process::init_below(entry_pid).await.with_context(|| format!("boot {name}\n{}", process::tail(log)))?;
        reap(entry);
        let machine = Self::at(name, address, init, outer.search_path.clone());
        machine.plug_in(outer).await.with_context(|| format!("give {name} its address"))?;
        Ok(machine)
    }

    /// Makes the bridge of the outermost machine.
    pub(super) async fn make_bridge(&self) -> Result<()> {
        self.sh(&format!(
            "ip link set lo up
             ip link add {BRIDGE} address {} type bridge
             ip address add {GATEWAY}/{PREFIX_LENGTH} dev {BRIDGE}
             ip link set {BRIDGE} up
             echo 1 >/proc/sys/net/ipv4/ip_forward",
            hardware(GATEWAY)
        ))
        .await?;
        Ok(())
    }

    async fn plug_in(&self, outer: &Self) -> Result<()> {
        let cable = format!("cable{}", CABLES.fetch_add(1, Ordering::Relaxed));
        // Without the PID namespace, because `netns` takes a process id as the caller sees it.
        let mut command = outer.enter(&["--net"], "sh");
        command.args(["-euc"]).arg(format!(
            "ip link add {cable} type veth peer name eth0 address {} netns {}; ip link set {cable} master {BRIDGE} up",
            hardware(self.address),
            self.init
        ));
        run(command, EXEC_LIMIT).await?;
        self.sh(&format!(
            "ip link set lo up
             ip address add {}/{PREFIX_LENGTH} dev eth0
             ip link set eth0 up
             ip route add default via {GATEWAY}",
            self.address
        ))
        .await?;
        Ok(())
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the bridge.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The id of its init, as the host sees it.
    #[must_use]
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A command that runs in this machine. Host folders outside /etc, /run and /var are visible under their own path.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.enter(&["--mount", "--net", "--pid", "--uts"], program)
    }

    fn enter(&self, namespaces: &[&str], program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string()])
            .args(namespaces)
            .arg("--")
            .arg(program)
            // Proxies and trust settings of the harness's own environment lead nowhere in there.
            .env_clear()
            .env("HOME", "/root")
            .env("PATH", &self.search_path)
            // Ctrl-C is the harness's to handle.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Runs a program in this machine and returns what it printed.
    ///
    /// # Errors
    /// Fails, with what it printed, when it fails or takes longer than a minute.
    pub async fn exec(&self, arguments: &[&str]) -> Result<String> {
        let (program, rest) = arguments.split_first().context("nothing to execute")?;
        let mut command = self.command(program);
        command.args(rest);
        run(command, EXEC_LIMIT).await.with_context(|| format!("run {arguments:?} on {}", self.name))
    }

    /// Runs a shell script in this machine, which ends at the first command that fails.
    ///
    /// # Errors
    /// As [`Machine::exec`].
    pub async fn sh(&self, script: &str) -> Result<String> {
        self.exec(&["sh", "-euc", script]).await
    }

    /// Starts a program in this machine that goes on running.
    ///
    /// # Errors
    /// Fails, with the end of its log, when it ends at once.
    pub async fn spawn(
        &self,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Part> {
        let (program, rest) = arguments.split_first().context("nothing to start")?;
        let mut command = self.command(program);
        command.args(rest).envs(environment.iter().copied());
        Part::spawn(name, command, log).await
    }

    /// Drops every packet that leaves for `address`, as a broken network does: nothing is refused, nothing arrives.
    /// It holds for the machine itself and for the pods on it.
    ///
    /// # Errors
    /// Fails when nft does.
    pub async fn drop_packets_to(&self, address: Ipv4Addr) -> Result<()> {
        self.sh(&format!(
            "nft add table ip blackhole
             nft add chain ip blackhole output '{{ type filter hook output priority 0; }}'
             nft add chain ip blackhole forward '{{ type filter hook forward priority 0; }}'
             nft add rule ip blackhole output ip daddr {address} drop
             nft add rule ip blackhole forward ip daddr {address} drop"
        ))
        .await?;
        Ok(())
    }

    /// Takes back every [`Machine::drop_packets_to`].
    ///
    /// # Errors
    /// Fails when nft does.
    pub async fn heal_network(&self) -> Result<()> {
        self.sh("nft add table ip blackhole; nft delete table ip blackhole").await?;
        Ok(())
    }

    /// Stops every process of that name on this machine, those in pods included, without ending it.
    ///
    /// # Errors
    /// Fails when there is none.
    pub async fn freeze(&self, program: &str) -> Result<()> {
        self.exec(&["busybox", "killall", "-STOP", program]).await?;
        Ok(())
    }

    /// Lets frozen processes of that name go on.
    ///
    /// # Errors
    /// Fails when there is none.
    pub async fn thaw(&self, program: &str) -> Result<()> {
        self.exec(&["busybox", "killall", "-CONT", program]).await?;
        Ok(())
    }

    /// Cuts the power and waits until nothing runs any more.
    pub(super) async fn power_off(&self) -> Result<()> {
        process::signal(self.init, Signal::KILL).with_context(|| format!("cut the power of {}", self.name))?;
        let gone = format!("/proc/{}", self.init);
        until(Duration::from_secs(10), "a machine's last process", async || {
            Ok((!Path::new(&gone).exists()).then_some(()))
        })
        .await
    }
}

/// The hardware address of a network card, the same after each boot: neighbours remember it, and wait for long before they ask anew. A
/// bridge that was given none changes its own whenever a cable is plugged in or out.
fn hardware(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Waits for a machine's outermost process in the background, so that it leaves no zombie behind.
fn reap(mut entry: tokio::process::Child) {
    // Ends with the machine, at the latest with the cluster's init.
    tokio::spawn(async move { entry.wait().await });
}

/// Runs a command to its end and returns what it printed on standard output.
pub(super) async fn run(mut command: Command, limit: Duration) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .with_context(|| format!("it took longer than {} s", limit.as_secs()))?
        .context("start it")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("it ended with {}: {}{}", output.status, printed, String::from_utf8_lossy(&output.stderr));
    }
    Ok(printed)
}
