//! The folders of committed content, and how many files and bytes stand in each: exact, as whoever adds to a folder, takes
//! from it or counts it holds the folder's lock. Knows digests and sizes, not what the content is.

use std::{
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{quarantine::Quarantine, write::rename};
use crate::digest::{Algorithm, Digest};

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];
/// One per first byte of a hash.
const PER_ALGORITHM: usize = 256;

/// All folders of content.
pub(super) struct Shelves {
    dir: PathBuf,
    shelves: Vec<Mutex<Shelf>>,
    files: AtomicU64,
    used: AtomicU64,
}

/// What stands in one folder.
#[derive(Clone, Copy, Default)]
struct Shelf {
    files: u64,
    bytes: u64,
}

impl Shelf {
    fn with(self, file: &Metadata) -> Self {
        Self { files: self.files + counted(file), bytes: self.bytes + length(file) }
    }

    fn without(self, file: &Metadata) -> Self {
        Self { files: self.files.saturating_sub(counted(file)), bytes: self.bytes.saturating_sub(length(file)) }
    }
}

impl Shelves {
    pub(super) fn new(dir: PathBuf) -> Self {
        let shelves = (0..ALGORITHMS.len() * PER_ALGORITHM).map(|_| Mutex::default()).collect();
        Self { dir, shelves, files: AtomicU64::new(0), used: AtomicU64::new(0) }
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.folder(digest.algorithm(), &digest.hex()[..2]).join(digest.hex())
    }

    fn folder(&self, algorithm: Algorithm, name: &str) -> PathBuf {
        self.dir.join(algorithm.as_str()).join(name)
    }

    /// Bytes in all folders that were counted or added.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How many files these are.
    pub(super) fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    fn lock(&self, algorithm: Algorithm, name: &str) -> MutexGuard<'_, Shelf> {
        let first = ALGORITHMS.iter().position(|known| *known == algorithm).unwrap_or_default() * PER_ALGORITHM;
        let byte = usize::from_str_radix(name, 16).unwrap_or_default();
        self.shelves[first + byte.min(PER_ALGORITHM - 1)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, shelf: &mut Shelf, now: Shelf) {
        // Wrapping is what makes a difference of either sign right.
        self.files.fetch_add(now.files.wrapping_sub(shelf.files), Ordering::Relaxed);
        self.used.fetch_add(now.bytes.wrapping_sub(shelf.bytes), Ordering::Relaxed);
        *shelf = now;
    }

    /// Renames a file to its place; what stood there is replaced if it is a file, and else set aside.
    pub(super) fn put(&self, from: &Path, digest: &Digest, quarantine: &Quarantine) -> io::Result<()> {
        let to = self.path(digest);
        let new = fs::metadata(from)?;
        let mut shelf = self.lock(digest.algorithm(), &digest.hex()[..2]);
        let replaced = match renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => None,
            Err(Errno::NOENT) => rename(from, &to).map(|()| None)?,
            // It exists, or the file system cannot say.
            Err(_) => {
                let there = fs::symlink_metadata(&to).ok();
                if there.as_ref().is_some_and(|there| !there.is_file()) {
                    quarantine.receive(&to);
                }
                rename(from, &to).map(|()| there)?
            }
        };
        let before = replaced.map_or(*shelf, |replaced| shelf.without(&replaced));
        self.set(&mut shelf, before.with(&new));
        Ok(())
    }

    /// Lets `take` move or remove a file; gives the bytes that are gone from here.
    pub(super) fn take(&self, digest: &Digest, take: impl FnOnce(&Path)) -> u64 {
        let path = self.path(digest);
        let mut shelf = self.lock(digest.algorithm(), &digest.hex()[..2]);
        let Ok(found) = fs::symlink_metadata(&path) else { return 0 };
        take(&path);
        if path.symlink_metadata().is_ok() {
            return 0;
        }
        let left = shelf.without(&found);
        self.set(&mut shelf, left);
        length(&found)
    }

    /// Every digest, folder by folder.
    pub(super) fn walk(&self) -> impl Iterator<Item = Digest> {
        let folders =
            ALGORITHMS.into_iter().flat_map(|algorithm| (0..PER_ALGORITHM).map(move |byte| (algorithm, byte)));
        folders.flat_map(|(algorithm, byte)| {
            let entries = fs::read_dir(self.folder(algorithm, &format!("{byte:02x}"))).into_iter().flatten().flatten();
            entries.filter_map(|entry| digest_named(entry.file_name().to_str()?))
        })
    }

    /// Looks at every file, counting anew; ends early if `is_over`.
    pub(super) fn survey(&self, is_over: impl Fn() -> bool, mut each: impl FnMut(Digest, &Metadata)) {
        for algorithm in ALGORITHMS {
            for byte in 0..PER_ALGORITHM {
                if is_over() {
                    return;
                }
                let name = format!("{byte:02x}");
                let mut shelf = self.lock(algorithm, &name);
                let mut now = Shelf::default();
                for entry in fs::read_dir(self.folder(algorithm, &name)).into_iter().flatten().flatten() {
                    let digest = entry.file_name().to_str().and_then(digest_named);
                    if let (Some(digest), Ok(found)) = (digest, entry.metadata())
                        && found.is_file()
                    {
                        now = now.with(&found);
                        each(digest, &found);
                    }
                }
                self.set(&mut shelf, now);
            }
        }
    }
}

/// Anything but a file was never counted.
fn counted(found: &Metadata) -> u64 {
    u64::from(found.is_file())
}

fn length(found: &Metadata) -> u64 {
    if found.is_file() { found.len() } else { 0 }
}

/// The digest whose hexadecimal text a file is named by: its length says which algorithm.
pub(super) fn digest_named(hex: &str) -> Option<Digest> {
    ALGORITHMS.iter().find_map(|algorithm| format!("{}:{hex}", algorithm.as_str()).parse().ok())
}
