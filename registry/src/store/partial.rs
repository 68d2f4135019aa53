//! Downloads that have not ended: `Partial` grows, `verify` makes it `Verified`, and only that can be committed.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::blobs::{PRIVATE, PUBLIC};
use crate::digest::{Digest, Hasher};

const READ: usize = 256 * 1024;

/// The folder of growing downloads.
pub struct Partials {
    dir: PathBuf,
}

/// A growing download: every byte up to `length` is on its way to disk and in the hash.
pub struct Partial {
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    length: u64,
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

    /// Continues what an earlier download left, hashing it anew, or starts with nothing.
    pub fn open(&self, digest: &Digest) -> io::Result<Partial> {
        let path = self.dir.join(digest.hex());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(PRIVATE).open(&path)?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; READ];
        let mut length = 0;
        loop {
            let read = file.read_at(&mut buffer, length)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            length += read as u64;
        }
        Ok(Partial { digest: digest.clone(), path, file: Arc::new(file), hasher, length })
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
            self.hasher.update(piece);
            self.length += piece.len() as u64;
        }
        Ok(())
    }

    /// Upstream serves this content to anyone.
    pub fn mark_public(&self) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(PUBLIC))
    }

    /// Whether what is here is already everything.
    pub fn is_whole(&self) -> bool {
        self.hasher.so_far() == self.digest
    }

    /// Compares hash and digest; what does not match is removed.
    pub fn verify(self) -> Option<Verified> {
        let Self { digest, path, file, hasher, length } = self;
        if hasher.finish() == digest {
            Some(Verified { digest, path, file, length })
        } else {
            // If it stays, it is hashed and found wrong again the next time.
            let _ = fs::remove_file(path);
            None
        }
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
