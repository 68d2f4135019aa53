//! The cache's folder. Plain files, no database: a cache may forget, it may not lie. Everything here blocks, so callers
//! on the runtime go through `blocking`.

pub mod blobs;
pub mod contact;
pub mod links;
pub mod lock;
pub mod partial;
pub mod pinned;
pub mod size;
pub mod space;
pub mod tags;
mod write;

use std::{io, path::PathBuf, sync::Arc};

use self::{
    blobs::Blobs, contact::LastContact, links::Links, lock::Lock, partial::Partials, pinned::Pinned, size::CacheSize,
    space::Space, tags::Tags, write::Writer,
};
use crate::registry_host::RegistryHost;

/// The folder and its parts:
///
/// ```text
/// DIR/blobs/sha256/ab/<hex>                committed content, manifests too; mtime = last use (touched at most hourly);
///                                          readable by others = fetched without a login, so anyone may have it
/// DIR/partial/<hex>                        growing download, re-hashed when resumed; *.tmp: records being written
/// DIR/repositories/<name>/_tags/<tag>      {current, previous, last complete, validated at, etag}
/// DIR/repositories/<name>/_links/<hex>     {kind, media type, size}: this repository has this digest
/// DIR/quarantine/                          what turned out to be wrong
/// DIR/LOCK                                 held while in use; names the registry; mtime = upstream's last good answer
/// ```
///
/// Each file is renamed into place when it is whole. Content is synced before that, so what stands under `blobs` is
/// right after a power loss too; records are not, and an empty or broken record is the same as none.
pub struct Store {
    /// Committed content.
    pub blobs: Blobs,
    /// Downloads that have not ended.
    pub partials: Partials,
    /// What eviction must leave alone.
    pub pinned: Pinned,
    /// How much may be kept.
    pub space: Space,
    /// What tags mean.
    pub tags: Tags,
    /// Which repository has which digest.
    pub links: Links,
    /// When upstream last gave a good answer.
    pub contact: Arc<LastContact>,
    _lock: Lock,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A folder or file cannot be made.
    #[error("--data-dir: cannot write to {path}; it must be a folder that this user may write to")]
    Create {
        /// What could not be made.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("--data-dir: held by another process (LOCK); one cache per folder")]
    Held,
    /// It was filled from another registry.
    #[error("--data-dir: belongs to registry {owner} (LOCK); give {wanted} a folder of its own")]
    OtherRegistry {
        /// Whose it is.
        owner: String,
        /// Whose it was to be.
        wanted: RegistryHost,
    },
}

impl Store {
    /// Takes the folder for `registry`, making it if needed. Looks at none of its content, however much there is.
    pub fn open(dir: PathBuf, registry: &RegistryHost, size: CacheSize) -> Result<Self, Unusable> {
        let make = |path: PathBuf| match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(Unusable::Create { path, source }),
        };
        let dir = make(dir)?;
        let lock = Lock::take(&dir, registry)?;
        let (blobs, partial) = (make(dir.join("blobs"))?, make(dir.join("partial"))?);
        let (repositories, quarantine) = (make(dir.join("repositories"))?, make(dir.join("quarantine"))?);
        let writer = Writer::new(partial.clone());
        writer.clear();
        Ok(Self {
            blobs: Blobs::new(blobs, quarantine, writer.clone()),
            partials: Partials::new(partial),
            pinned: Pinned::default(),
            space: Space::new(dir, size),
            tags: Tags::new(repositories.clone(), writer.clone()),
            links: Links::new(repositories, writer),
            contact: Arc::new(lock.contact()),
            _lock: lock,
        })
    }
}

/// Runs blocking work; `None` only if the runtime is going down or the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
