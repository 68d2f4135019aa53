//! One registry's cache as this node finds it: its Pods, how they stand together, and which to ask for what.

use super::ask::{Content, Digest, Kind};
use super::audit::{Audit, Auditor};
use super::connect::ConnectFault;
use super::health::Standing;
use super::judge;
use super::origin::Origin;
use super::patient::Cut;
use super::probe;
use super::replica::{News, NoAnswer, Replica};
use super::resume::Rest;
use super::route::Route;
use super::suspended::Suspended;
use super::traffic::Counters;
use super::verify::Verifying;
use arc_swap::ArcSwap;
use futures::FutureExt;
use futures::future::join;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Headers must be here, over all Pods together.
pub(super) const HEADERS: Duration = Duration::from_secs(5);
/// A cache that was not asked yet is asked at once; a request waits this long for the first verdict.
const FIRST_VERDICT: Duration = Duration::from_secs(1);

/// One registry's cache.
#[derive(Debug)]
pub(super) struct Cache {
    registry: String,
    pods: ArcSwap<Pods>,
    has_served: AtomicBool,
    suspended: Arc<Mutex<Suspended>>,
    auditor: Mutex<Auditor>,
    news: Arc<News>,
    pub(super) verifying: Verifying,
    pub(super) counters: Counters,
}

/// The Pods and the way to them.
#[derive(Debug, Default)]
struct Pods {
    route: Option<Arc<Route>>,
    probed: Vec<Arc<Probed>>,
}

impl Pods {
    fn replicas(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.probed.iter().map(|probed| &probed.replica)
    }
}

#[derive(Debug)]
struct Probed {
    replica: Arc<Replica>,
    _prober: AbortOnDropHandle<()>,
}

/// Why the cache does not serve a request; the runtime goes on to the next host.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unserved {
    #[error("the cache does not answer")]
    Out,
    #[error("an answer for this digest broke off a moment ago")]
    Suspended,
    #[error("too much is being verified at the moment")]
    Busy,
    #[error("the cache's bodies are not asked for, because one was not as it should be a moment ago")]
    Offended,
    #[error("the cache may send something else or break off, as it or another Pod of it did a moment ago")]
    Doubted,
    #[error("{0}")]
    Connect(#[source] ConnectFault),
    #[error("no headers within {HEADERS:?}")]
    Late,
    #[error("the cache took {} ms to answer", .0.as_millis())]
    Slow(Duration),
    #[error("the cache began a manifest or another small answer and did not end it in time")]
    Stalled,
    #[error("the cache answered {0}")]
    Status(http::StatusCode),
    #[error("the cache answered {0}, and not as a cache of Breakwater's")]
    Nonsense(http::StatusCode),
    #[error("the cache's answer is not fit to be passed on: {0}")]
    Unfit(&'static str),
    #[error("the cache sent something else than the digest says")]
    OtherContent,
    #[error("{0}")]
    Cut(#[source] Cut),
}

impl Unserved {
    /// Whether nobody is there to serve it.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Out => true,
            Self::Connect(fault) => fault.is_absence(),
            _ => false,
        }
    }
}

impl From<NoAnswer> for Unserved {
    fn from(none: NoAnswer) -> Self {
        match none {
            NoAnswer::Connect(fault) => Self::Connect(fault),
            NoAnswer::Late => Self::Late,
            NoAnswer::Out => Self::Out,
        }
    }
}

/// What the agent reports of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// How its Pods stand together: in as soon as one is.
    pub standing: Standing,
    /// Pods whose address is known.
    pub pods: usize,
    /// Of these, those that answer.
    pub answering: usize,
    /// What went wrong last.
    pub trouble: Option<String>,
    /// Why it is of no use, where none of those that answer is of any.
    pub uselessness: Option<String>,
}

impl Cache {
    pub(super) fn new(registry: &str, route: Option<Arc<Route>>, report: Arc<Notify>, verifying: Verifying) -> Self {
        let news = Arc::new(News { verdicts: watch::Sender::new(()), report });
        let cache = Self {
            registry: registry.to_owned(),
            pods: ArcSwap::default(),
            has_served: AtomicBool::new(false),
            suspended: Arc::default(),
            auditor: Mutex::default(),
            news,
            verifying,
            counters: Counters::default(),
        };
        cache.set_route(route);
        cache
    }

    /// Replaces the way to the cache. A Pod that stays keeps what is known of its health.
    pub(super) fn set_route(&self, route: Option<Arc<Route>>) {
        // What is about to be forgotten decides whether the mirror is new or lost.
        let _ = self.standing();
        let before = self.pods.load_full();
        let probed = route.iter().flat_map(|route| route.endpoints.iter().map(move |endpoint| (route, endpoint)));
        let probed = probed.map(|(route, endpoint)| {
            if let Some(known) = before.probed.iter().find(|known| known.replica.is(endpoint)) {
                known.replica.set_route(route);
                return known.clone();
            }
            let replica = Arc::new(Replica::new(&self.registry, endpoint, route.clone(), self.news.clone()));
            let watch = join(
                probe::probe_forever(replica.clone()),
                judge::try_forever(replica.clone(), self.suspended.clone()),
            );
            let prober = AbortOnDropHandle::new(tokio::spawn(watch.map(drop)));
            Arc::new(Probed { replica, _prober: prober })
        });
        let pods = Arc::new(Pods { probed: probed.collect(), route });
        let stays = |old: &Probed| pods.probed.iter().any(|new| Arc::ptr_eq(&new.replica, &old.replica));
        before.probed.iter().filter(|old| !stays(old)).for_each(|old| old.replica.retire());
        self.pods.store(pods);
        self.news.verdicts.send_replace(());
        self.news.report.notify_one();
    }

    pub(super) fn view(&self) -> View {
        let pods = self.pods.load();
        let serving = || pods.replicas().filter(|replica| replica.serves());
        let troubles = pods.replicas().map(|replica| replica.trouble());
        View {
            standing: self.standing(),
            pods: pods.probed.len(),
            answering: serving().count(),
            trouble: troubles.flatten().next(),
            uselessness: serving().map(|replica| replica.uselessness()).reduce(Option::and).flatten(),
        }
    }

    /// In as soon as one Pod serves; a cache that has served and does so no more is out.
    fn standing(&self) -> Standing {
        let pods = self.pods.load();
        let has = |wanted| pods.replicas().any(|replica| replica.standing() == wanted);
        if pods.replicas().any(|replica| replica.serves()) {
            self.has_served.store(true, Ordering::Relaxed);
            Standing::In
        } else if has(Standing::Unknown) {
            Standing::Unknown
        } else if self.has_served.load(Ordering::Relaxed) {
            Standing::Out
        } else {
            Standing::Unproven
        }
    }

    /// The Pods to ask for this content, best first.
    pub(super) async fn candidates(&self, content: &Arc<Content>) -> Result<Vec<Arc<Replica>>, Unserved> {
        let mut verdicts = self.news.verdicts.subscribe();
        let first_verdict = async { while self.standing() == Standing::Unknown && verdicts.changed().await.is_ok() {} };
        // Without one the cache counts as out.
        let _ = timeout(FIRST_VERDICT, first_verdict).await;
        if let Kind::Blob(digest) | Kind::Manifest(Some(digest)) = &content.kind
            && self.suspended.lock().unwrap_or_else(PoisonError::into_inner).holds(digest, Instant::now())
        {
            return Err(Unserved::Suspended);
        }
        self.note_in_vain(content);
        let candidates = self.standing_in(&content.repository);
        if candidates.is_empty() { Err(Unserved::Out) } else { Ok(candidates) }
    }

    /// Lets those in that answer again, though not for long yet: nobody else is left. Whether there is one.
    pub(super) fn readmit(&self) -> bool {
        self.pods.load().replicas().filter(|replica| replica.readmit()).count() > 0
    }

    /// Somebody sent something else than this. A pull is owed no second lie, whoever else tells it.
    pub(super) fn suspect_others(&self, content: &Arc<Content>) {
        let pods = self.pods.load();
        pods.replicas().filter(|replica| replica.serves()).for_each(|replica| replica.suspected(content));
    }

    /// Those who are asked for nothing at the moment hear of what was wanted: they are tried with it.
    fn note_in_vain(&self, content: &Arc<Content>) {
        let pods = self.pods.load();
        let refused = pods.replicas().filter(|replica| replica.is_refused(Origin::Disk));
        refused.for_each(|replica| replica.wanted(content));
    }

    /// Of the Pods that broke off an answer, those that did so again and again are not asked for a while.
    pub(super) fn hold_breaks_against(&self, rest: &Rest, origin: Origin, cut: &Cut) {
        let pods = self.pods.load();
        let broke = pods.replicas().filter(|replica| rest.was_broken_again_by(replica.address));
        broke.for_each(|replica| replica.offended(cut, rest.trial(origin)));
    }

    /// The Pods that serve, ranked for this repository; those last whose bodies stalled or broke off.
    pub(super) fn standing_in(&self, repository: &str) -> Vec<Arc<Replica>> {
        let pods = self.pods.load();
        let Some(route) = &pods.route else { return Vec::new() };
        let replica = |endpoint: &_| pods.replicas().find(|one| one.is(endpoint));
        let ranked = route.ranked(repository).into_iter().filter_map(replica);
        let mut serving: Vec<_> = ranked.filter(|replica| replica.serves()).cloned().collect();
        serving.sort_by_key(|replica| replica.is_last_choice());
        serving
    }

    /// Whether another Pod could go on with an answer of this one.
    pub(super) fn has_others(&self, than: &Replica) -> bool {
        let pods = self.pods.load();
        pods.replicas().any(|replica| replica.address != than.address && replica.serves())
    }

    /// A body broke off for good: its digest is asked elsewhere for a while, or the runtime would resume here again and again.
    pub(super) fn suspend(&self, blob: &Digest) {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner).suspend(blob.clone(), Instant::now());
    }

    /// For a blob that comes whole; None where it is not looked at.
    pub(super) fn audit(&self, blob: &Digest, length: u64) -> Option<Audit> {
        self.auditor.lock().unwrap_or_else(PoisonError::into_inner).audit(blob, length, Instant::now())
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }
}
