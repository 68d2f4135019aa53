//! Small private files of the agent's own state folder, replaced as a whole and on disk before the call returns.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Begins the names of files that are not whole yet.
const TEMPORARY: &str = ".tmp";

/// Makes the folder for private state, readable by its owner alone.
///
/// # Errors
/// The folder cannot be made.
pub fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes what crashes left of writes.
///
/// # Errors
/// The folder cannot be read, or a file in it cannot be removed.
pub fn sweep(folder: &Path) -> io::Result<()> {
    remove_files(folder, |name| name.starts_with(TEMPORARY))
}

/// Removes every file and, where nothing keeps it, the folder.
///
/// # Errors
/// A file cannot be removed.
pub fn remove_folder(folder: &Path) -> io::Result<()> {
    remove_files(folder, |_| true)?;
    // A mount stays.
    drop(std::fs::remove_dir(folder));
    Ok(())
}

fn remove_files(folder: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && which(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces a file; after a crash it holds the old or the new bytes. Temporary files are made with mode 0600.
///
/// # Errors
/// The bytes are not durably there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn what_a_crash_left_is_swept_and_in_the_end_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        make_folder(&folder).unwrap();
        replace(&folder.join("known.json"), b"{}").unwrap();
        std::fs::write(folder.join(".tmpAb12"), "half").unwrap();
        sweep(&folder).unwrap();
        assert_eq!(names(&folder), ["known.json"]);
        remove_folder(&folder).unwrap();
        assert!(!folder.exists());
    }
}
