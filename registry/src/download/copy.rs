//! From a body to the file: in batches, skipping what is here already. Knows nothing of why a body ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt;

use super::Download;
use crate::{
    failure::Failure,
    metrics,
    source::Source,
    store::partial::Partial,
    upstream::{BlobStream, Broken, CROWDED_DRIP},
};

/// Bytes written and hashed at once.
const BATCH: usize = 256 * 1024;
/// Bytes of an earlier process's part that are hashed with each batch: it is in the hash long before the rest is here.
const CATCH_UP: u64 = 8 * 1024 * 1024;

/// A source that sends less than this in a second ...
const DRIP: u64 = 32 * 1024;
/// ... for so long is left where another one may be faster; with less than `CROWDED_DRIP`, also where it only keeps
/// other downloads waiting: a relay has left it by then.
const WINDOW: Duration = Duration::from_secs(5);

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// The body ended as it should.
    ToTheEnd,
    /// Nothing came for too long, or hardly anything.
    Stalled,
    /// It broke off, or held more than it should; what came is kept.
    BrokenOff,
}

impl Download {
    pub(super) async fn copy(
        &self,
        source: Source,
        mut stream: BlobStream,
        mut partial: Partial,
    ) -> Result<(Partial, Copied), Failure> {
        // A source may ignore ranges and begin anew.
        let mut skip = partial.length() - stream.start;
        let mut pace = Pace::default();
        loop {
            let asked = Instant::now();
            let (batch, end) = next_batch(&mut stream, &mut skip).await;
            let received = batch.iter().map(|piece| piece.len() as u64).sum::<u64>();
            let rate = pace.rate(received, asked.elapsed());
            if received > 0 {
                self.metrics.content(counter(source), received);
                if self.total.is_some_and(|total| partial.length() + received > total) {
                    return Ok((partial, Copied::BrokenOff));
                }
                partial = self.write(partial, batch).await?;
                self.publisher.grow(partial.file(), self.total, partial.length());
            }
            if let Some(copied) = end {
                return Ok((partial, copied));
            }
            let Some(rate) = rate.filter(|rate| *rate < DRIP && !stream.is_passed_on) else { continue };
            if self.has_another_than(source) || (rate < CROWDED_DRIP && self.sources.is_crowded(source)) {
                if let Source::Replica(replica) = source {
                    self.sources.peers().drips(replica);
                }
                return Ok((partial, Copied::Stalled));
            }
        }
    }

    /// Whether another source is worth a try; where all are slow, the one at hand goes on.
    fn has_another_than(&self, source: Source) -> bool {
        let tried = [&self.avoid[..], &[source]].concat();
        !self.avoid.contains(&source) && self.sources.has_more(&tried)
    }

    async fn write(&self, mut partial: Partial, batch: Vec<Bytes>) -> Result<Partial, Failure> {
        let store = Arc::clone(&self.store);
        self.on_disk(move || match store.append(&mut partial, &batch).and_then(|()| partial.catch_up(CATCH_UP)) {
            Ok(()) => Ok(partial),
            Err(error) => {
                // Gives the space back if it was the disk's end that was met.
                partial.discard();
                Err(error)
            }
        })
        .await
    }
}

/// How much comes while it is waited for. Time that the disk takes is not the source's.
#[derive(Default)]
struct Pace {
    waited: Duration,
    came: u64,
}

impl Pace {
    /// How much came per second in the window, if it ends now.
    fn rate(&mut self, bytes: u64, waited: Duration) -> Option<u64> {
        self.waited += waited;
        self.came += bytes;
        if self.waited < WINDOW {
            return None;
        }
        let Self { waited, came } = std::mem::take(self);
        Some(came / waited.as_secs())
    }
}

/// What counts the bytes of a source.
pub(super) fn counter(source: Source) -> metrics::Source {
    match source {
        Source::Replica(_) => metrics::Source::peer,
        Source::Registry(0) => metrics::Source::upstream,
        Source::Registry(_) => metrics::Source::alternate,
    }
}

/// Waits for one piece and takes what else is here already; also says whether that was the end.
async fn next_batch(stream: &mut BlobStream, skip: &mut u64) -> (Vec<Bytes>, Option<Copied>) {
    let mut batch = Vec::new();
    let mut size = 0;
    let mut next = stream.next().await;
    loop {
        match next {
            Ok(None) => return (batch, Some(Copied::ToTheEnd)),
            Err(Broken::Stalled) => return (batch, Some(Copied::Stalled)),
            Err(Broken::Off) => return (batch, Some(Copied::BrokenOff)),
            Ok(Some(mut piece)) => {
                let skipped = piece.len().min(usize::try_from(*skip).unwrap_or(usize::MAX));
                *skip -= skipped as u64;
                let piece = piece.split_off(skipped);
                size += piece.len();
                batch.push(piece);
            }
        }
        if size >= BATCH {
            return (batch, None);
        }
        match stream.next().now_or_never() {
            Some(ready) => next = ready,
            None => return (batch, None),
        }
    }
}
