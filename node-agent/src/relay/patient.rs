//! One Pod's answer, read frame by frame with patience that ends. Knows nothing of other Pods.

use super::health::Standing;
use super::patience::{Exhausted, Limits, Patience, due};
use super::resume::Source;
use bytes::Bytes;
use http_body::{Body, Frame};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    /// The cache closed the connection or broke the protocol.
    #[error("the cache broke off: {0}")]
    Broken(#[source] hyper::Error),
    /// The cache sent nothing for too long.
    #[error("the cache sent nothing of a body for {0:?}")]
    Stalled(Duration),
    /// The cache's Pod answers nobody any more.
    #[error("the cache is gone and sent nothing of a body for {0:?}")]
    Gone(Duration),
    /// It sends too slowly, whether from its disk or from the upstream.
    #[error("the cache sends a body too slowly for {0:?}")]
    Slow(Duration),
}

/// A body that is waited for.
pub(super) struct Patient {
    pub(super) source: Source,
    patience: Patience,
    look_again: Pin<Box<Sleep>>,
}

impl Patient {
    /// Waits for nothing no longer than what is left, and less long where it should not take so long.
    pub(super) fn new(source: Source, left: Duration) -> Self {
        let is_on_probation = source.replica.is_on_probation(source.origin);
        let limits = Limits::new(source.origin, source.size_hint().exact(), is_on_probation, left);
        Self { source, patience: Patience::new(limits), look_again: Box::pin(sleep_until(Instant::now())) }
    }

    /// How much longer it was waited for than is due for a body of this length.
    pub(super) fn too_much(&self, length: u64) -> Duration {
        self.patience.total().saturating_sub(due(length))
    }

    /// The next frame; None at the end.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.patience.is_spent() && !self.source.is_end_stream() {
            return Poll::Ready(Some(Err(Cut::Slow(self.patience.lasts(Exhausted::Slow)))));
        }
        match Pin::new(&mut self.source).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.patience.came(bytes, Instant::now());
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Cut::Broken(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => self.poll_patience(cx).map(|cut| Some(Err(cut))),
        }
    }

    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        loop {
            let look_again = self.patience.wait(Instant::now());
            self.look_again.as_mut().reset(look_again);
            ready!(self.look_again.as_mut().poll(cx));
            let is_out = self.source.replica.standing() == Standing::Out;
            if let Some(exhausted) = self.patience.exhausted(Instant::now(), is_out) {
                let waited = self.patience.lasts(exhausted);
                return Poll::Ready(match exhausted {
                    Exhausted::Stalled => Cut::Stalled(waited),
                    Exhausted::Slow => Cut::Slow(waited),
                    Exhausted::Gone => Cut::Gone(waited),
                });
            }
        }
    }
}
