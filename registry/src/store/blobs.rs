//! Committed content, by digest. What is here was verified before it was put here.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tracing::warn;

use super::{
    partial::Verified,
    write::{Writer, rename},
};
use crate::digest::{Algorithm, Digest};

/// Last use is kept this coarsely, or each hit would be a write.
const TOUCH_EVERY: Duration = Duration::from_secs(3600);
/// File mode of content that was fetched with a login.
pub(super) const PRIVATE: u32 = 0o640;
/// File mode of content that upstream serves to anyone.
pub(super) const PUBLIC: u32 = PRIVATE | OTHERS_MAY_READ;
const OTHERS_MAY_READ: u32 = 0o004;

/// An open blob. It stays readable whatever happens to its name.
#[derive(Clone, Debug)]
pub struct StoredBlob {
    /// Its content.
    pub file: Arc<File>,
    /// Its size.
    pub size: u64,
    /// Whether it was fetched without a login.
    pub is_public: bool,
    /// When it came here.
    pub stored: SystemTime,
}

/// All committed content.
pub struct Blobs {
    dir: PathBuf,
    quarantine: PathBuf,
    writer: Writer,
    used: AtomicU64,
}

impl Blobs {
    pub(super) fn new(dir: PathBuf, quarantine: PathBuf, writer: Writer) -> Self {
        Self { dir, quarantine, writer, used: AtomicU64::new(0) }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.algorithm().as_str()).join(&digest.hex()[..2]).join(digest.hex())
    }

    /// Opens a blob for reading. What cannot be opened, or is empty and should not be, is not here.
    pub fn open(&self, digest: &Digest) -> Option<StoredBlob> {
        let file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(digest = digest.short(), %error, "blob unreadable");
                }
                return None;
            }
        };
        let blob = describe(file).ok()?;
        if blob.size == 0 && !digest.is_of_nothing() {
            return None;
        }
        touch(&blob.file);
        Some(blob)
    }

    /// Whether a blob is here.
    pub fn has(&self, digest: &Digest) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|metadata| metadata.len() > 0 || digest.is_of_nothing())
    }

    /// Takes over a verified download.
    pub fn commit(&self, verified: &Verified) -> io::Result<()> {
        verified.file().sync_data()?;
        rename(verified.path(), &self.path(verified.digest()))?;
        self.used.fetch_add(verified.length(), Ordering::Relaxed);
        Ok(())
    }

    /// Stores small content whose digest the caller has just computed.
    pub fn put(&self, digest: &Digest, bytes: &[u8], is_public: bool) -> io::Result<()> {
        // What is public stays public, whoever fetches it again.
        let is_public = is_public || self.open(digest).is_some_and(|blob| blob.is_public);
        self.writer.content(&self.path(digest), bytes, if is_public { PUBLIC } else { PRIVATE })?;
        self.used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Takes wrong content out of the way.
    pub fn set_aside(&self, digest: &Digest) {
        warn!(digest = digest.short(), "blob on disk is wrong, set aside");
        let path = self.path(digest);
        if fs::rename(&path, self.quarantine.join(digest.hex())).is_err() {
            // If it cannot even be removed, its size still keeps it from being served.
            let _ = fs::remove_file(&path);
        }
    }

    /// Bytes of committed content; grows to its true value while `measure` runs.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts what was here at start, file by file.
    pub fn measure(&self, is_over: impl Fn() -> bool) {
        let began = SystemTime::now();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for folder in list(&self.dir.join(algorithm.as_str())) {
                for path in list(&folder) {
                    if is_over() {
                        return;
                    }
                    let earlier = fs::metadata(&path).ok().filter(|found| found.created().is_ok_and(|at| at < began));
                    self.used.fetch_add(earlier.map_or(0, |found| found.len()), Ordering::Relaxed);
                }
            }
        }
    }
}

fn list(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether upstream serves the content of a file to anyone.
pub(super) fn is_public(metadata: &fs::Metadata) -> bool {
    metadata.permissions().mode() & OTHERS_MAY_READ != 0
}

/// Describes an open file of the store.
fn describe(file: File) -> io::Result<StoredBlob> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(StoredBlob {
        size: metadata.len(),
        is_public: is_public(&metadata),
        stored: metadata.created().or_else(|_| metadata.modified())?,
        file: Arc::new(file),
    })
}

fn touch(file: &File) {
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let is_due = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > TOUCH_EVERY));
    if is_due {
        // A lost touch only makes the blob look older than it is.
        let _ = file.set_modified(SystemTime::now());
    }
}
