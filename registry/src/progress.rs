//! What is known of a download while it runs, and the only ways in which that may change. Knows neither where bytes
//! come from nor who reads them.
//!
//! ```text
//!           header                hash right
//! Asking ------------> Growing ---------------> Done
//!    \   <------------   |
//!     \   start over,    | wrong, gone for good, disk full, killed
//!      \  nobody has     v
//!       '-------------> Failed
//!          begun
//! ```
//!
//! Three rules hold it together; the tests below walk through every order of events:
//! - The last byte is published by `Done` alone, so nothing of full length goes out unverified.
//! - What a reader has begun to read never changes under it: neither the file nor the size, nor does it ever shrink.
//! - Whoever waits is always woken: every download ends in `Done` or `Failed`, or its end is dropped.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use tokio::sync::watch;

use crate::{failure::Failure, range::ByteRange, reference::RepositoryName};

/// What readers see of a download.
#[derive(Clone, Debug)]
pub enum Progress {
    /// No source has answered yet.
    Asking,
    /// Bytes are coming.
    Growing {
        /// Where they are.
        file: Arc<File>,
        /// How many there will be, if the source says so.
        total: Option<u64>,
        /// How many may be served; never all of them.
        servable: u64,
    },
    /// Everything is here and right.
    Done {
        /// Where.
        file: Arc<File>,
        /// How many bytes.
        size: u64,
    },
    /// No more will come.
    Failed(Failure),
}

impl Progress {
    /// `length` bytes of `total` are here.
    fn growing(file: Arc<File>, total: Option<u64>, length: u64) -> Self {
        let most = total.unwrap_or(length).saturating_sub(1);
        Self::Growing { file, total, servable: length.min(most) }
    }

    /// Whether a request for `range` can be answered: with its first byte, or with what speaks against it.
    pub fn can_begin(&self, range: Option<ByteRange>) -> bool {
        match self {
            Self::Asking => false,
            Self::Done { .. } | Self::Failed(_) => true,
            Self::Growing { total, servable, .. } => {
                let start = match (range, total) {
                    (Some(range), Some(total)) => range.within(*total).map(|span| span.start),
                    _ => Some(0),
                };
                // A range that lies outside can be answered at once.
                start.is_none_or(|start| *servable > start)
            }
        }
    }

    /// Back to the start, unless a reader has begun: it must not see other bytes than it has got already.
    fn start_over(&mut self, has_begun: bool) -> bool {
        let may = !has_begun && matches!(self, Self::Asking | Self::Growing { .. });
        if may {
            *self = Self::Asking;
        }
        may
    }
}

/// Where the bytes of a download come from at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Feed {
    /// Nobody has been found yet who sends them.
    None = 0,
    /// Another replica.
    Peer = 1,
    /// A registry.
    Registry = 2,
}

/// What both ends know besides the progress.
#[derive(Default)]
struct Facts {
    /// A reader has been told a size, or has bytes.
    has_begun: AtomicBool,
    /// Whether it came without a login.
    is_public: AtomicBool,
    feed: AtomicU8,
}

/// The end that the download holds.
pub struct Publisher {
    progress: watch::Sender<Progress>,
    facts: Arc<Facts>,
}

/// The end that readers hold: a place in a flight.
#[derive(Clone)]
pub struct Seat {
    /// What is seen from it.
    pub progress: watch::Receiver<Progress>,
    /// On whose behalf the content is asked for.
    pub repository: RepositoryName,
    facts: Arc<Facts>,
}

/// Both ends of a download that begins.
pub fn begin(repository: RepositoryName) -> (Publisher, Seat) {
    let (sender, progress) = watch::channel(Progress::Asking);
    let facts = Arc::<Facts>::default();
    (Publisher { progress: sender, facts: Arc::clone(&facts) }, Seat { progress, repository, facts })
}

impl Publisher {
    /// Whether readers can have been told a size and can have read.
    pub fn has_begun(&self) -> bool {
        let is_asking = matches!(*self.progress.borrow(), Progress::Asking);
        !is_asking && self.facts.has_begun.load(Ordering::Acquire)
    }

    /// `length` bytes of `total` are here.
    pub fn grow(&self, file: &Arc<File>, total: Option<u64>, length: u64) {
        self.progress.send_replace(Progress::growing(Arc::clone(file), total, length));
    }

    /// Makes readers wait for a new start; false if one has begun already.
    pub fn start_over(&self) -> bool {
        // Readers begin with the lock held for reading, this runs with it held for writing: none slips through.
        self.progress.send_if_modified(|progress| progress.start_over(self.facts.has_begun.load(Ordering::Acquire)))
    }

    /// Everything is here and right.
    pub fn done(&self, file: Arc<File>, size: u64) {
        self.progress.send_replace(Progress::Done { file, size });
    }

    /// No more will come.
    pub fn fail(&self, failure: Failure) {
        self.progress.send_replace(Progress::Failed(failure));
    }

    /// Whether the content came without a login.
    pub fn set_public(&self, is_public: bool) {
        self.facts.is_public.store(is_public, Ordering::Release);
    }

    /// Where the bytes come from now.
    pub fn set_feed(&self, feed: Feed) {
        self.facts.feed.store(feed as u8, Ordering::Release);
    }
}

impl Seat {
    /// Waits until a request for `range` can be answered, and counts as a reader from then on.
    pub async fn begin(&mut self, range: Option<ByteRange>) -> Progress {
        let Ok(begun) = self.progress.wait_for(|progress| progress.can_begin(range)).await else {
            return Progress::Failed(Failure::Stopping);
        };
        // With the lock still held, so that the download cannot start over in between.
        self.facts.has_begun.store(true, Ordering::Release);
        begun.clone()
    }

    /// Waits until the download is over and what came is committed: its task drops its end of the channel last.
    pub async fn landed(mut self) -> Result<(), Failure> {
        while self.progress.changed().await.is_ok() {}
        match &*self.progress.borrow() {
            Progress::Done { .. } => Ok(()),
            Progress::Failed(failure) => Err(*failure),
            Progress::Asking | Progress::Growing { .. } => Err(Failure::Stopping),
        }
    }

    /// Whether the content came without a login; known once bytes come.
    pub fn is_public(&self) -> bool {
        self.facts.is_public.load(Ordering::Acquire)
    }

    /// Where the bytes come from now.
    pub fn feed(&self) -> Feed {
        match self.facts.feed.load(Ordering::Acquire) {
            1 => Feed::Peer,
            2 => Feed::Registry,
            _ => Feed::None,
        }
    }

    /// Whether no more will come.
    pub fn has_failed(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Failed(_))
    }

    /// Whether both are places in the same flight.
    pub fn is_beside(&self, other: &Self) -> bool {
        self.progress.same_channel(&other.progress)
    }
}

#[cfg(test)]
mod tests;
