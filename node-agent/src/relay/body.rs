//! The body of an answer: streamed from the cache frame by frame as the runtime takes it, never changed. Where a Pod breaks
//! off, another goes on; where none can, the body ends in an error, which closes the runtime's connection: right bytes or a
//! cut connection, nothing else.

use super::ask::{Content, Digest};
use super::audit::Audit;
use super::cache::{Cache, Unserved};
use super::origin::Origin;
use super::patience::{SMALL, STALL};
use super::patient::{Cut, Patient};
use super::replica::Replica;
use super::resume::{Rest, Source};
use super::trial::Trial;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Another Pod that appears late gets a chance as well.
const LEAST_STALL: Duration = Duration::from_secs(1);

/// The body of one answer.
pub(super) enum RelayBody {
    /// Bytes that are here already.
    Whole(Option<Bytes>),
    /// Bytes as they come from the cache.
    Streamed(Box<Streamed>),
}

/// A body in flight.
pub(super) struct Streamed {
    cache: Arc<Cache>,
    flow: Flow,
    content: Arc<Content>,
    rest: Option<Rest>,
    audit: Option<Audit>,
    /// Who sent a part and broke off.
    broke: Vec<Arc<Replica>>,
    length: Option<u64>,
    /// How long it may still be waited for nothing, over all Pods together.
    left: Duration,
}

enum Flow {
    /// Frames come from here.
    From(Box<Patient>),
    /// A Pod broke off; the next is being asked. Gives back what is still to come.
    Resuming(Cut, Origin, BoxFuture<'static, (Rest, Option<Source>)>),
    /// It is over.
    Over,
}

impl RelayBody {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }

    /// With `rest`, another Pod may go on where one breaks off.
    pub(super) fn streamed(source: Source, cache: Arc<Cache>, content: Arc<Content>, rest: Option<Rest>) -> Self {
        let length = source.size_hint().exact();
        let has_others = rest.is_some() && cache.has_others(&source.replica);
        let comes_whole = rest.as_ref().filter(|rest| rest.is_whole()).and(length);
        let audit = content.blob().zip(comes_whole).and_then(|(blob, length)| cache.audit(blob, length));
        let flow = Flow::From(Box::new(Patient::new(source, share(STALL, has_others))));
        let mut streamed = Streamed { cache, flow, content, rest, audit, broke: Vec::new(), length, left: STALL };
        streamed.release_at_end();
        Self::Streamed(Box::new(streamed))
    }
}

/// How long one Pod's answer is waited for, so that all of them together have what is left.
fn share(left: Duration, has_others: bool) -> Duration {
    if has_others { left / 2 } else { left }
}

impl Streamed {
    fn release_at_end(&mut self) {
        if let Flow::From(patient) = &mut self.flow
            && patient.source.is_end_stream()
            && let Some(connection) = patient.source.connection.take()
        {
            let (source, too_much) = (&patient.source, patient.too_much(self.length.unwrap_or(u64::MAX)));
            source.replica.release(connection);
            source.replica.took_its_time(source.origin, too_much, &self.content);
            if !self.audit.take().is_none_or(Audit::passes) {
                // The runtime has it already, and refuses it; whoever asks again is to be served by another. Which part was wrong
                // nobody knows.
                let took_part = self.broke.iter().filter(|broke| !Arc::ptr_eq(broke, &source.replica));
                took_part.chain([&source.replica]).for_each(|replica| {
                    replica.offended(&Unserved::OtherContent, Trial::right(&self.content));
                });
                self.content.blob().into_iter().for_each(|blob| self.cache.suspend(blob));
                self.cache.suspect_others(&self.content);
            } else if self.length.is_some_and(|length| length > SMALL) {
                source.replica.behaved(source.origin, &self.content);
            }
        }
    }

    /// What has come since the last look, or that nothing more will come from this Pod.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Flow::From(patient) = &mut self.flow else { return Poll::Ready(None) };
        let come = ready!(patient.poll_frame(cx));
        if let Some(Ok(frame)) = &come {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.cache.counters.bytes.add(bytes);
            if let (Some(audit), Some(data)) = (&mut self.audit, frame.data_ref()) {
                audit.see(data);
            }
            if let Some(rest) = &mut self.rest {
                rest.advance(bytes);
            }
            self.release_at_end();
        }
        Poll::Ready(come)
    }

    /// Lets another Pod go on if one can.
    fn broke_off(&mut self, cut: Cut) -> Result<(), Cut> {
        let Flow::From(patient) = std::mem::replace(&mut self.flow, Flow::Over) else { return Err(cut) };
        let source = patient.source;
        let (registry, pod) = (self.cache.registry(), &source.replica.pod);
        let digest = self.content.blob().map(Digest::short).unwrap_or_default();
        tracing::warn!(registry, pod, digest, error = %cut, "answer broke off");
        source.replica.look_now.notify_one();
        // What breaks is found out at once; what keeps us waiting is not asked again for a while.
        if let Cut::Stalled(waited) | Cut::Slow(waited) = cut {
            self.left = self.left.saturating_sub(waited).max(LEAST_STALL);
            let trial = self
                .rest
                .as_ref()
                .map_or_else(|| Trial::beyond(0, &self.content, source.origin), |rest| rest.trial(source.origin));
            source.replica.offended(&cut, trial);
        } else {
            source.replica.broke_off();
        }
        let Some(mut rest) = self.rest.take() else { return Err(self.give_up(cut)) };
        let (cache, replica, origin) = (self.cache.clone(), source.replica, source.origin);
        if !self.broke.iter().any(|broke| Arc::ptr_eq(broke, &replica)) {
            self.broke.push(replica.clone());
        }
        // A closed connection may be a restart; who stalls would stall again.
        let again = matches!(cut, Cut::Broken(_) | Cut::Gone(_));
        let resuming = Box::pin(async move {
            let source = rest.go_on(&cache, &replica, again).await;
            (rest, source)
        });
        self.flow = Flow::Resuming(cut, origin, resuming);
        Ok(())
    }

    /// The next Pod's answer, or that none goes on.
    fn resumed(&mut self, rest: Rest, source: Option<Source>) -> Result<(), Cut> {
        let Flow::Resuming(cut, origin, _) = std::mem::replace(&mut self.flow, Flow::Over) else { return Ok(()) };
        let Some(source) = source else {
            self.cache.hold_breaks_against(&rest, origin, &cut);
            return Err(self.give_up(cut));
        };
        tracing::info!(registry = self.cache.registry(), pod = source.replica.pod, "answer goes on");
        let has_others = self.cache.has_others(&source.replica);
        self.flow = Flow::From(Box::new(Patient::new(source, share(self.left, has_others))));
        self.rest = Some(rest);
        Ok(())
    }

    /// The runtime resumes: elsewhere, or it would be cut here again and again.
    fn give_up(&self, cut: Cut) -> Cut {
        self.cache.counters.cut.add(1);
        if let Some(blob) = self.content.blob() {
            self.cache.suspend(blob);
        }
        cut
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        loop {
            let turned = match &mut this.flow {
                Flow::Over => return Poll::Ready(None),
                Flow::Resuming(.., resuming) => {
                    let (rest, source) = ready!(resuming.as_mut().poll(cx));
                    this.resumed(rest, source)
                }
                Flow::From(_) => match ready!(this.poll_source(cx)) {
                    Some(Err(cut)) => this.broke_off(cut),
                    frame => return Poll::Ready(frame),
                },
            };
            if let Err(cut) = turned {
                return Poll::Ready(Some(Err(cut)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.flow {
            Flow::From(patient) => patient.source.is_end_stream(),
            Flow::Resuming(..) => false,
            Flow::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.flow {
            Flow::From(patient) => patient.source.size_hint(),
            Flow::Resuming(..) | Flow::Over => SizeHint::default(),
        }
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
