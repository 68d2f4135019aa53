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
    tell(&processes(Path::new("/proc"), CRI_O), |pid| kill_process(pid, Signal::HUP))
}

fn tell(pids: &[Pid], hang_up: impl Fn(Pid) -> Result<(), Errno>) -> Result<(), NotTold> {
    let mut told = Err(NotTold::Unseen);
    for pid in pids {
        match hang_up(*pid) {
            // It ended meanwhile; the next one reads the files as it starts.
            Ok(()) | Err(Errno::SRCH) => told = Ok(()),
            // Anybody may give a process that name.
            Err(error) if told.is_err() => told = Err(NotTold::Refused(error)),
            Err(_) => {}
        }
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
    fn whoever_else_has_the_name_keeps_nobody_from_being_told() {
        let [other, crio] = [7, 9].map(|pid| Pid::from_raw(pid).unwrap());
        let hang_up = |pid| if pid == other { Err(Errno::PERM) } else { Ok(()) };
        assert_eq!(tell(&[other, crio], hang_up), Ok(()));
        assert_eq!(tell(&[crio, other], hang_up), Ok(()));
        assert_eq!(tell(&[other], hang_up), Err(NotTold::Refused(Errno::PERM)));
        assert_eq!(tell(&[], hang_up), Err(NotTold::Unseen));
    }

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
