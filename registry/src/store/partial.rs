//! Downloads that have not ended: `Partial` grows, `verify` makes it `Verified`, and only that can be committed.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::blobs::{PRIVATE, PUBLIC, is_public};
use crate::digest::{Digest, Hasher};

const READ: usize = 256 * 1024;

/// The folder of growing downloads.
pub struct Partials {
    dir: PathBuf,
}

/// A growing download: every byte up to `length` is on its way to disk, every byte up to `hashed` in the hash.
pub struct Partial {
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    hashed: u64,
    length: u64,
    is_public: bool,
}

/// A download whose content is that of its digest.
pub struct Verified {
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    length: u64,
}

impl Partials {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Continues what an earlier download left, or starts with nothing. What was left is hashed later, as hashing a
    /// large one first would keep its readers waiting.
    pub fn open(&self, digest: &Digest) -> io::Result<Partial> {
        let path = self.dir.join(digest.hex());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(PRIVATE).open(&path)?;
        let metadata = file.metadata()?;
        let (length, is_public) = (metadata.len(), is_public(&metadata));
        let hasher = Hasher::new(digest.algorithm());
        Ok(Partial { digest: digest.clone(), path, file: Arc::new(file), hasher, hashed: 0, length, is_public })
    }
}

impl Partial {
    /// Bytes here so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// For readers.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Adds the next bytes. After an error the file is of no use.
    pub fn append(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        for piece in pieces {
            self.file.write_all_at(piece, self.length)?;
            if self.hashed == self.length {
                self.hasher.update(piece);
                self.hashed += piece.len() as u64;
            }
            self.length += piece.len() as u64;
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
        let Self { digest, path, file, hasher, hashed: _, length, is_public: _ } = self;
        if caught_up.is_ok() && hasher.finish() == digest {
            return Ok(Some(Verified { digest, path, file, length }));
        }
        // If it stays, it is hashed and found wrong again the next time.
        let _ = fs::remove_file(path);
        caught_up.map(|()| None)
    }

    /// Removes it.
    pub fn discard(self) {
        let _ = fs::remove_file(self.path);
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
        &self.path
    }
}
