//! One other replica. It is asked with little patience, and left alone once it does not answer: a probe asks it in the
//! background until it does, so that a dead one costs one short wait and then nothing. Knows nothing of what is asked or
//! told.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{
    HeaderMap, Method, StatusCode,
    header::{CACHE_CONTROL, RETRY_AFTER},
};
use reqwest::{Request, Response, Url};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{PeerAddress, trust::Trust};
use crate::{
    background::Background,
    respond::{CACHE_STATUS, ELSEWHERE},
    store::tags::TagRecord,
};

/// For a sign of life.
const SIGN: Duration = Duration::from_millis(500);
/// For who fetches what it is told of: much longer than that takes where it is alive.
const TOLD: Duration = Duration::from_secs(10);
/// Who is about to have it is asked again for so long; then there is still time for upstream.
const ABOUT_TO: Duration = Duration::from_millis(2400);
/// Who says so at once is looking for it as well and lets us go first. Maybe it was on its way to upstream already, which
/// shows after this long ...
const LET_FIRST: Duration = Duration::from_millis(20);
/// ... or after this long where it is known that somebody is.
const LET_FIRST_BEHIND: Duration = Duration::from_millis(60);
/// Between probes, longer each time: one that was scaled away never comes back.
const PROBE_EVERY: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
const PROBE_AT_LAST: Duration = Duration::from_secs(5);
/// Who is silent again so soon after it was found answers nothing but probes, as one does whose volume hangs: the pauses go
/// on growing.
const RELAPSE: Duration = Duration::from_secs(10);
/// A replica that answers and is of no use all the same is tried again after this long.
const USELESS_FOR: Duration = Duration::from_secs(60);
/// Its disk or its software is broken.
const LIAR_FOR: Duration = Duration::from_secs(600);

/// What is asked of all replicas.
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// For the header of an answer.
    pub(super) patience: Duration,
    /// Another has looked for it here before and is on its way to upstream, even if that does not show yet.
    pub(super) others_are_ahead: bool,
    pub(super) resort: Resort,
}

/// Whether anybody else is left to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resort {
    /// There is.
    First,
    /// There is nobody: who is slow is better than none.
    Last,
}

/// Another replica, or this one under another name.
pub(super) struct Replica {
    address: PeerAddress,
    trust: Arc<Trust>,
    background: Background,
    /// The headers of a probe.
    greeting: HeaderMap,
    /// Why it is left alone, if it is.
    left_alone: watch::Sender<Option<Reason>>,
    /// When it was last found to be there, in milliseconds since 1970.
    found_at: AtomicU64,
    /// How often in a row it was left alone soon after that.
    relapses: AtomicUsize,
}

/// What a replica says to a question.
pub(super) enum Heard {
    /// Here it is.
    Content(Response),
    /// Another replica has it, or is about to.
    Elsewhere,
    /// Nothing that helps.
    Nothing,
}

/// What becomes of what a replica is told of.
pub(super) enum Told {
    /// It has it.
    Has,
    /// It is fetching it.
    NotYet,
    /// It cannot have it now.
    No,
    /// It does not answer, and is left alone.
    Away,
}

/// Why a replica is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// No answer, or none in time.
    Silent,
    /// It wants another token.
    Refuses,
    /// It is this one, under a name that may lead elsewhere later.
    Itself,
    /// It has content and does not send it.
    Stalls,
    /// It sent wrong bytes.
    Lies,
}

impl Reason {
    /// How long no probe can tell that it is over.
    fn rest(self) -> Option<Duration> {
        match self {
            Self::Silent | Self::Refuses => None,
            Self::Itself | Self::Stalls => Some(USELESS_FOR),
            Self::Lies => Some(LIAR_FOR),
        }
    }
}

impl Replica {
    pub(super) fn new(
        address: PeerAddress,
        trust: Arc<Trust>,
        greeting: HeaderMap,
        background: Background,
    ) -> Arc<Self> {
        let (left_alone, found_at) = (watch::Sender::new(None), AtomicU64::new(TagRecord::now()));
        let relapses = AtomicUsize::default();
        Arc::new(Self { address, trust, background, greeting, left_alone, found_at, relapses })
    }

    pub(super) fn is_asked(&self, resort: Resort) -> bool {
        match *self.left_alone.borrow() {
            None => true,
            Some(Reason::Stalls) => resort == Resort::Last,
            Some(_) => false,
        }
    }

    /// Whether it is this one under another name.
    pub(super) fn is_itself(&self) -> bool {
        *self.left_alone.borrow() == Some(Reason::Itself)
    }

    /// Waits for as long as it is left alone.
    pub(super) async fn is_back(&self) {
        // The sender lives as long as this does.
        let _ = self.left_alone.subscribe().wait_for(Option::is_none).await;
    }

    /// When it was last found to be there: what it was told before that may be lost.
    pub(super) fn found_at(&self) -> u64 {
        self.found_at.load(Ordering::Relaxed)
    }

    /// Tells it that there is something to be had here.
    pub(super) async fn tell(self: &Arc<Self>, path: &str) -> Told {
        let mut headers = self.greeting.clone();
        headers.remove(CACHE_CONTROL);
        match self.send(&Method::HEAD, path, &headers, TOLD, Connection::Kept).await {
            Err(reason) => {
                self.leave_alone(reason);
                Told::Away
            }
            Ok(response) => match response.status() {
                StatusCode::OK => Told::Has,
                StatusCode::GATEWAY_TIMEOUT if response.headers().contains_key(RETRY_AFTER) => Told::NotYet,
                _ => Told::No,
            },
        }
    }

    /// Asks again while it is about to have it.
    pub(super) async fn ask(self: &Arc<Self>, question: &Question) -> Heard {
        let began = Instant::now();
        let mut let_first_since = None;
        let Question { method, path, headers, patience, others_are_ahead, .. } = question;
        let let_first = if *others_are_ahead { LET_FIRST_BEHIND } else { LET_FIRST };
        loop {
            let asked = Instant::now();
            let answer = self.send(method, path, headers, *patience, Connection::Kept).await;
            let response = match answer {
                Ok(response) => response,
                Err(reason) => {
                    self.leave_alone(reason);
                    return Heard::Nothing;
                }
            };
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Heard::Content(response),
                StatusCode::GATEWAY_TIMEOUT if response.headers().contains_key(RETRY_AFTER) => {}
                StatusCode::GATEWAY_TIMEOUT
                    if response.headers().get(CACHE_STATUS).is_some_and(|status| status == ELSEWHERE) =>
                {
                    return Heard::Elsewhere;
                }
                _ => return Heard::Nothing,
            }
            if began.elapsed() > ABOUT_TO {
                return Heard::Nothing;
            }
            if asked.elapsed() < 5 * LET_FIRST {
                if let_first_since.get_or_insert(asked).elapsed() >= let_first {
                    return Heard::Nothing;
                }
                tokio::time::sleep(LET_FIRST).await;
            }
        }
    }

    /// Whether it is there at all; if not, it is left alone.
    pub(super) async fn is_there(self: &Arc<Self>) -> bool {
        self.probe(SIGN).await.map_err(|reason| self.leave_alone(reason)).is_ok()
    }

    async fn probe(&self, patience: Duration) -> Result<Response, Reason> {
        self.send(&Method::GET, "/v2/", &self.greeting, patience, Connection::New).await
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        patience: Duration,
        connection: Connection,
    ) -> Result<Response, Reason> {
        let url = format!("{}://{}{path}", self.trust.scheme(), self.address).parse::<Url>();
        let mut request = Request::new(method.clone(), url.map_err(|_| Reason::Silent)?);
        *request.headers_mut() = headers.clone();
        request.headers_mut().extend(self.trust.permit());
        let clients = self.trust.clients();
        let client = match connection {
            Connection::Kept => &clients.kept,
            // What is kept may have died.
            Connection::New => &clients.fresh,
        };
        match tokio::time::timeout(patience, client.execute(request)).await {
            Ok(Ok(response)) => match response.status() {
                StatusCode::LOOP_DETECTED => Err(Reason::Itself),
                StatusCode::UNAUTHORIZED => Err(Reason::Refuses),
                _ => Ok(response),
            },
            Ok(Err(error)) => {
                let error = error.without_url();
                debug!(peer = %self.address, error = &error as &dyn std::error::Error, "no answer");
                Err(Reason::Silent)
            }
            Err(_) => Err(Reason::Silent),
        }
    }

    /// Until it is of use again.
    pub(super) fn leave_alone(self: &Arc<Self>, reason: Reason) {
        let is_new = self.left_alone.send_if_modified(|known| {
            let is_new = known.is_none();
            known.get_or_insert(reason);
            is_new
        });
        if !is_new {
            return;
        }
        match reason {
            Reason::Itself => debug!(peer = %self.address, "this replica itself"),
            Reason::Silent => info!(peer = %self.address, "replica does not answer and is left alone until it does"),
            reason => warn!(peer = %self.address, ?reason, "replica is left alone"),
        }
        let (this, relapses) = (Arc::clone(self), self.count_relapse());
        self.background.spawn(async move { this.probe_until_useful(reason, relapses).await });
    }

    fn count_relapse(&self) -> usize {
        let found_for = Duration::from_millis(TagRecord::now().saturating_sub(self.found_at()));
        let before = self.relapses.load(Ordering::Relaxed);
        self.relapses.store(if found_for < RELAPSE { before + 1 } else { 0 }, Ordering::Relaxed);
        before
    }

    async fn probe_until_useful(&self, mut reason: Reason, relapses: usize) {
        let mut pauses = PROBE_EVERY.into_iter().chain(iter::repeat(PROBE_AT_LAST)).skip(relapses);
        loop {
            let pause = reason.rest().or_else(|| pauses.next()).unwrap_or(PROBE_AT_LAST);
            tokio::time::sleep(pause).await;
            match self.probe(2 * SIGN).await {
                Ok(_) => break,
                Err(found) => {
                    reason = found;
                    self.left_alone.send_replace(Some(reason));
                }
            }
        }
        info!(peer = %self.address, "replica is asked again");
        self.found_at.store(TagRecord::now(), Ordering::Relaxed);
        self.left_alone.send_replace(None);
    }
}

/// Over which connection to ask.
enum Connection {
    Kept,
    New,
}
