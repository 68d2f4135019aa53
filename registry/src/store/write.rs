//! Whole files or none: written aside, then renamed into place.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Writes small files atomically.
#[derive(Clone)]
pub(super) struct Writer {
    aside: PathBuf,
    next: Arc<AtomicU64>,
}

impl Writer {
    /// `aside` must be on the same file system as all that is written.
    pub(super) fn new(aside: PathBuf) -> Self {
        Self { aside, next: Arc::default() }
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

    /// Puts a record in place; may be lost by a power cut.
    pub(super) fn record(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write(path, bytes, false, 0o644)
    }

    /// Puts content in place; what is there after a power cut is right.
    pub(super) fn content(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        self.write(path, bytes, true, mode)
    }

    fn write(&self, path: &Path, bytes: &[u8], sync: bool, mode: u32) -> io::Result<()> {
        let aside = self.aside.join(format!("{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)));
        let written = (|| {
            let mut file = File::create(&aside)?;
            file.write_all(bytes)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            if sync {
                file.sync_data()?;
            }
            rename(&aside, path)
        })();
        if written.is_err() {
            // Nothing half-written stays, or a full disk would stay full.
            let _ = fs::remove_file(&aside);
        }
        written
    }
}

/// Renames, making the target's folder if it is missing.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::rename(from, to)
        }
        done => done,
    }
}
