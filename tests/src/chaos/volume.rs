//! A mount namespace for one mirror: a volume that can be filled, frozen and killed, a resolv.conf of its own.
//!
//! The namespace lives as long as a pipe that only the harness holds; its mounts vanish with it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// What the data folder lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// A small volume in memory: enough for what is pulled before the fault, and soon full.
    Small,
    /// A file system on a loop device, which can be frozen and shut down.
    Disk,
}

/// Makes the mounts, says so, and keeps the namespace until its standard input closes.
const KEEPER: &str = "
set -e
case $1 in
  small) mount -t tmpfs -o size=12m tmpfs \"$2\" ;;
  disk) truncate -s 128M \"$2.img\"; mkfs.ext4 -q \"$2.img\"; mount -o loop \"$2.img\" \"$2\" ;;
esac
[ -z \"$3\" ] || mount --bind \"$3\" /etc/resolv.conf
echo ready
read -r _ || :
";

/// EXT4_IOC_SHUTDOWN without flushing: from then on the file system answers everything with EIO.
const SHUT_DOWN: &str =
    "sysopen(D, $ARGV[0], 0) or die $!; my $how = pack(q(L), 2); ioctl(D, 0x8004587D, $how) or die $!";

/// The namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    keeper: Child,
    data: PathBuf,
}

impl Namespace {
    pub(super) fn start(medium: Option<Medium>, data: &Path, resolv_conf: Option<&Path>) -> Result<Self> {
        let medium = match medium {
            Some(Medium::Small) => "small",
            Some(Medium::Disk) => "disk",
            None => "none",
        };
        let mut keeper = Command::new("unshare")
            .args(["--mount", "sh", "-c", KEEPER, "keeper", medium])
            .args([data, resolv_conf.unwrap_or(Path::new(""))])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare: it comes with util-linux")?;
        let mut line = String::new();
        let output = keeper.stdout.take().context("the keeper's output")?;
        BufReader::new(output).read_line(&mut line).context("read from the keeper")?;
        ensure!(line == "ready\n", "a mount namespace needs root, and a disk a loop device: see the message above");
        Ok(Self { keeper, data: data.to_owned() })
    }

    /// The words before a command that has to run inside.
    pub(super) fn prefix(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--mount=/proc/{}/ns/mnt", self.keeper.id())]
    }

    /// The data folder as it is seen from outside.
    pub(super) fn data(&self) -> PathBuf {
        let inside = self.data.strip_prefix("/").unwrap_or(&self.data);
        Path::new("/proc").join(self.keeper.id().to_string()).join("root").join(inside)
    }

    /// Writes until nothing more fits.
    pub(super) fn fill(&self) -> Result<()> {
        self.run("dd if=/dev/zero of=\"$1/filler\" bs=4k 2>/dev/null || :")
    }

    pub(super) fn make_room(&self) -> Result<()> {
        self.run("rm \"$1/filler\"")
    }

    /// Lets every write wait until it is thawed.
    pub(super) fn freeze(&self) -> Result<()> {
        self.run("fsfreeze -f \"$1\"")
    }

    pub(super) fn thaw(&self) -> Result<()> {
        self.run("fsfreeze -u \"$1\"")
    }

    /// The same, whether it is frozen or not: what hangs in a write cannot be killed.
    pub(super) fn release(&self) {
        // Fails only where nothing hangs.
        let _ = self.run("fsfreeze -u \"$1\" 2>/dev/null || :");
    }

    /// Fails every access from now on.
    pub(super) fn shut_down(&self) -> Result<()> {
        self.run(&format!("perl -e '{SHUT_DOWN}' \"$1\""))
    }

    /// Mounts it again as after a repair; nothing may have it open.
    pub(super) fn repair(&self) -> Result<()> {
        self.run("umount \"$1\" && mount -o loop \"$1.img\" \"$1\"")
    }

    fn run(&self, script: &str) -> Result<()> {
        let prefix = self.prefix();
        let status = Command::new(&prefix[0])
            .args(&prefix[1..])
            .args(["sh", "-c", script, "volume"])
            .arg(&self.data)
            .status()
            .context("start nsenter: it comes with util-linux")?;
        ensure!(status.success(), "{script}: {status}");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It ends when its input closes.
        let _ = self.keeper.wait();
    }
}
