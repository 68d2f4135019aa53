//! Whole files or none: written aside, then renamed into place.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Writes small files atomically.
#[derive(Clone)]
pub(super) struct Writer {
    aside: PathBuf,
    next: Arc<AtomicU64>,
    /// Told that something is to be synced.
    is_dirty: Arc<AtomicBool>,
}

impl Writer {
    /// `aside` must be on the same file system as all that is written.
    pub(super) fn new(aside: PathBuf, is_dirty: Arc<AtomicBool>) -> Self {
        Self { aside, next: Arc::default(), is_dirty }
    }

    /// Something was written, by whomever.
    pub(super) fn soil(&self) {
        self.is_dirty.store(true, Ordering::Relaxed);
    }

    /// Removes what a killed process left half-written.
    pub(super) fn clear(&self) {
        for entry in fs::read_dir(&self.aside).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "tmp") {
                // What stays is only garbage.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Puts a record in place; may be lost by a power cut, and is never half there otherwise.
    pub(super) fn record(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.aside(bytes, 0o644, |aside, _| rename(aside, path))
    }

    /// Writes a file aside and lets `place` put it where it belongs.
    pub(super) fn aside(
        &self,
        bytes: &[u8],
        mode: u32,
        place: impl FnOnce(&Path, &File) -> io::Result<()>,
    ) -> io::Result<()> {
        let aside = self.aside.join(format!("{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)));
        let written = (|| {
            let mut file = File::create(&aside)?;
            file.write_all(bytes)?;
            if mode != file.metadata()?.permissions().mode() & 0o777 {
                file.set_permissions(Permissions::from_mode(mode))?;
            }
            place(&aside, &file)
        })();
        self.soil();
        if written.is_err() {
            // Nothing half-written stays, or a full disk would stay full.
            let _ = fs::remove_file(&aside);
        }
        written
    }
}

/// Renames, making the target's folder if it is missing, and removing what cannot stand where a file or a folder belongs.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let Err(error) = fs::rename(from, to) else { return Ok(()) };
    match error.kind() {
        io::ErrorKind::NotFound => {}
        io::ErrorKind::IsADirectory => fs::remove_dir_all(to)?,
        io::ErrorKind::NotADirectory => {
            let is_obstacle = |path: &&Path| fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir());
            to.ancestors().skip(1).find(is_obstacle).map_or(Ok(()), fs::remove_file)?;
        }
        _ => return Err(error),
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::rename(from, to)
}
