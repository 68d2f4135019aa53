//! Which repository has which digest, and as what: a proof that upstream once served it from there.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{read, write::Writer};
use crate::{digest::Digest, recent::Changes, reference::RepositoryName};

/// As what a repository has a digest. A manifest is none of its blobs, and the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Served under `/manifests/`.
    Manifest,
    /// Served under `/blobs/`.
    Blob,
}

/// `_links/<hex>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// As what.
    pub kind: Kind,
    /// Upstream's media type; for blobs only informative.
    pub media_type: String,
    /// The size, where it was known: what is on disk must have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// No more than an index says that it is a manifest: upstream has not served it as one yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_hearsay: bool,
}

/// All links.
pub struct Links {
    repositories: PathBuf,
    writer: Writer,
    changes: Changes,
}

impl Links {
    pub(super) fn new(repositories: PathBuf, writer: Writer, changes: Changes) -> Self {
        Self { repositories, writer, changes }
    }

    fn path(&self, repository: &RepositoryName, digest: &Digest) -> PathBuf {
        self.repositories.join(repository.as_str()).join("_links").join(digest.hex())
    }

    /// The link, if the repository has the digest.
    pub fn get(&self, repository: &RepositoryName, digest: &Digest) -> Option<Link> {
        read::small(&self.path(repository, digest))
    }

    /// Adds or replaces a link.
    pub fn put(&self, repository: &RepositoryName, digest: &Digest, link: &Link) -> io::Result<()> {
        if self.get(repository, digest).as_ref() == Some(link) { Ok(()) } else { self.write(repository, digest, link) }
    }

    fn write(&self, repository: &RepositoryName, digest: &Digest, link: &Link) -> io::Result<()> {
        let written = self.writer.record(&self.path(repository, digest), &serde_json::to_vec(link)?);
        self.changes.note();
        written
    }

    /// Adds a link unless there is one: what upstream served outranks what a manifest says of it. Gives the size that
    /// stands there now.
    pub fn add(&self, repository: &RepositoryName, digest: &Digest, link: &Link) -> io::Result<Option<u64>> {
        if let Some(known) = self.get(repository, digest) {
            return Ok(known.size);
        }
        self.write(repository, digest, link)?;
        Ok(link.size)
    }

    /// Corrects the size of a link, if there is one.
    pub fn set_size(&self, repository: &RepositoryName, digest: &Digest, size: u64) -> io::Result<()> {
        match self.get(repository, digest) {
            Some(link) if link.size != Some(size) => self.write(repository, digest, &Link { size: Some(size), ..link }),
            _ => Ok(()),
        }
    }
}
