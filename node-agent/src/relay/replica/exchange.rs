//! One exchange with a Pod: how it is asked, how long it is waited for, and what its answer or its silence shows.

use super::Replica;
use crate::relay::ask::{Content, Kind};
use crate::relay::awake::Time;
use crate::relay::connect::{ConnectFault, Connection};
use crate::relay::hang::{HangCheck, OWN_ANSWER};
use crate::relay::health::Standing;
use crate::relay::origin::Origin;
use crate::relay::portion::Portion;
use crate::relay::request;
use crate::relay::route::Route;
use crate::relay::trial::Trial;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// What is at hand takes no longer.
const AT_HAND: Duration = Duration::from_millis(100);
/// What a known tag takes: for a second and a half the cache waits for its upstream, then it says what it knows.
const KNOWN_TAG: Duration = Duration::from_millis(1800);
/// Headers of what a Pod has on its disk are better had of another if they take longer than this.
const SLOW_HIT: Duration = Duration::from_secs(1);
/// Headers that come later than this hardly come.
const SLOW: Duration = Duration::from_secs(3);

/// A connection of the pool may lead nowhere, where something on the way has forgotten it: what takes longer than this is asked over a
/// fresh one as well.
const LOST: Duration = Duration::from_millis(800);
/// What is answered this soon over a fresh connection should have been over the other.
const FRESH: Duration = Duration::from_millis(300);
/// What is answered over both connections is answered at once.
const BOTH: Duration = Duration::from_millis(50);

/// Why a replica gave no answer.
#[derive(Debug)]
pub(in crate::relay) enum NoAnswer {
    /// Nobody is there, or the connection broke.
    Connect(ConnectFault),
    /// The headers did not come in time.
    Late,
    /// It was given up while it was waited for, or there was no time to.
    Out,
}

type Exchanged = Result<(Response<Incoming>, Connection), ConnectFault>;

/// How something is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// As the runtime does: the cache may have to fetch it.
    Freely,
    /// Of who was late: for what it has.
    IfCached,
    /// Of who was late, a tag that it knows.
    KnownTag,
    /// Of who was late, a list.
    AtHand,
}

impl Manner {
    /// How long headers are waited for; None: for as long as there is time.
    fn limit(self) -> Option<Duration> {
        match self {
            Self::Freely => None,
            Self::IfCached => Some(OWN_ANSWER),
            Self::KnownTag => Some(KNOWN_TAG),
            Self::AtHand => Some(AT_HAND),
        }
    }
}

/// Whether a Pod that was asked for what it has gave no answer of use. That it has it not is one: 504 (RFC 9111, section 5.2.1.7).
pub(in crate::relay) fn is_failure(answered: Result<StatusCode, &ConnectFault>) -> bool {
    match answered {
        Ok(status) => status.is_server_error() && status != StatusCode::GATEWAY_TIMEOUT,
        Err(fault) => !fault.is_absence(),
    }
}

impl Replica {
    /// Asks, and returns the headers, or says in time that there will be none.
    pub(in crate::relay) async fn ask(
        &self,
        method: &Method,
        content: &Arc<Content>,
        headers: &HeaderMap,
        time: &mut Time,
        reserve: Duration,
        check: &mut HangCheck<'_>,
    ) -> Result<(Response<Incoming>, Connection), NoAnswer> {
        // Who is given no time is to blame for nothing.
        if time.left() <= reserve {
            return Err(NoAnswer::Out);
        }
        let mut standing = self.standing.subscribe();
        let gone_out = async {
            // Whatever waits for a hung cache is let go with the rest.
            if standing.wait_for(|standing| *standing == Standing::Out).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let route = self.route();
        let manner = self.manner(&route, content);
        // What a tag means now is for the upstream to say, through the cache: in an outage nobody else knows what it meant.
        if manner == Manner::KnownTag {
            self.find_tag(&route, content, time, reserve).await?;
        }
        let before = time.left();
        let reserve = reserve.max(manner.limit().map_or(Duration::ZERO, |limit| before.saturating_sub(limit)));
        let asking = || match request::build(&route, method, content, headers) {
            asking if manner == Manner::IfCached => request::only_if_cached(asking),
            asking => asking,
        };
        let answered = tokio::select! {
            answered = time.wait(reserve, self.exchange(&route, asking)) => answered,
            () = gone_out => return Err(NoAnswer::Out),
            () = check.hangs(self) => return Err(NoAnswer::Late),
        };
        if manner == Manner::IfCached
            && let Some(answered) = &answered
        {
            self.told_what_it_has(answered, before.saturating_sub(time.left()), method, content);
        }
        match answered {
            Some(Ok((response, connection))) => {
                self.answered(manner, &response, before.saturating_sub(time.left()), method, content);
                Ok((response, connection))
            }
            Some(Err(fault)) => {
                if fault.is_absence() {
                    self.witness(Err(&fault));
                }
                self.look_now.notify_one();
                Err(NoAnswer::Connect(fault))
            }
            None => {
                self.gave_no_answer(manner, before.saturating_sub(time.left()), method, content);
                Err(NoAnswer::Late)
            }
        }
    }

    /// How it is asked for this now.
    fn manner(&self, route: &Route, content: &Content) -> Manner {
        // Where there is no other way, slow is better than not at all.
        let is_late = !route.is_only_way && self.record().conduct.is_late_with(content);
        match content.kind {
            _ if !is_late => Manner::Freely,
            Kind::Manifest(None) => Manner::KnownTag,
            Kind::Other => Manner::AtHand,
            Kind::Manifest(Some(_)) | Kind::Blob(_) => Manner::IfCached,
        }
    }

    /// Headers came after so long.
    fn answered(
        &self,
        manner: Manner,
        response: &Response<Incoming>,
        after: Duration,
        method: &Method,
        content: &Arc<Content>,
    ) {
        self.witness(Ok(()));
        match Origin::of(response.headers()) {
            Origin::Upstream if after > SLOW => {
                self.charge(|lateness, now| lateness.answer_slowly(Trial::headers(method, content), now));
            }
            Origin::Disk if after > SLOW_HIT => {
                self.charge(|lateness, now| lateness.dawdle(Trial::soon(method, content), now));
            }
            Origin::Disk if after > AT_HAND => self.took_its_time(Origin::Disk, after - AT_HAND, content),
            // What it has says nothing of how it fetches.
            _ if manner == Manner::IfCached => {
                if response.status() == StatusCode::GATEWAY_TIMEOUT {
                    self.wanted(content);
                }
            }
            origin => self.record().conduct.lateness.answer(origin),
        }
    }

    /// No headers came in so long.
    fn gave_no_answer(&self, manner: Manner, after: Duration, method: &Method, content: &Arc<Content>) {
        match manner {
            Manner::IfCached if after >= OWN_ANSWER => self.says_nothing(method, content),
            Manner::Freely | Manner::IfCached if after >= SLOW_HIT => {
                self.look_now.notify_one();
                self.charge(|lateness, now| lateness.dawdle(Trial::soon(method, content), now));
            }
            Manner::Freely => self.look_now.notify_one(),
            Manner::IfCached | Manner::KnownTag | Manner::AtHand => {}
        }
    }

    /// Asked for what it has, it answered after so long.
    fn told_what_it_has(&self, answered: &Exchanged, after: Duration, method: &Method, content: &Arc<Content>) {
        let is_failure = is_failure(answered.as_ref().map(|(response, _)| response.status()));
        if is_failure && self.record().conduct.lateness.fail_itself(after, Instant::now()) {
            self.says_nothing(method, content);
        }
    }

    /// Fails where it does not know this tag, however long ago it asked: then there is nothing to wait for.
    async fn find_tag(
        &self,
        route: &Arc<Route>,
        content: &Arc<Content>,
        time: &mut Time,
        reserve: Duration,
    ) -> Result<(), NoAnswer> {
        let before = time.left();
        let reserve = reserve.max(before.saturating_sub(OWN_ANSWER));
        let asking = || request::of_any_age(request::build(route, &Method::HEAD, content, &HeaderMap::new()));
        let answered = time.wait(reserve, self.exchange(route, asking)).await;
        if let Some(answered) = &answered {
            self.told_what_it_has(answered, before.saturating_sub(time.left()), &Method::HEAD, content);
        }
        match answered {
            Some(Ok((response, connection))) => {
                self.release(connection);
                if response.status().is_success() { Ok(()) } else { Err(NoAnswer::Late) }
            }
            Some(Err(fault)) => Err(NoAnswer::Connect(fault)),
            None => {
                if before.saturating_sub(time.left()) >= OWN_ANSWER {
                    self.says_nothing(&Method::HEAD, content);
                }
                Err(NoAnswer::Late)
            }
        }
    }

    /// Over a pooled connection if one lives, else over a fresh one.
    async fn exchange(&self, route: &Arc<Route>, asking: impl Fn() -> Request<Empty<Bytes>>) -> Exchanged {
        while let Some(mut connection) = self.pool.take(route) {
            let fresh = async {
                sleep(LOST).await;
                let began = Instant::now();
                self.exchange_afresh(route, &asking).await.map(|answered| (answered, began.elapsed()))
            };
            let answered = {
                let mut pooled = pin!(connection.send(asking()));
                tokio::select! {
                    answered = &mut pooled => answered,
                    Ok((answered, after)) = fresh => {
                        // Otherwise it was the upstream that both waited for, and both have heard of it now.
                        if after < FRESH && timeout(BOTH, pooled).await.is_err() {
                            self.pool.shut();
                        }
                        return Ok(answered);
                    }
                }
            };
            // The Pod may have closed it meanwhile, which says nothing about its health.
            if let Ok(response) = answered {
                return Ok((response, connection));
            }
        }
        self.exchange_afresh(route, &asking).await
    }

    async fn exchange_afresh(&self, route: &Arc<Route>, asking: &impl Fn() -> Request<Empty<Bytes>>) -> Exchanged {
        let mut connection = Connection::open(route, self.address, Portion::large_if_allotted()).await?;
        let response = connection.send(asking()).await?;
        Ok((response, connection))
    }
}
