//! Committed content, by digest. What is here was verified before it was put here; whether it still is what it was is
//! known by its mark, and otherwise found out by hashing it.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{Advice, fadvise},
    io::Errno,
};
use tracing::warn;

use super::{
    marks::{Mark, Marks},
    partial::Verified,
    quarantine::Quarantine,
    read,
    recency::{Due, Recency},
    shelves::Shelves,
    write::Writer,
};
use crate::digest::{Digest, Hasher};

/// File mode of content that was fetched with a login.
pub(super) const PRIVATE: u32 = 0o640;
/// File mode of content that upstream serves to anyone.
pub(super) const PUBLIC: u32 = PRIVATE | OTHERS_MAY_READ;
const OTHERS_MAY_READ: u32 = 0o004;
/// What is no longer than this is hashed where it is opened: that takes no longer than a change of threads.
const HASH_AT_ONCE: u64 = 256 * 1024;
const READ: usize = 256 * 1024;

/// An open blob. It stays readable whatever happens to its name.
#[derive(Clone)]
pub struct StoredBlob {
    /// Its content.
    pub file: Arc<File>,
    /// Its size.
    pub size: u64,
    /// Whether it was fetched without a login.
    pub is_public: bool,
    /// When it came here.
    pub stored: SystemTime,
    /// Whether its bytes are known to be right. If not, none may be trusted before `Blobs::verify` says so.
    pub is_verified: bool,
    /// Whether a manifest says that it has another size: one of the two is wrong.
    pub is_disputed: bool,
    marks: Arc<Marks>,
}

/// What can be said of a blob without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is not here.
    Absent,
    /// It is here by its name.
    Unverified,
    /// It was hashed and has not changed since.
    Verified,
}

/// All committed content.
pub struct Blobs {
    pub(super) shelves: Shelves,
    pub(super) marks: Arc<Marks>,
    pub(super) recency: Recency,
    pub(super) quarantine: Quarantine,
    writer: Writer,
}

impl Blobs {
    pub(super) fn new(dir: PathBuf, marks: Arc<Marks>, quarantine: Quarantine, writer: Writer) -> Self {
        Self { shelves: Shelves::new(dir), marks, recency: Recency::default(), quarantine, writer }
    }

    /// Opens a blob for reading. What cannot be opened, or is empty and should not be, is not here.
    pub fn open(&self, digest: &Digest) -> Option<StoredBlob> {
        let path = self.shelves.path(digest);
        let opened = fs::symlink_metadata(&path).and_then(|found| match self.recency.share(digest, found.ino()) {
            Some(file) => Ok((file, found)),
            None => open_file(&path).inspect(|(file, found)| self.recency.opened(digest, found.ino(), file)),
        });
        match opened {
            Ok((file, found)) => self.described(digest, file, &found),
            Err(error) => {
                if spoils(&error) {
                    warn!(digest = digest.short(), %error, "blob unreadable");
                    self.set_aside(digest, None);
                }
                None
            }
        }
    }

    /// The same, verified, however long that takes.
    pub fn open_verified(&self, digest: &Digest) -> Option<StoredBlob> {
        let blob = self.open(digest)?;
        if blob.is_verified {
            return Some(blob);
        }
        self.verify(digest, &blob, |_| false)?.then(|| StoredBlob { is_verified: true, ..blob })
    }

    fn described(&self, digest: &Digest, file: Arc<File>, found: &Metadata) -> Option<StoredBlob> {
        if found.len() == 0 && !digest.is_of_nothing() {
            return None;
        }
        let mut blob = StoredBlob {
            file,
            size: found.len(),
            is_public: is_public(found),
            stored: found.created().or_else(|_| found.modified()).ok()?,
            is_verified: self.marks.has(Mark::of(found)),
            is_disputed: false,
            marks: Arc::clone(&self.marks),
        };
        if !blob.is_verified && blob.size <= HASH_AT_ONCE {
            blob.is_verified = self.verify(digest, &blob, |_| false)?;
            return blob.is_verified.then_some(blob);
        }
        Some(blob)
    }

    /// Hashes a blob. What is wrong or cannot be read is set aside. `read` is told of the bytes of each part; `None` if it said true,
    /// which ends it.
    pub fn verify(&self, digest: &Digest, blob: &StoredBlob, read: impl FnMut(u64) -> bool) -> Option<bool> {
        self.verify_file(digest, &blob.file, read)
    }

    /// Hashes a blob without using it, if it changed after `since`; `read` is told of each part and ends it by true.
    pub(super) fn inspect(&self, digest: &Digest, since: Option<SystemTime>, read: impl FnMut(u64) -> bool) {
        let Ok((file, found)) = open_file(&self.shelves.path(digest)) else { return };
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(found.ctime().cast_unsigned(), u32::try_from(found.ctime_nsec()).unwrap_or(0));
        if since.is_none_or(|since| changed > since) {
            // Nobody is going to read these pages soon because of this.
            let _ = fadvise(&file, 0, None, Advice::NoReuse);
            let _ = self.verify_file(digest, &file, read);
        }
    }

    fn verify_file(&self, digest: &Digest, file: &File, read: impl FnMut(u64) -> bool) -> Option<bool> {
        let before = file.metadata().map(|found| Mark::of(&found));
        let is_right = match hash(digest, file, read) {
            Ok(None) => return None,
            Ok(Some(found)) => found == *digest,
            Err(error) => {
                warn!(digest = digest.short(), %error, "blob unreadable");
                false
            }
        };
        match (is_right, before, file.metadata().map(|found| Mark::of(&found))) {
            // If it was written to meanwhile, nobody knows what it is now.
            (true, Ok(before), Ok(after)) if before == after => self.marks.add(after),
            (true, ..) => {}
            (false, ..) => self.set_aside(digest, Some(file)),
        }
        Some(is_right)
    }

    /// Whether a blob is here, in the size it should have where that is known.
    pub fn has(&self, digest: &Digest, size: Option<u64>) -> bool {
        self.presence(digest, size) != Presence::Absent
    }

    /// The same, and whether more is known of it than its name and size.
    pub fn presence(&self, digest: &Digest, size: Option<u64>) -> Presence {
        match fs::symlink_metadata(self.shelves.path(digest)) {
            Ok(found) if !found.is_file() || size.is_some_and(|size| size != found.len()) => Presence::Absent,
            Ok(found) if found.len() == 0 && !digest.is_of_nothing() => Presence::Absent,
            Ok(found) if self.marks.has(Mark::of(&found)) => Presence::Verified,
            Ok(_) => Presence::Unverified,
            Err(_) => Presence::Absent,
        }
    }

    /// Takes over a verified download.
    pub(super) fn commit(&self, verified: Verified) -> io::Result<()> {
        let inode = self.place(verified.path(), verified.digest(), verified.file())?;
        // Readers of the flight go on reading it.
        self.recency.opened(verified.digest(), inode, verified.file());
        self.writer.soil();
        verified.gone();
        Ok(())
    }

    /// Stores small content whose digest the caller has just computed.
    pub(super) fn put(&self, digest: &Digest, bytes: &[u8], is_public: bool) -> io::Result<()> {
        // What is public stays public, whoever fetches it again.
        let is_public = is_public || self.open(digest).is_some_and(|blob| blob.is_public);
        let mode = if is_public { PUBLIC } else { PRIVATE };
        self.writer.aside(bytes, mode, |aside, file| self.place(aside, digest, file).map(drop))
    }

    fn place(&self, from: &Path, digest: &Digest, file: &File) -> io::Result<u64> {
        let written = file.metadata()?.modified()?;
        self.shelves.put(from, digest, &self.quarantine)?;
        // Renaming has changed the change time, and not when it was written to. If somebody has, it is hashed by the next.
        let found = file.metadata()?;
        if found.modified()? == written {
            self.marks.add(Mark::of(&found));
        }
        Ok(found.ino())
    }

    /// Takes wrong content out of the way, unless it was `read` from a file that other content has taken the place of since.
    pub fn set_aside(&self, digest: &Digest, read: Option<&File>) {
        let inode = read.and_then(|file| file.metadata().ok()).map(|found| found.ino());
        self.shelves.take(digest, |path| {
            let there = fs::symlink_metadata(path).ok();
            if inode.is_none_or(|inode| there.is_none_or(|there| there.ino() == inode)) {
                warn!(digest = digest.short(), "blob on disk is wrong, set aside");
                self.quarantine.receive(path);
                self.recency.forget(digest);
            }
        });
    }

    /// Bytes of committed content; complete once everything was surveyed.
    pub fn used(&self) -> u64 {
        self.shelves.used()
    }

    /// How many blobs these are.
    pub(super) fn files(&self) -> u64 {
        self.shelves.files()
    }

    /// Writes to the files when they were used, and to the log what was verified.
    pub(super) fn remember(&self, due: Due) {
        for (digest, at) in self.recency.take_due(due) {
            // A lost touch only makes the blob look older than it is.
            let _ = self.touch(&digest, at);
        }
        self.marks.flush();
    }

    /// Setting a time changes the change time, so the mark has to follow.
    fn touch(&self, digest: &Digest, at: SystemTime) -> io::Result<()> {
        let (file, before) = open_file(&self.shelves.path(digest))?;
        if before.modified()? < at {
            file.set_modified(at)?;
            if self.marks.has(Mark::of(&before)) {
                self.marks.add(Mark::of(&file.metadata()?));
                self.marks.forget(Mark::of(&before));
            }
        }
        Ok(())
    }
}

impl StoredBlob {
    /// Its file could not be read: the next who opens it looks closely.
    pub fn doubt(&self) {
        if let Ok(found) = self.file.metadata() {
            self.marks.forget(Mark::of(&found));
        }
    }
}

/// Whether upstream serves the content of a file to anyone.
pub(super) fn is_public(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & OTHERS_MAY_READ != 0
}

fn open_file(path: &Path) -> io::Result<(Arc<File>, Metadata)> {
    let (file, found) = read::plain(OpenOptions::new().read(true), path)?;
    Ok((Arc::new(file), found))
}

/// Whether an error says something of the file, and not of the process or of there being none.
fn spoils(error: &io::Error) -> bool {
    let of_process = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR].map(|errno| Some(errno.raw_os_error()));
    error.kind() != io::ErrorKind::NotFound && !of_process.contains(&error.raw_os_error())
}

/// The digest of a file's content; `None` if `read` said so, which is told of each part.
fn hash(digest: &Digest, file: &File, mut read: impl FnMut(u64) -> bool) -> io::Result<Option<Digest>> {
    let mut hasher = Hasher::new(digest.algorithm());
    let length = file.metadata()?.len();
    let mut buffer = vec![0; READ.min(usize::try_from(length).unwrap_or(READ)).max(1)];
    let mut offset = 0;
    loop {
        let part = file.read_at(&mut buffer, offset)?;
        if part == 0 {
            return Ok(Some(hasher.finish()));
        }
        hasher.update(&buffer[..part]);
        offset += part as u64;
        if read(part as u64) {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        digest::{Algorithm, Digest},
        store::Store,
    };

    #[test]
    fn what_has_taken_the_place_of_wrong_content_stays() {
        let (folder, registry) = (tempfile::tempdir().unwrap(), "docker.io".parse().unwrap());
        let store = Store::open(folder.path().to_owned(), &registry, "1Gi".parse().unwrap()).unwrap();
        let bytes = vec![7; 1 << 20];
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        store.keep_small(&digest, &vec![8; 1 << 20], true).unwrap();
        let wrong = store.blobs.open(&digest).unwrap();
        let mut is_mended = false;
        // A scrub takes its time over what a client finds out, and fetches anew, in a moment.
        let is_right = store.blobs.verify(&digest, &wrong, |_| {
            if !std::mem::replace(&mut is_mended, true) {
                store.blobs.verify(&digest, &wrong, |_| false);
                store.keep_small(&digest, &bytes, true).unwrap();
            }
            false
        });
        assert_eq!((is_right, store.blobs.open_verified(&digest).is_some()), (Some(false), true));
    }
}
