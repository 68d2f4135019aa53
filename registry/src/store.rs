//! The cache's folder. Plain files, no database: a cache may forget, it may not lie. Everything here blocks, so callers
//! on the runtime go through `blocking`.

pub mod blobs;
pub mod contact;
pub mod durable;
mod evict;
pub mod links;
pub mod lists;
pub mod lock;
mod marks;
pub mod partial;
pub mod pin_list;
pub mod pinned;
mod quarantine;
mod read;
mod recency;
mod scrub;
mod shelves;
pub mod size;
pub mod space;
mod sweep;
pub mod tags;
mod write;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::SystemTime,
};

use bytes::Bytes;
use tracing::debug;

use self::{
    blobs::Blobs,
    contact::LastContact,
    durable::{Boot, Durable},
    evict::Evictor,
    links::Links,
    lists::Lists,
    lock::Lock,
    marks::Marks,
    partial::{Counted, Partial, Partials, Verified},
    pin_list::PinList,
    pinned::Pinned,
    quarantine::Quarantine,
    size::CacheSize,
    space::Space,
    tags::Tags,
    write::Writer,
};
pub use self::{evict::Effort, recency::Due};
use crate::{
    digest::Digest,
    manifest::Manifest,
    recent::{Changes, Recent},
    reference::RepositoryName,
    registry_host::RegistryHost,
};

/// The folder and its parts:
///
/// ```text
/// DIR/blobs/sha256/ab/<hex>                committed content, manifests too; mtime = last use (touched at most hourly);
///                                          readable by others = fetched without a login, so anyone may have it
/// DIR/partial/<hex>                        growing download, re-hashed when resumed; *.tmp: records being written
/// DIR/repositories/<name>/_tags/<tag>      {current, previous, last complete, validated at, etag}
/// DIR/repositories/<name>/_links/<hex>     {kind, media type, size}: this repository has this digest
/// DIR/lists/<hash>                         tags and referrers, a page each, as upstream wrote them; mtime = when it did
/// DIR/quarantine/                          what turned out to be wrong: at most a week, 64 files, 5 % of the limit
/// DIR/marks-<boot id>                      which files were verified in this boot, 8 bytes each; see marks.rs
/// DIR/durable                              {boot id, generation, synced until}: what surely reached the disk
/// DIR/pins.json                            the images that must stay, as last asked for
/// DIR/LOCK                                 held while in use; names the registry; mtime = upstream's last good answer
/// ```
///
/// Each file is renamed into place when it is whole, and the file system is synced now and then: a killed process loses
/// nothing. After a power cut any file may be empty, short or wrong. An empty or broken record is the same as none, and
/// content is hashed once in each boot before it is trusted.
pub struct Store {
    /// Committed content.
    pub blobs: Blobs,
    /// Downloads that have not ended.
    pub partials: Partials,
    /// What eviction must leave alone.
    pub pinned: Pinned,
    /// The images that it is about.
    pub pin_list: PinList,
    /// How much may be kept.
    pub space: Arc<Space>,
    /// What tags mean.
    pub tags: Tags,
    /// Which repository has which digest.
    pub links: Links,
    /// Lists as upstream last wrote them.
    pub lists: Lists,
    /// Manifests that a repository was found to have a moment ago, and since when they are here.
    pub recent_manifests: Recent<(RepositoryName, Digest), (Manifest, SystemTime)>,
    /// When upstream last gave a good answer.
    pub contact: Arc<LastContact>,
    /// What was done to keep the folder in order.
    pub tally: Arc<Tally>,
    durable: Durable,
    evictor: Evictor,
    repositories: PathBuf,
    _lock: Lock,
}

/// Counts what the store does of its own accord.
#[derive(Debug, Default)]
pub struct Tally {
    /// Files evicted.
    pub evicted: AtomicU64,
    /// Their bytes.
    pub evicted_bytes: AtomicU64,
    /// Files that turned out to be wrong.
    pub quarantined: AtomicU64,
    /// Bytes hashed by the scrub.
    pub scrubbed_bytes: AtomicU64,
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
        Self::open_in(&Boot::current(), dir, registry, size)
    }

    /// The same, in a given boot of the machine.
    pub fn open_in(boot: &Boot, dir: PathBuf, registry: &RegistryHost, size: CacheSize) -> Result<Self, Unusable> {
        let make = |path: PathBuf| match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(Unusable::Create { path, source }),
        };
        let dir = make(dir)?;
        let lock = Lock::take(&dir, registry)?;
        let (blobs, partial) = (make(dir.join("blobs"))?, make(dir.join("partial"))?);
        let (repositories, quarantine) = (make(dir.join("repositories"))?, make(dir.join("quarantine"))?);
        let lists = make(dir.join("lists"))?;
        // What an earlier process wrote may not be synced.
        let is_dirty = Arc::new(AtomicBool::new(true));
        let writer = Writer::new(partial.clone(), Arc::clone(&is_dirty));
        writer.clear();
        let (space, tally) = (Arc::new(Space::new(dir.clone(), size)), Arc::new(Tally::default()));
        let marks = Arc::new(Marks::open(&dir, boot.as_str()));
        let durable = Durable::open(&dir, boot.clone(), is_dirty);
        let partials = Partials::new(partial, durable.doubtful_from());
        durable.begin();
        let quarantine = Quarantine::new(quarantine, Arc::clone(&space), Arc::clone(&tally));
        let relinked = Changes::default();
        Ok(Self {
            blobs: Blobs::new(blobs, marks, quarantine, writer.clone()),
            partials,
            pinned: Pinned::default(),
            pin_list: PinList::new(dir.join("pins.json"), writer.clone()),
            space,
            recent_manifests: Recent::new(relinked.clone()),
            tags: Tags::new(repositories.clone(), writer.clone()),
            links: Links::new(repositories.clone(), writer.clone(), relinked),
            lists: Lists::new(lists, writer),
            contact: Arc::new(lock.contact()),
            tally,
            durable,
            evictor: Evictor::default(),
            repositories,
            _lock: lock,
        })
    }

    /// A download of so many bytes begins: room for them is made and, on disk, taken.
    pub fn reserve(&self, partial: &mut Partial, total: u64) -> io::Result<()> {
        if self.is_too_large(total) {
            // It will not be kept, and may be a lie: nothing has to go for it.
            partial.expect(total, Counted::No);
            return self.take(partial, total);
        }
        partial.expect(total, Counted::Yes);
        self.has_grown();
        self.take(partial, total).or_else(|error| {
            self.free_if_full(error, total)?;
            self.take(partial, total)
        })
    }

    /// Takes the room for so many bytes, or nothing: merely tried, it would take all that is left from everyone else before
    /// it fails.
    fn take(&self, partial: &mut Partial, total: u64) -> io::Result<()> {
        if self.space.has_room(partial.lacks(total)) {
            partial.allocate(total)
        } else {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    /// Adds the next bytes of a download. After an error its file is of no use.
    pub fn append(&self, partial: &mut Partial, pieces: &[Bytes]) -> io::Result<()> {
        for piece in pieces {
            partial.append(piece).or_else(|error| {
                self.free_if_full(error, piece.len() as u64)?;
                partial.append(piece)
            })?;
        }
        Ok(())
    }

    /// Keeps a verified download, if it fits.
    pub fn keep(&self, verified: Verified) -> io::Result<()> {
        if self.is_too_large(verified.length()) {
            debug!(digest = verified.digest().short(), "larger than the cache may be: served and not kept");
            verified.discard();
            return Ok(());
        }
        self.blobs.commit(verified)?;
        self.has_grown();
        Ok(())
    }

    /// Keeps small content whose digest the caller has just computed.
    pub fn keep_small(&self, digest: &Digest, bytes: &[u8], is_public: bool) -> io::Result<()> {
        self.blobs.put(digest, bytes, is_public).or_else(|error| {
            self.free_if_full(error, bytes.len() as u64)?;
            self.blobs.put(digest, bytes, is_public)
        })?;
        self.has_grown();
        Ok(())
    }

    /// Keeps the list of pins.
    pub fn keep_pins(&self, list: &[u8]) -> io::Result<()> {
        self.pin_list.put(list).or_else(|error| {
            self.free_if_full(error, list.len() as u64)?;
            self.pin_list.put(list)
        })
    }

    /// Makes room if the disk is full; any other error stands.
    fn free_if_full(&self, error: io::Error, bytes: u64) -> io::Result<()> {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.keep_limit(Effort::Thorough);
            self.free(bytes);
            Ok(())
        } else {
            Err(error)
        }
    }

    fn is_too_large(&self, bytes: u64) -> bool {
        self.space.limit().is_some_and(|limit| bytes > limit)
    }

    fn has_grown(&self) {
        if !self.keep_limit(Effort::Quick) {
            self.space.wake();
        }
    }

    /// Reads what was too long to be read at the start.
    pub fn recall(&self) {
        self.blobs.marks.load();
    }

    /// Writes down when what was used, and what was verified.
    pub fn remember(&self, due: Due) {
        self.blobs.remember(due);
    }

    /// Brings to disk what was written.
    pub fn sync(&self) {
        self.durable.sync();
    }
}

/// Runs blocking work; `None` only if the runtime is going down or the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
