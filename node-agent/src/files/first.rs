//! Whether a folder of the node is still the one that was seen first. Knows no name in it.

use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

/// Which folder was seen first at a path.
///
/// In a container the path leads to a mount of the node's folder. Once that is removed the mount leads nowhere, or gives way to what
/// it hid, whatever the node makes in its place: only a new process gets the new folder mounted.
#[derive(Debug, Default)]
pub(crate) struct First(Option<Identity>);

/// Device, inode and birth. The number alone may be that of the next folder: file systems give it away again at once.
type Identity = (u64, u64, Option<SystemTime>);

impl First {
    /// Opens the folder; None where it was removed or replaced. Its path is the administrator's choice, so it may lead through
    /// symlinks.
    pub(crate) fn open(&mut self, path: &Path) -> io::Result<Option<File>> {
        let flags = OFlags::DIRECTORY.bits().cast_signed();
        let folder = match File::options().read(true).custom_flags(flags).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.0.is_some() => return Ok(None),
            opened => opened?,
        };
        let found = folder.metadata()?;
        let identity = (found.dev(), found.ino(), found.created().ok());
        let is_it = found.nlink() > 0 && *self.0.get_or_insert(identity) == identity;
        Ok(is_it.then_some(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_the_place_of_the_first_is_another_even_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("certs.d"), dir.path().join("other"));
        let birth_of = |path: &Path| {
            std::fs::create_dir(path).unwrap();
            path.metadata().unwrap().created().unwrap()
        };
        let birth = birth_of(&path);
        let mut first = First::default();
        for _ in 0..2 {
            assert!(first.open(&path).unwrap().is_some());
        }
        // A clock may tick every few milliseconds only.
        while birth_of(&other) == birth {
            std::fs::remove_dir(&other).unwrap();
        }
        std::fs::remove_dir(&path).unwrap();
        assert!(first.open(&path).unwrap().is_none(), "removed");
        birth_of(&path);
        assert!(first.open(&path).unwrap().is_none(), "replaced");
        assert!(First::default().open(&path).unwrap().is_some(), "a new process sees it for the first time");
    }

    #[test]
    fn only_a_folder_is_opened_and_one_may_come_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certs.d");
        let mut first = First::default();
        assert_eq!(first.open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "").unwrap();
        assert_eq!(first.open(&path).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(first.open(&path).unwrap().is_some());
    }
}
