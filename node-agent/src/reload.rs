//! Has CRI-O read its drop-ins anew: it does so on SIGHUP alone, unless it was told to watch them.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;

const CRI_O: &str = "crio";

/// Whether CRI-O was told.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTold {
    /// podman and skopeo alone, which read the files each time; or CRI-O's processes cannot be seen.
    #[error("no CRI-O is seen; where it runs, the agent needs hostPID, or CRI-O auto_reload_registries = true")]
    Unseen,
    /// A process of that name takes no signal of ours.
    #[error("CRI-O cannot be told to read its drop-ins: {0}")]
    Refused(Errno),
}

/// Tells every CRI-O that is seen.
///
/// # Errors
/// There is none, or it takes no signal.
pub fn reload() -> Result<(), NotTold> {
    let mut told = Err(NotTold::Unseen);
    for pid in processes(Path::new("/proc"), CRI_O) {
        told = match kill_process(pid, Signal::HUP) {
            // It ended meanwhile; the next one reads the files as it starts.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => return Err(NotTold::Refused(error)),
        };
    }
    told
}

fn processes(proc: &Path, name: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let is_it = |folder: &Path| std::fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
    let found = entries.filter(|entry| is_it(&entry.path()));
    found.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_known_by_their_name() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, comm) in [("7", "crio\n"), ("8", "crio-conmon\n"), ("self", "crio\n"), ("9", "crio\n")] {
            std::fs::create_dir(proc.path().join(pid)).unwrap();
            std::fs::write(proc.path().join(pid).join("comm"), comm).unwrap();
        }
        let mut found: Vec<_> = processes(proc.path(), CRI_O).iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        found.sort_unstable();
        assert_eq!(found, [7, 9]);
    }
}
