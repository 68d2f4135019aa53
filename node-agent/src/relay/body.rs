//! The body of an answer: streamed from the cache frame by frame as the runtime takes it, never changed. One that stalls or
//! breaks off ends in an error, which closes the runtime's connection: right bytes or a cut connection, nothing else.

use super::ask::Digest;
use super::cache::Cache;
use super::connect::Connection;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A cache that sends nothing of a body for this long is not waited for.
const STALL: Duration = Duration::from_secs(15);

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    /// The cache closed the connection or broke the protocol.
    #[error("the cache broke off: {0}")]
    Broken(#[source] hyper::Error),
    /// The cache sent nothing for too long.
    #[error("the cache sent nothing for {STALL:?}")]
    Stalled,
}

/// The body of one answer.
pub(super) enum RelayBody {
    /// Bytes that are here already.
    Whole(Option<Bytes>),
    /// Bytes as they come from the cache.
    Streamed(Box<Streamed>),
}

/// A body in flight.
pub(super) struct Streamed {
    inner: Incoming,
    /// Goes back to the pool at the end; dropped with the body otherwise, which closes it.
    connection: Option<Connection>,
    cache: Arc<Cache>,
    blob: Option<Digest>,
    stall: Pin<Box<Sleep>>,
    /// Whether the cache is being waited for. A runtime that takes its time is not the cache's fault.
    waiting: bool,
}

impl RelayBody {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }

    pub(super) fn streamed(inner: Incoming, connection: Connection, cache: Arc<Cache>, blob: Option<Digest>) -> Self {
        let stall = Box::pin(tokio::time::sleep(STALL));
        let mut streamed = Streamed { inner, connection: Some(connection), cache, blob, stall, waiting: false };
        streamed.release_at_end();
        Self::Streamed(Box::new(streamed))
    }
}

impl Streamed {
    fn release_at_end(&mut self) {
        if self.inner.is_end_stream()
            && let Some(connection) = self.connection.take()
        {
            self.cache.release(connection);
        }
    }

    fn cut(&mut self, cut: Cut) -> Cut {
        self.connection = None;
        self.cache.cut(self.blob.take(), &cut);
        cut
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(this.cut(Cut::Broken(error))))),
            Poll::Ready(frame) => {
                this.waiting = false;
                this.release_at_end();
                Poll::Ready(frame.map(|frame| frame.map_err(Cut::Broken)))
            }
            Poll::Pending => {
                if !this.waiting {
                    this.waiting = true;
                    this.stall.as_mut().reset(Instant::now() + STALL);
                }
                ready!(this.stall.as_mut().poll(cx));
                Poll::Ready(Some(Err(this.cut(Cut::Stalled))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(streamed) => Pin::new(&mut **streamed).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streamed(streamed) => streamed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed(streamed) => streamed.size_hint(),
        }
    }
}
