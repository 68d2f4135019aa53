//! Downloads that have not ended: `Partial` grows, `verify` makes it `Verified`, and only that can be committed.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use super::{
    blobs::{PRIVATE, PUBLIC, is_public},
    read,
};
use crate::digest::{Algorithm, Digest, Hasher};

const READ: usize = 256 * 1024;

/// The folder of growing downloads.
pub struct Partials {
    dir: PathBuf,
    used: Arc<AtomicU64>,
    growing: Mutex<HashMap<Digest, Weak<File>>>,
}

/// A growing download: every byte up to `length` is on its way to disk, every byte up to `hashed` in the hash.
pub struct Partial {
    digest: Digest,
    file: Arc<File>,
    hasher: Hasher,
    hashed: u64,
    length: u64,
    is_public: bool,
    share: Share,
}

/// A download whose content is that of its digest.
pub struct Verified {
    digest: Digest,
    file: Arc<File>,
    length: u64,
    share: Share,
}

impl Partials {
    /// Counts what earlier downloads left: they are few. What a power cut may have spoilt is not worth going on with.
    pub(super) fn new(dir: PathBuf, doubtful_from: Option<SystemTime>) -> Self {
        let is_doubtful =
            |found: &Metadata| doubtful_from.is_some_and(|from| found.modified().is_ok_and(|modified| modified > from));
        let mut left = 0;
        for (name, found) in list(&dir) {
            let is_useless = found.len() == 0 || is_doubtful(&found);
            if !(is_useless && fs::remove_file(dir.join(name)).is_ok()) {
                left += found.len();
            }
        }
        Self { dir, used: Arc::new(left.into()), growing: Mutex::default() }
    }

    /// Bytes in the folder, with those that are sure to come.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Continues what an earlier download left, or starts with nothing. What was left is hashed later, as hashing a
    /// large one first would keep its readers waiting.
    pub fn open(&self, digest: &Digest) -> io::Result<Partial> {
        let path = self.dir.join(digest.hex());
        // Held before it is there: what is idle may be removed at any time.
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let partial = self.continued(digest, &path).or_else(|error| {
            if exhausted(&error) {
                return Err(error);
            }
            // Whatever it is that cannot be read: without it, the download can begin.
            self.remove(&path);
            self.continued(digest, &path)
        })?;
        growing.retain(|_, file| file.strong_count() > 0);
        growing.insert(digest.clone(), Arc::downgrade(&partial.file));
        Ok(partial)
    }

    fn continued(&self, digest: &Digest, path: &Path) -> io::Result<Partial> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
        let (file, found) = read::plain(&mut options, path)?;
        let (length, is_public) = (found.len(), is_public(&found));
        let (used, path, is_empty) = (Arc::clone(&self.used), path.to_owned(), length == 0);
        let share = Share { used, path, counted: length, stays: length, is_empty, is_exempt: false };
        let (digest, hasher) = (digest.clone(), Hasher::new(digest.algorithm()));
        Ok(Partial { digest, file: Arc::new(file), hasher, hashed: 0, length, is_public, share })
    }

    fn remove(&self, path: &Path) -> u64 {
        let length = fs::symlink_metadata(path).map_or(0, |found| if found.is_file() { found.len() } else { 0 });
        if fs::remove_file(path).or_else(|_| fs::remove_dir_all(path)).is_err() {
            return 0;
        }
        self.used.fetch_sub(length, Ordering::Relaxed);
        length
    }

    /// Those that no flight continues now, and when they last grew.
    pub(super) fn idle(&self) -> Vec<(Digest, Metadata)> {
        let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |digest: &Digest| growing.get(digest).is_none_or(|file| file.strong_count() == 0);
        let all = list(&self.dir).filter_map(|(name, found)| Some((parse(&name)?, found)));
        all.filter(|(digest, _)| is_idle(digest)).collect()
    }

    /// Removes one that no flight continues; gives the bytes that are gone.
    pub(super) fn remove_idle(&self, digest: &Digest) -> u64 {
        // Held until it is gone: a download that begins meanwhile begins with nothing.
        let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if growing.get(digest).is_some_and(|file| file.strong_count() > 0) {
            return 0;
        }
        self.remove(&self.dir.join(digest.hex()))
    }
}

fn list(dir: &Path) -> impl Iterator<Item = (String, Metadata)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?)));
    files.filter(|(_, found)| found.is_file())
}

fn parse(hex: &str) -> Option<Digest> {
    [Algorithm::Sha256, Algorithm::Sha512].iter().find_map(|known| format!("{}:{hex}", known.as_str()).parse().ok())
}

/// Whether it is the disk or the process that has come to its end, and not one file that is bad.
fn exhausted(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let of_disk = matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded | Kind::ReadOnlyFilesystem);
    of_disk || [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error())).contains(&error.raw_os_error())
}

/// A download's file and its share of the bytes in the folder.
struct Share {
    used: Arc<AtomicU64>,
    path: PathBuf,
    /// What is counted for it: the bytes that will come, where that is known.
    counted: u64,
    /// What will be left in the folder when it ends now.
    stays: u64,
    /// Nothing is in the file, which then goes: what is not to be had leaves nothing behind.
    is_empty: bool,
    is_exempt: bool,
}

/// Whether a download counts as content that is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// It does.
    Yes,
    /// It is larger than all that may be kept, and goes when it has been served.
    No,
}

impl Share {
    fn count(&mut self, bytes: u64) {
        // Wrapping is what makes a difference of either sign right.
        self.used.fetch_add(bytes.wrapping_sub(self.counted), Ordering::Relaxed);
        self.counted = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.count(self.stays);
        if self.is_empty {
            // What stays is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Partial {
    /// So many bytes will come.
    pub(super) fn expect(&mut self, total: u64, counted: Counted) {
        match counted {
            Counted::Yes => self.share.count(total.max(self.length)),
            Counted::No => {
                self.share.is_exempt = true;
                self.share.count(0);
            }
        }
    }

    /// How much of `total` bytes is still to be taken from the disk: a killed process may have taken more than it wrote.
    pub(super) fn lacks(&self, total: u64) -> u64 {
        let taken = self.file.metadata().map_or(0, |found| found.blocks().saturating_mul(512));
        total.saturating_sub(taken.max(self.length))
    }

    /// Takes what will come from the disk, so that it is not found full half-way.
    pub(super) fn allocate(&mut self, total: u64) -> io::Result<()> {
        if total <= self.length {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.length, total - self.length) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT)) => {
                // Some of it may have been taken.
                self.file.set_len(self.length)?;
                Err(error.into())
            }
            // Not every file system can.
            _ => Ok(()),
        }
    }

    /// Bytes here so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// For readers.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Adds the next bytes. After an error the file is of no use.
    pub(super) fn append(&mut self, piece: &Bytes) -> io::Result<()> {
        self.file.write_all_at(piece, self.length)?;
        self.share.is_empty = false;
        if self.hashed == self.length {
            self.hasher.update(piece);
            self.hashed += piece.len() as u64;
        }
        self.length += piece.len() as u64;
        self.share.stays = self.length;
        if !self.share.is_exempt {
            self.share.count(self.length.max(self.share.counted));
        }
        Ok(())
    }

    /// Hashes at most so many bytes of what is here but not in the hash.
    pub fn catch_up(&mut self, most: u64) -> io::Result<()> {
        let end = self.length.min(self.hashed.saturating_add(most));
        if self.hashed == end {
            return Ok(());
        }
        let mut buffer = vec![0; READ];
        while self.hashed < end {
            let wanted = buffer.len().min(usize::try_from(end - self.hashed).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut buffer[..wanted], self.hashed)?;
            self.hasher.update(&buffer[..wanted]);
            self.hashed += wanted as u64;
        }
        Ok(())
    }

    /// Upstream serves this content to anyone.
    pub fn mark_public(&mut self) -> io::Result<()> {
        if !self.is_public {
            self.file.set_permissions(Permissions::from_mode(PUBLIC))?;
            self.is_public = true;
        }
        Ok(())
    }

    /// Whether some source serves this content to anyone.
    pub fn is_public(&self) -> bool {
        self.is_public
    }

    /// Whether what is here is already everything.
    pub fn is_whole(&mut self) -> io::Result<bool> {
        self.catch_up(u64::MAX)?;
        Ok(self.hasher.so_far() == self.digest)
    }

    /// Compares hash and digest; what does not match is removed.
    pub fn verify(mut self) -> io::Result<Option<Verified>> {
        let caught_up = self.catch_up(u64::MAX);
        let Self { digest, file, hasher, hashed: _, length, is_public: _, mut share } = self;
        share.is_empty = false;
        if caught_up.is_ok() && hasher.finish() == digest {
            return Ok(Some(Verified { digest, file, length, share }));
        }
        // If it stays, it is hashed and found wrong again the next time.
        if fs::remove_file(&share.path).is_ok() {
            share.stays = 0;
        }
        caught_up.map(|()| None)
    }

    /// Removes it.
    pub fn discard(mut self) {
        self.share.is_empty = false;
        // What stays is continued, or collected, later.
        if fs::remove_file(&self.share.path).is_ok() {
            self.share.stays = 0;
        }
    }
}

impl Verified {
    /// What it is.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its content.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Its size.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn path(&self) -> &Path {
        &self.share.path
    }

    /// Its file stands elsewhere now.
    pub(super) fn gone(mut self) {
        self.share.stays = 0;
    }

    /// Removes it; whoever reads it may read on.
    pub(super) fn discard(mut self) {
        if fs::remove_file(&self.share.path).is_ok() {
            self.share.stays = 0;
        }
    }
}
