//! One Pod of a cache as this node finds it: whether it answers, and one exchange with it.

use super::ask::{Content, Kind};
use super::awake::Time;
use super::conduct::{Conduct, Origin};
use super::connect::{ConnectFault, Connection, Pool};
use super::hang::{HangCheck, OWN_ANSWER};
use super::health::{Health, Standing};
use super::request;
use super::route::Route;
use crate::known::Endpoint;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What a list that is at hand takes.
const AT_HAND: Duration = Duration::from_millis(100);
/// What a known tag takes: for a second and a half the cache waits for its upstream, then it says what it knows.
const KNOWN_TAG: Duration = Duration::from_millis(1800);
/// Headers that come later than this hardly come.
const SLOW: Duration = Duration::from_secs(3);

/// One Pod of a cache.
#[derive(Debug)]
pub(super) struct Replica {
    registry: String,
    pub(super) pod: String,
    pub(super) address: SocketAddr,
    route: ArcSwap<Route>,
    health: Mutex<Health>,
    conduct: Mutex<Conduct>,
    /// The last offence, for the report.
    offence: Mutex<Option<String>>,
    standing: watch::Sender<Standing>,
    trouble: Mutex<Option<String>>,
    pool: Pool,
    pub(super) look_now: Notify,
    news: Arc<News>,
}

/// Told whenever a replica's standing or trouble changed.
#[derive(Debug)]
pub(super) struct News {
    /// For requests that wait for a verdict.
    pub(super) verdicts: watch::Sender<()>,
    /// For the report on the node.
    pub(super) report: Arc<Notify>,
}

impl News {
    fn tell(&self) {
        self.verdicts.send_replace(());
        self.report.notify_one();
    }
}

/// Why a replica gave no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// Nobody is there, or the connection broke.
    Connect(ConnectFault),
    /// The headers did not come in time.
    Late,
    /// It was given up while it was waited for.
    Out,
}

impl Replica {
    pub(super) fn new(registry: &str, endpoint: &Endpoint, route: Arc<Route>, news: Arc<News>) -> Self {
        Self {
            registry: registry.to_owned(),
            pod: endpoint.pod.clone(),
            address: endpoint.address,
            route: ArcSwap::new(route),
            health: Mutex::default(),
            conduct: Mutex::default(),
            offence: Mutex::default(),
            standing: watch::Sender::new(Standing::Unknown),
            trouble: Mutex::default(),
            pool: Pool::default(),
            look_now: Notify::new(),
            news,
        }
    }

    pub(super) fn is(&self, endpoint: &Endpoint) -> bool {
        self.address == endpoint.address && self.pod == endpoint.pod
    }

    /// Replaces trust and token; what is known of its health stays.
    pub(super) fn set_route(&self, route: &Arc<Route>) {
        let before = self.route.swap(route.clone());
        // All nodes hear of each change of any cache at once: it must cost the others nothing.
        if !before.leads_like(route) {
            self.look_now.notify_one();
        }
    }

    /// The Pod is no more: nobody probes it, and who still waits for it waits for nothing.
    pub(super) fn retire(&self) {
        self.standing.send_replace(Standing::Out);
    }

    pub(super) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// Whether it answers, and what it sends is worth waiting for.
    pub(super) fn serves(&self) -> bool {
        self.standing() == Standing::In && !self.is_refused(Origin::Disk)
    }

    /// Whether its bodies from there are not asked for now.
    pub(super) fn is_refused(&self, origin: Origin) -> bool {
        self.conduct().is_refused(origin, Instant::now())
    }

    pub(super) fn is_on_probation(&self, origin: Origin) -> bool {
        self.conduct().is_on_probation(origin, Instant::now())
    }

    /// Whether any other is asked first.
    pub(super) fn is_last_choice(&self) -> bool {
        self.conduct().is_last_choice(Instant::now())
    }

    /// A body ended before its end.
    pub(super) fn broke_off(&self) {
        self.conduct().break_off(Instant::now());
    }

    /// A body was as it should be.
    pub(super) fn behaved(&self, origin: Origin) {
        self.conduct().behave(origin);
    }

    /// A body was not.
    pub(super) fn offended(&self, origin: Origin, how: &dyn std::fmt::Display) {
        self.conduct().offend(origin, Instant::now());
        let offence = format!("{}: {how}", self.address);
        tracing::warn!(
            registry = self.registry,
            pod = self.pod,
            error = offence,
            "pulls pass the cache by for a while"
        );
        *self.offence.lock().unwrap_or_else(PoisonError::into_inner) = Some(offence);
        self.news.tell();
    }

    /// Tells of it once an offence is over.
    pub(super) fn forgive(&self) {
        let mut offence = self.offence.lock().unwrap_or_else(PoisonError::into_inner);
        if offence.is_some() && !self.is_refused(Origin::Disk) {
            *offence = None;
            self.news.tell();
        }
    }

    fn conduct(&self) -> MutexGuard<'_, Conduct> {
        self.conduct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went wrong last.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        trouble.or_else(|| self.offence.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Whether the prober may take its time.
    pub(super) fn is_settled(&self) -> bool {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).is_settled()
    }

    pub(super) fn release(&self, connection: Connection) {
        self.pool.put(connection);
    }

    /// The way to it as it is now.
    pub(super) fn route(&self) -> Arc<Route> {
        self.route.load_full()
    }

    /// Closes connections that are of no use any more.
    pub(super) fn tidy(&self) {
        self.pool.tidy(&self.route());
    }

    /// Takes a sign of life, or of none, into account.
    pub(super) fn witness(&self, sign: Result<(), &ConnectFault>) {
        let (before, after) = {
            let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            let before = health.standing();
            match &sign {
                Ok(()) => health.succeed(Instant::now()),
                Err(_) => health.fail(Instant::now()),
            }
            // While it is locked: of two signs at once, the later one's verdict must be the one that stays.
            if before != health.standing() {
                self.standing.send_replace(health.standing());
            }
            (before, health.standing())
        };
        let trouble = sign.err().map(ToString::to_string);
        let told =
            std::mem::replace(&mut *self.trouble.lock().unwrap_or_else(PoisonError::into_inner), trouble.clone());
        if before == after {
            if after != Standing::In && told != trouble {
                self.news.tell();
            }
            return;
        }
        let (registry, pod, error) = (&self.registry, &self.pod, trouble.as_deref().unwrap_or_default());
        match after {
            Standing::In => tracing::info!(registry, pod, "cache answers, pulls go through it"),
            Standing::Out => tracing::warn!(registry, pod, error, "cache does not answer, pulls pass it by"),
            Standing::Unproven => tracing::warn!(registry, pod, error, "cache does not answer yet, pulls pass it by"),
            Standing::Unknown => {}
        }
        self.news.tell();
    }

    /// Asks, and returns the headers, or says in time that there will be none.
    pub(super) async fn ask(
        &self,
        method: &Method,
        content: &Content,
        headers: &HeaderMap,
        time: &mut Time,
        reserve: Duration,
        check: &mut HangCheck<'_>,
    ) -> Result<(Response<Incoming>, Connection), NoAnswer> {
        let mut standing = self.standing.subscribe();
        let gone_out = async {
            // Whatever waits for a hung cache is let go with the rest.
            if standing.wait_for(|standing| *standing == Standing::Out).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let route = self.route();
        // Where there is no other way, slow is better than not at all.
        let is_late = !route.is_only_way && self.conduct().is_late(Instant::now());
        // What a tag means now is for the upstream to say, through the cache: in an outage nobody else knows what it meant.
        if is_late && matches!(content.kind, Kind::Manifest(None)) {
            self.find_tag(&route, content, time, reserve).await?;
        }
        let only_if_cached = is_late && !matches!(content.kind, Kind::Manifest(None) | Kind::Other);
        let before = time.left();
        let patience = match (is_late, &content.kind) {
            (false, _) => before,
            (true, Kind::Manifest(None)) => KNOWN_TAG,
            (true, Kind::Other) => AT_HAND,
            (true, _) => OWN_ANSWER,
        };
        let reserve = reserve.max(before.saturating_sub(patience));
        let asking = || match request::build(&route, method, content, headers) {
            asking if only_if_cached => request::only_if_cached(asking),
            asking => asking,
        };
        let answered = tokio::select! {
            answered = time.wait(reserve, self.exchange(&route, asking)) => answered,
            () = gone_out => return Err(NoAnswer::Out),
            () = check.hangs(self) => return Err(NoAnswer::Late),
        };
        match answered {
            Some(Ok((response, connection))) => {
                self.witness(Ok(()));
                match Origin::of(response.headers()) {
                    Origin::Upstream if before.saturating_sub(time.left()) > SLOW => {
                        self.conduct().answer_slowly(Instant::now());
                    }
                    origin if !only_if_cached => self.conduct().answer(origin, Instant::now()),
                    _ => {}
                }
                Ok((response, connection))
            }
            Some(Err(fault)) => {
                if fault.is_absence() {
                    self.witness(Err(&fault));
                }
                self.look_now.notify_one();
                Err(NoAnswer::Connect(fault))
            }
            None if only_if_cached => {
                self.says_nothing();
                Err(NoAnswer::Late)
            }
            None if is_late => Err(NoAnswer::Late),
            None => {
                self.look_now.notify_one();
                self.broke_off();
                Err(NoAnswer::Late)
            }
        }
    }

    /// Fails where it does not know this tag, however long ago it asked: then there is nothing to wait for.
    async fn find_tag(
        &self,
        route: &Arc<Route>,
        content: &Content,
        time: &mut Time,
        reserve: Duration,
    ) -> Result<(), NoAnswer> {
        let reserve = reserve.max(time.left().saturating_sub(OWN_ANSWER));
        let asking = || request::of_any_age(request::build(route, &Method::HEAD, content, &HeaderMap::new()));
        match time.wait(reserve, self.exchange(route, asking)).await {
            Some(Ok((response, connection))) => {
                self.release(connection);
                if response.status().is_success() { Ok(()) } else { Err(NoAnswer::Late) }
            }
            Some(Err(fault)) => Err(NoAnswer::Connect(fault)),
            None => {
                self.says_nothing();
                Err(NoAnswer::Late)
            }
        }
    }

    /// It gave nothing of use, and took its time.
    pub(super) fn kept_waiting(&self) {
        self.conduct().keep_waiting(Instant::now());
    }

    /// It told not even what it has.
    pub(super) fn says_nothing(&self) {
        self.offended(Origin::Disk, &"the cache answers nothing, not even whether it has something");
    }

    /// Over a pooled connection if one lives, else over a fresh one.
    async fn exchange(
        &self,
        route: &Arc<Route>,
        asking: impl Fn() -> Request<Empty<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), ConnectFault> {
        while let Some(mut connection) = self.pool.take(route) {
            // The Pod may have closed it meanwhile, which says nothing about its health.
            if let Ok(response) = connection.send(asking()).await {
                return Ok((response, connection));
            }
        }
        let mut connection = Connection::open(route, self.address).await?;
        let response = connection.send(asking()).await?;
        Ok((response, connection))
    }
}
