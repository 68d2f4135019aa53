//! One Pod of a cache as this node finds it: whether it answers, and whether what it sends is worth having.

mod exchange;
mod judged;

pub(super) use exchange::{NoAnswer, is_failure};

use super::ask::Content;
use super::conduct::{Conduct, Lateness};
use super::connect::{ConnectFault, Connection, Pool};
use super::health::{Health, Standing};
use super::origin::Origin;
use super::route::Route;
use super::trial::Trial;
use crate::known::Endpoint;
use arc_swap::ArcSwap;
use http::Method;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// One Pod of a cache.
#[derive(Debug)]
pub(super) struct Replica {
    registry: String,
    pub(super) pod: String,
    pub(super) address: SocketAddr,
    route: ArcSwap<Route>,
    record: Mutex<Record>,
    /// The record's verdict, for those who wait for another.
    standing: watch::Sender<Standing>,
    pool: Pool,
    pub(super) look_now: Notify,
    /// It failed at something that it will be tried for.
    pub(super) accused: Notify,
    news: Arc<News>,
}

/// What is known of it.
#[derive(Debug, Default)]
struct Record {
    health: Health,
    conduct: Conduct,
    /// What was wrong at the last sign of life or of none, for the report.
    trouble: Option<String>,
    /// The last offence, for the report.
    offence: Option<String>,
    /// The last answer of no use, for the report.
    nonsense: Option<String>,
}

impl Record {
    /// Once an offence is over, it is no more to be told of. Whether that is news.
    fn forgive(&mut self) -> bool {
        self.offence.take_if(|_| !self.conduct.is_refused(Origin::Disk)).is_some()
    }
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

impl Replica {
    pub(super) fn new(registry: &str, endpoint: &Endpoint, route: Arc<Route>, news: Arc<News>) -> Self {
        Self {
            registry: registry.to_owned(),
            pod: endpoint.pod.clone(),
            address: endpoint.address,
            route: ArcSwap::new(route),
            record: Mutex::default(),
            standing: watch::Sender::new(Standing::Unknown),
            pool: Pool::default(),
            look_now: Notify::new(),
            accused: Notify::new(),
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

    /// Whether it answers, and may be asked.
    pub(super) fn serves(&self) -> bool {
        self.standing() == Standing::In && !self.is_refused(Origin::Disk)
    }

    /// Whether its bodies from there are not asked for now. Where there is no other way, a slow one is better than none.
    pub(super) fn is_refused(&self, origin: Origin) -> bool {
        !self.route.load().is_only_way && self.record().conduct.is_refused(origin)
    }

    pub(super) fn is_on_probation(&self, origin: Origin) -> bool {
        self.record().conduct.is_on_probation(origin)
    }

    /// Whether any other is asked first.
    pub(super) fn is_last_choice(&self) -> bool {
        self.record().conduct.is_last_choice(Instant::now())
    }

    /// A body ended before its end.
    pub(super) fn broke_off(&self) {
        self.record().conduct.break_off(Instant::now());
    }

    /// A small body was right.
    pub(super) fn did_well(&self, content: &Arc<Content>) {
        self.record().conduct.do_well(content);
    }

    /// A body was as it should be.
    pub(super) fn behaved(&self, origin: Origin, content: &Arc<Content>) {
        let mut record = self.record();
        if self.route.load().is_only_way {
            record.conduct.make_up(origin);
        }
        record.conduct.behave(origin, content);
        self.forgive_in(record);
    }

    /// A body was not. The trial shows when that is over.
    pub(super) fn offended(&self, how: &dyn Display, trial: Trial) {
        let offence = format!("{}: {how}", self.address);
        let consequence = match trial.origin {
            _ if self.route.load().is_only_way => "the cache fails, and pulls have no other way",
            Origin::Disk => "pulls pass the cache by for a while",
            Origin::Upstream => "pulls of what the cache has to fetch pass it by for a while",
        };
        tracing::warn!(registry = self.registry, pod = self.pod, error = offence, "{consequence}");
        self.update(|record| {
            record.conduct.offend(&Arc::new(trial), Instant::now());
            record.offence = Some(offence);
        });
        self.accused.notify_one();
    }

    /// Waits until it answers.
    pub(super) async fn until_in(&self) {
        // The sender is a part of this, so that the wait cannot fail.
        let _ = self.standing.subscribe().wait_for(|standing| *standing == Standing::In).await;
    }

    /// Tells of it once an offence is over.
    pub(super) fn forgive(&self) {
        self.forgive_in(self.record());
    }

    fn forgive_in(&self, mut record: MutexGuard<'_, Record>) {
        let is_news = record.forgive();
        drop(record);
        if is_news {
            self.news.tell();
        }
    }

    /// Changes what is known of it, which is news.
    fn update(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record());
        self.news.tell();
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went wrong last.
    pub(super) fn trouble(&self) -> Option<String> {
        let record = self.record();
        record.trouble.clone().or_else(|| record.offence.clone())
    }

    /// Whether the prober may take its time.
    pub(super) fn is_settled(&self) -> bool {
        self.record().health.is_settled()
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
        let trouble = sign.err().map(ToString::to_string);
        let mut record = self.record();
        let before = record.health.standing();
        match sign {
            Ok(()) => record.health.succeed(Instant::now()),
            Err(_) => record.health.fail(Instant::now()),
        }
        let told = std::mem::replace(&mut record.trouble, trouble);
        self.stands(record, before, told.as_deref());
    }

    /// No other Pod is left to be asked: if it answers again, it is in at once. Whether it is by this.
    pub(super) fn readmit(&self) -> bool {
        let mut record = self.record();
        let before = record.health.standing();
        let is_back = record.health.readmit();
        let told = record.trouble.clone();
        self.stands(record, before, told.as_deref());
        is_back
    }

    /// Tells of its standing and its trouble, where they are other than before.
    fn stands(&self, record: MutexGuard<'_, Record>, before: Standing, told: Option<&str>) {
        let after = record.health.standing();
        // While it is locked: of two signs at once, the later one's verdict must be the one that stays.
        if before != after {
            self.standing.send_replace(after);
        }
        let trouble = record.trouble.clone();
        drop(record);
        if before == after {
            if after != Standing::In && told != trouble.as_deref() {
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

    /// A body from there took so much longer than is due. What the upstream takes is not the Pod's affair.
    pub(super) fn took_its_time(&self, origin: Origin, too_much: Duration, content: &Arc<Content>) {
        if origin == Origin::Disk
            && !too_much.is_zero()
            && self.record().conduct.lateness.take_time(too_much, Trial::promptly(content), Instant::now())
        {
            self.accused.notify_one();
        }
    }

    /// It gave no answer, and took its time.
    pub(super) fn kept_waiting(&self, trial: Trial) {
        self.charge(|lateness, now| lateness.keep_waiting(trial, now));
    }

    /// What it gave, after so long, was of no use.
    pub(super) fn failed(&self, after: Duration, trial: Trial) {
        self.charge(|lateness, now| lateness.fail(after, trial, now));
    }

    /// Holds against it that it was late; it may have to be tried for that.
    fn charge(&self, with: impl FnOnce(&mut Lateness, Instant)) {
        with(&mut self.record().conduct.lateness, Instant::now());
        self.accused.notify_one();
    }

    /// What it gave no cache of ours would give.
    pub(super) fn talked_nonsense(&self, what: &dyn Display, trial: Trial) {
        let nonsense = format!("{}: {what}", self.address);
        let mut record = self.record();
        record.nonsense = Some(nonsense.clone());
        if self.turns(record, |conduct| conduct.talk_nonsense(trial, Instant::now())) {
            tracing::warn!(registry = self.registry, pod = self.pod, error = nonsense, "cache answers nothing of use");
            self.accused.notify_one();
        }
    }

    /// What it gave of this was of use.
    pub(super) fn talked_sense(&self, content: &Content) {
        if self.turns(self.record(), |conduct| conduct.talk_sense(content)) {
            tracing::info!(registry = self.registry, pod = self.pod, "cache answers are of use again");
        }
    }

    /// Whether it is of no use from this on, or of use again.
    fn turns(&self, mut record: MutexGuard<'_, Record>, change: impl FnOnce(&mut Conduct)) -> bool {
        let before = record.conduct.is_useless();
        change(&mut record.conduct);
        let is_news = record.conduct.is_useless() != before;
        drop(record);
        if is_news {
            self.news.tell();
        }
        is_news
    }

    /// Why it is of no use though it is asked: the last such answer, or where there is no other way, the last offence.
    pub(super) fn uselessness(&self) -> Option<String> {
        let record = self.record();
        if record.conduct.is_useless() {
            return record.nonsense.clone();
        }
        let is_asked_all_the_same = self.route.load().is_only_way && record.conduct.is_refused(Origin::Disk);
        record.offence.clone().filter(|_| is_asked_all_the_same)
    }

    /// It told not even what it has.
    pub(super) fn says_nothing(&self, method: &Method, content: &Arc<Content>) {
        let trial = Trial::own(method, content);
        self.offended(&"the cache answers nothing, not even whether it has something", trial);
    }
}
