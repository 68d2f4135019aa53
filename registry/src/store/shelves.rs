//! The folders of committed content, and how many bytes stand in each: exact, as whoever adds to a folder, takes from it
//! or counts it holds the folder's lock. Knows digests and sizes, not what the content is.

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
    bytes: Vec<Mutex<u64>>,
    used: AtomicU64,
}

impl Shelves {
    pub(super) fn new(dir: PathBuf) -> Self {
        let bytes = (0..ALGORITHMS.len() * PER_ALGORITHM).map(|_| Mutex::default()).collect();
        Self { dir, bytes, used: AtomicU64::new(0) }
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

    fn lock(&self, algorithm: Algorithm, name: &str) -> MutexGuard<'_, u64> {
        let first = ALGORITHMS.iter().position(|known| *known == algorithm).unwrap_or_default() * PER_ALGORITHM;
        let byte = usize::from_str_radix(name, 16).unwrap_or_default();
        self.bytes[first + byte.min(PER_ALGORITHM - 1)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, shelf: &mut u64, bytes: u64) {
        // Wrapping is what makes a difference of either sign right.
        self.used.fetch_add(bytes.wrapping_sub(*shelf), Ordering::Relaxed);
        *shelf = bytes;
    }

    /// Renames a file to its place; what stood there is replaced if it is a file, and else set aside.
    pub(super) fn put(&self, from: &Path, digest: &Digest, quarantine: &Quarantine) -> io::Result<()> {
        let to = self.path(digest);
        let size = fs::metadata(from)?.len();
        let mut shelf = self.lock(digest.algorithm(), &digest.hex()[..2]);
        let replaced = match renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => 0,
            Err(Errno::NOENT) => rename(from, &to).map(|()| 0)?,
            // It exists, or the file system cannot say.
            Err(_) => {
                let there = fs::symlink_metadata(&to);
                let replaced = there.as_ref().map_or(0, length);
                if there.is_ok_and(|there| !there.is_file()) {
                    quarantine.receive(&to);
                }
                rename(from, &to).map(|()| replaced)?
            }
        };
        let bytes = shelf.saturating_sub(replaced) + size;
        self.set(&mut shelf, bytes);
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
        let bytes = shelf.saturating_sub(length(&found));
        self.set(&mut shelf, bytes);
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
                let mut bytes = 0;
                for entry in fs::read_dir(self.folder(algorithm, &name)).into_iter().flatten().flatten() {
                    let digest = entry.file_name().to_str().and_then(digest_named);
                    if let (Some(digest), Ok(found)) = (digest, entry.metadata())
                        && found.is_file()
                    {
                        bytes += found.len();
                        each(digest, &found);
                    }
                }
                self.set(&mut shelf, bytes);
            }
        }
    }
}

/// What a file counts; anything else was never counted.
fn length(found: &Metadata) -> u64 {
    if found.is_file() { found.len() } else { 0 }
}

/// The digest whose hexadecimal text a file is named by: its length says which algorithm.
pub(super) fn digest_named(hex: &str) -> Option<Digest> {
    ALGORITHMS.iter().find_map(|algorithm| format!("{}:{hex}", algorithm.as_str()).parse().ok())
}
