//! Response bodies: positioned reads from a file that is complete or still growing. Knows nothing of HTTP's headers.
//!
//! On a plain connection the kernel sends the file (sendfile.rs). Elsewhere a frame is read when the one before has gone
//! out and no earlier, and is as large as the client is fast: a paused reader holds one small frame, a fast one gets
//! 256 KiB per read.

use std::{
    fs::File,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use rustix::{buffer::spare_capacity, io::pread};
use tokio::sync::{oneshot, watch};

use crate::{
    failure::Failure,
    flight::Progress,
    metrics::{self, Held, Metrics},
    sendfile,
    store::{blobs::StoredBlob, blocking},
};

const SMALLEST_FRAME: u64 = 16 * 1024;
const LARGEST_FRAME: u64 = 256 * 1024;
/// A frame holds what the client takes in this time.
const FRAME_TIME: Duration = Duration::from_millis(20);
/// And no more than this part of what the client has taken so far: the kernel takes the first megabytes at full speed for
/// clients that never read it.
const FRAME_PART: u64 = 128;

/// Without a byte for this long a body is cut. Shorter than the relay's patience, longer than the first attempts to resume.
const STALLED: Duration = Duration::from_secs(13);

/// The body of every response.
pub type Body = UnsyncBoxBody<Bytes, BodyBroken>;

/// Why a body ends before its length: the connection is closed, so that the client sees the cut.
#[derive(Debug, thiserror::Error)]
pub enum BodyBroken {
    /// The download failed.
    #[error("download failed: {0}")]
    Download(Failure),
    /// The file cannot be read.
    #[error("cannot read blob")]
    Read(#[source] io::Error),
}

/// A body that is in memory.
pub fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Where bytes come from.
pub enum Source {
    /// A committed blob.
    Stored(StoredBlob),
    /// A flight.
    Flight(watch::Receiver<Progress>),
}

struct Reader {
    source: Source,
    start: u64,
    offset: u64,
    end: Option<u64>,
    frame: u64,
    handed_out: Option<HandedOut>,
    metrics: Arc<Metrics>,
    _held: Held,
}

/// A frame that hyper has been given.
struct HandedOut {
    at: Instant,
    length: u64,
    /// Ends when it has been written.
    written: oneshot::Receiver<()>,
}

/// A frame's bytes, which tell when nobody needs them any more.
struct Lent {
    bytes: Vec<u8>,
    _written: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes from `start` to `end`; without `end`, to wherever the flight ends.
pub fn part(source: Source, start: u64, end: Option<u64>, metrics: Arc<Metrics>) -> Body {
    let held = metrics.reader();
    let (frame, handed_out) = (SMALLEST_FRAME, None);
    let reader = Reader { source, start, offset: start, end, frame, handed_out, metrics, _held: held };
    let frames = stream::try_unfold(reader, |mut reader| async move {
        let frame = reader.next().await?;
        Ok(frame.map(|bytes| (Frame::data(bytes), reader)))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyBroken> {
        if self.end.is_some_and(|end| self.offset >= end) {
            return Ok(None);
        }
        let (file, available) = match &mut self.source {
            Source::Stored(blob) => (Arc::clone(&blob.file), self.end.unwrap_or(self.offset)),
            Source::Flight(progress) => match beyond(progress, self.offset).await {
                Ok(at_hand) => at_hand,
                Err(failure) => {
                    // hyper drops what it has not flushed when a body fails, the header included, and flushes when a
                    // body lets it wait: the client gets all that was right before the cut.
                    tokio::task::yield_now().await;
                    return Err(BodyBroken::Download(failure));
                }
            },
        };
        let available = available.min(self.end.unwrap_or(u64::MAX));
        if available <= self.offset {
            return Ok(None);
        }
        let blob = match &self.source {
            Source::Stored(blob) => Some(blob),
            Source::Flight(_) => None,
        };
        let bytes = match sendfile::frame(&file, blob, self.offset, available - self.offset) {
            Some(bytes) => bytes,
            None => self.read(file, available - self.offset).await?,
        };
        self.offset += bytes.len() as u64;
        self.metrics.sent(bytes.len() as u64);
        if let Source::Stored(_) = self.source {
            self.metrics.content(metrics::Source::disk, bytes.len() as u64);
        }
        Ok(Some(bytes))
    }

    /// Into memory: at once what the page cache holds, elsewhere what the disk has to be waited for.
    async fn read(&mut self, file: Arc<File>, available: u64) -> Result<Bytes, BodyBroken> {
        self.adapt().await;
        let (offset, length) = (self.offset, available.min(self.frame));
        let bytes = match read_at_once(&file, offset, length) {
            Some(bytes) => bytes,
            None => {
                let read = tokio::time::timeout(STALLED, blocking(move || read_at(&file, offset, length))).await;
                let read = read.map_err(|_| BodyBroken::Read(io::ErrorKind::TimedOut.into()))?;
                let read = read.ok_or(BodyBroken::Download(Failure::Stopping))?;
                read.map_err(|error| self.unreadable(error))?
            }
        };
        let (told, written) = oneshot::channel();
        self.handed_out = Some(HandedOut { at: Instant::now(), length: bytes.len() as u64, written });
        Ok(Bytes::from_owner(Lent { bytes, _written: told }))
    }

    fn unreadable(&self, error: io::Error) -> BodyBroken {
        if let Source::Stored(blob) = &self.source {
            blob.doubt();
        }
        BodyBroken::Read(error)
    }

    /// Waits until the frame before is written: hyper would ask for more than a paused reader may hold.
    async fn adapt(&mut self) {
        let Some(HandedOut { at, length, written }) = self.handed_out.take() else { return };
        // It never is told so, but by the end of its teller.
        let _ = written.await;
        let elapsed = at.elapsed().as_secs_f64().max(1e-6);
        let fits = length as f64 / elapsed * FRAME_TIME.as_secs_f64();
        let most = ((self.offset - self.start) / FRAME_PART).clamp(SMALLEST_FRAME, LARGEST_FRAME);
        self.frame = (fits as u64).clamp(SMALLEST_FRAME, most);
    }
}

/// Waits until a flight has a byte at `offset`, or has none to come: in time for the client to resume elsewhere, whatever
/// holds the flight up.
async fn beyond(progress: &mut watch::Receiver<Progress>, offset: u64) -> Result<(Arc<File>, u64), Failure> {
    let reached = progress.wait_for(|progress| match progress {
        Progress::Asking => false,
        Progress::Growing { servable, .. } => *servable > offset,
        Progress::Done { .. } | Progress::Failed(_) => true,
    });
    let reached = tokio::time::timeout(STALLED, reached).await.map_err(|_| Failure::BrokenBody)?;
    match &*reached.map_err(|_| Failure::Stopping)? {
        Progress::Growing { file, servable, .. } => Ok((Arc::clone(file), *servable)),
        Progress::Done { file, size } => Ok((Arc::clone(file), *size)),
        Progress::Failed(failure) => Err(*failure),
        Progress::Asking => Err(Failure::Stopping),
    }
}

fn read_at_once(file: &File, offset: u64, length: u64) -> Option<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(length).ok()?];
    let read = sendfile::read_cached(file, offset, &mut buffer).ok().filter(|read| *read > 0)?;
    buffer.truncate(read);
    Some(buffer)
}

fn read_at(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut buffer = Vec::with_capacity(length);
    // The file is longer than `offset`, or it was cut behind our back.
    if pread(file, spare_capacity(&mut buffer), offset)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.truncate(length);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{
        digest::{Algorithm, Digest},
        store::Store,
    };

    #[test]
    fn a_body_is_cut_where_the_disk_hangs() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let (folder, registry) = (tempfile::tempdir().unwrap(), "docker.io".parse().unwrap());
        let store = Store::open(folder.path().to_owned(), &registry, "1Gi".parse().unwrap()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, &[7; 1000]);
        store.keep_small(&digest, &[7; 1000], true).unwrap();
        let mut blob = store.blobs.open(&digest).unwrap();
        // A file that cannot say what of it is in memory.
        blob.file = Arc::new(File::open("/proc/self/status").unwrap());
        let (release, hung) = mpsc::channel::<()>();
        runtime.spawn_blocking(move || hung.recv());
        runtime.block_on(async {
            let body = part(Source::Stored(blob), 0, Some(1000), Arc::new(Metrics::new(&registry)));
            let read = tokio::spawn(body.collect());
            tokio::task::yield_now().await;
            // It does not go on by itself while something blocks.
            tokio::time::advance(STALLED).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(read.is_finished() && read.await.unwrap().is_err());
        });
        drop(release);
    }
}
