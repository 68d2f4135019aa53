//! Small files that are replaced as a whole and on disk before the call returns, and the agent's state folder, which holds some.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// What was last known of the cluster.
pub const KNOWN: &str = "known.json";
/// What each file of certs.d was.
pub const JOURNAL: &str = "files.json";
/// What was done to the runtime's own configuration.
pub const RUNTIME: &str = "runtime.json";

/// For the agent alone.
pub const PRIVATE: u32 = 0o600;
/// For the runtime as well, whoever it runs as.
pub const PUBLIC: u32 = 0o644;

/// Begins the names of files that are not whole yet. Nobody reads a name that begins so, or that has no suffix.
const TEMPORARY: &str = ".breakwater-";

/// Makes the folder for private state, readable by its owner alone.
///
/// # Errors
/// The folder cannot be made.
pub fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the state folder and keeps it from every other process that asks, for as long as the result lives: two that write the same
/// files would each take the other's for a stranger's. What a former process left half written is removed.
///
/// # Errors
/// The folder cannot be made or read, or another process keeps it.
pub fn occupy(state_dir: &Path) -> io::Result<File> {
    make_folder(state_dir)?;
    let folder = File::open(state_dir)?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let message = format!("another agent works with {}; stop it first", state_dir.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
        }
        // A file system without locks is no reason to leave the node without an agent.
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    sweep(state_dir)?;
    Ok(folder)
}

/// Removes what crashes left of writes.
///
/// # Errors
/// The folder cannot be read, or a file in it cannot be removed.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Leaves nothing of the agent in its state folder but what is still owed, and, where nothing keeps it, no folder. What others keep
/// there stays.
///
/// # Errors
/// A file cannot be removed.
pub fn forget(state_dir: &Path) -> io::Result<()> {
    if !state_dir.try_exists()? {
        return Ok(());
    }
    sweep(state_dir)?;
    remove(&state_dir.join(KNOWN))?;
    // A mount stays, and so does a folder with more in it.
    drop(std::fs::remove_dir(state_dir));
    Ok(())
}

/// Removes a file, if it is there, for good.
///
/// # Errors
/// It may still be there after a crash.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_folder_of(path)),
    }
}

/// Replaces a file; after a crash it holds the old or the new bytes.
///
/// # Errors
/// The bytes are not durably there.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_crash_left_is_swept_and_in_the_end_only_what_is_anothers_or_owed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        make_folder(&folder).unwrap();
        for name in [KNOWN, JOURNAL, RUNTIME] {
            replace(&folder.join(name), b"{}", PRIVATE).unwrap();
        }
        std::fs::write(folder.join(".breakwater-Ab12"), "half").unwrap();
        std::fs::write(folder.join("diary.txt"), "not the agent's").unwrap();
        sweep(&folder).unwrap();
        assert_eq!(names(&folder), ["diary.txt", JOURNAL, KNOWN, RUNTIME]);
        forget(&folder).unwrap();
        assert_eq!(names(&folder), ["diary.txt", JOURNAL, RUNTIME]);
        for name in ["diary.txt", JOURNAL, RUNTIME] {
            remove(&folder.join(name)).unwrap();
        }
        forget(&folder).unwrap();
        assert!(!folder.exists());
        forget(&folder).unwrap();
    }

    #[test]
    fn one_agent_works_with_a_state_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = occupy(dir.path()).unwrap();
        let second = occupy(dir.path()).unwrap_err();
        assert!(second.to_string().contains("another agent works with"), "{second}");
        drop(first);
        std::fs::write(dir.path().join(".breakwater-Ab12"), "half").unwrap();
        let _third = occupy(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
