//! Tells every replica of every cache what to hold, and publishes how far it is. Client I/O; one task owns all of it.

use super::collect::InUse;
use super::line::{AskFailed, Line, PinReport, tls};
use super::reference::ImageName;
use super::replicas::{Ask, Replicas};
use super::verdict::{ImagesReport, judge};
use super::wanted::{Lingering, Pin, Wanted, wanted};
use crate::fleet::Fleet;
use crate::pki::Authority;
use crate::pki::keeper::Trust;
use crate::secrets::SecretReader;
use crate::watches::{Stores, readable};
use breakwater_crds::names::tokens_secret;
use breakwater_crds::{RegistryMirror, claims};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use rustls::ClientConfig;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

const TICK: Duration = Duration::from_millis(500);
const MAX_AT_ONCE: usize = 16;
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// An image that is exposed for so long is worth an Event: most are whole within seconds.
const LASTING: SignedDuration = SignedDuration::from_mins(10);

/// How all images in use fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// By the mirror's name; those alone of which it is known.
    pub mirrors: BTreeMap<String, Arc<ImagesReport>>,
    /// Images in use or asked for, by the mirror's name: known also while no replica of its cache tells of them.
    pub in_use: BTreeMap<String, usize>,
    /// Images of registries that have no mirror; none while the images in use are not known.
    pub not_mirrored: Option<usize>,
}

impl Survey {
    fn note(&mut self, mirror: &str, in_use: Option<usize>, report: Option<Arc<ImagesReport>>) {
        match in_use {
            Some(in_use) => self.in_use.insert(mirror.to_owned(), in_use),
            None => self.in_use.remove(mirror),
        };
        match report {
            Some(report) => self.mirrors.insert(mirror.to_owned(), report),
            None => self.mirrors.remove(mirror),
        };
    }
}

/// The survey as everybody but the keeper sees it.
pub type Surveys = watch::Receiver<Arc<Survey>>;

/// What the keeper works with.
pub struct Keeper {
    /// What the watches keep.
    pub stores: Stores,
    /// Reads the tokens of caches.
    pub secrets: Arc<SecretReader>,
    /// By which caches are trusted.
    pub trust: Trust,
    /// What is in use.
    pub in_use: watch::Receiver<InUse>,
    /// Where to publish.
    pub publish: watch::Sender<Arc<Survey>>,
}

/// The state of the task.
#[derive(Default)]
struct State {
    replicas: Replicas,
    in_use: InUse,
    lingering: Lingering,
    fleet: Arc<Fleet>,
    platforms: BTreeSet<String>,
    /// Moves whenever something above does that decides what caches hold.
    epoch: u64,
    lists: HashMap<String, List>,
    tls: Option<(Arc<Authority>, Arc<ClientConfig>)>,
}

/// What the cache of one mirror shall hold, and what that was computed from.
struct List {
    of: (u64, Option<String>),
    mirror: RegistryMirror,
    /// None while it cannot be known.
    wanted: Option<Wanted>,
    /// Since when each image is exposed. By the clock on the wall, so that the status can carry it over to the operator's next life.
    exposed: HashMap<ImageName, Timestamp>,
}

struct Answer {
    pod: String,
    address: SocketAddr,
    /// The list that it was told.
    told: Option<Vec<Pin>>,
    answer: Result<Vec<PinReport>, AskFailed>,
}

impl Keeper {
    /// Runs until it is dropped; calls `changed` with the name of each mirror whose report is news.
    pub async fn run(mut self, changed: impl Fn(&str) + Send + 'static) {
        let mut state = State::default();
        let mut asking = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        loop {
            let touched = tokio::select! {
                _ = tick.tick() => {
                    let touched = self.look(&mut state, Instant::now());
                    self.ask_due(&mut state, &mut asking, Instant::now());
                    touched
                }
                Some(Ok(answer)) = asking.join_next() => state.settle(answer, Instant::now()),
            };
            for mirror in touched {
                if self.report(&mut state, &mirror, Timestamp::now()) {
                    changed(&mirror);
                }
            }
        }
    }

    /// Follows mirrors, Pods and nodes; names the mirrors of which something else is to be said.
    fn look(&mut self, state: &mut State, now: Instant) -> BTreeSet<String> {
        state.replicas.follow(&self.stores.all_cache_pods(), now);
        state.note_in_use(self.in_use.borrow_and_update().clone(), now);
        state.note_fleet(self.stores.fleet());
        let mirrors = self.stores.mirrors();
        let holders = claims(readable(&mirrors));
        let held: BTreeMap<_, _> = holders.values().map(|mirror| (mirror.name_any(), *mirror)).collect();
        let mut touched: BTreeSet<_> = state.lists.keys().filter(|name| !held.contains_key(*name)).cloned().collect();
        state.lists.retain(|name, _| held.contains_key(name));
        touched.extend(held.into_iter().filter_map(|(name, mirror)| state.plan(mirror).then_some(name)));
        let silent = |name: &&String| state.replicas.reports_of(name).is_empty();
        touched.extend(self.publish.borrow().mirrors.keys().filter(silent).cloned());
        let count = |in_use: &Arc<BTreeMap<ImageName, bool>>| {
            in_use.keys().filter(|image| !holders.contains_key(image.registry())).count()
        };
        let not_mirrored = state.in_use.as_ref().map(count);
        self.publish.send_if_modified(|survey| {
            let is_news = survey.not_mirrored != not_mirrored;
            if is_news {
                Arc::make_mut(survey).not_mirrored = not_mirrored;
            }
            is_news
        });
        touched
    }

    fn ask_due(&self, state: &mut State, asking: &mut JoinSet<Answer>, now: Instant) {
        let trust = self.trust.borrow().as_ref().ok().cloned();
        let Some(tls) = trust.and_then(|authority| state.tls(&authority)) else { return };
        let State { replicas, lists, .. } = state;
        for (pod, replica) in &mut replicas.0 {
            if asking.len() >= MAX_AT_ONCE {
                return;
            }
            let Some(wanted) = lists.get(&replica.mirror).and_then(|list| list.wanted.as_ref()) else { continue };
            let name = tokens_secret(&replica.cache);
            let Some(version) = self.stores.secret_version(&name) else { continue };
            let Some(ask) = replica.next(wanted, now) else { continue };
            let (pod, secrets) = (pod.clone(), self.secrets.clone());
            let (address, cache, tls) = (replica.address, replica.cache.clone(), tls.clone());
            asking.spawn(async move {
                let told = match ask {
                    Ask::Get => None,
                    Ask::Put(pins) => Some(pins),
                };
                let tokens = tokio::time::timeout(READ_DEADLINE, secrets.tokens(&name, Some(&version))).await;
                let answer = match tokens.ok().and_then(Result::ok).flatten() {
                    None => Err(AskFailed::NoToken),
                    Some(tokens) => {
                        let line = Line { address, cache, token: tokens.operator().to_owned(), tls };
                        match &told {
                            None => line.get().await,
                            Some(pins) => line.put(pins).await,
                        }
                    }
                };
                Answer { pod, address, told, answer }
            });
        }
    }

    /// Judges one mirror anew; says whether the report is news.
    fn report(&self, state: &mut State, mirror: &str, now: Timestamp) -> bool {
        let replicas = state.replicas.reports_of(mirror);
        let list = state.lists.get_mut(mirror);
        let in_use = list.as_ref().and_then(|list| Some(list.wanted.as_ref()?.counted.len()));
        let report = list.and_then(|list| {
            let mut report = judge(&list.mirror.spec, list.wanted.as_ref()?, &replicas)?;
            list.date(&mut report, now);
            Some(Arc::new(report))
        });
        self.publish.send_if_modified(|survey| {
            let is_news = survey.mirrors.get(mirror) != report.as_ref() || survey.in_use.get(mirror) != in_use.as_ref();
            if is_news {
                Arc::make_mut(survey).note(mirror, in_use, report);
            }
            is_news
        })
    }
}

impl State {
    fn note_in_use(&mut self, in_use: InUse, now: Instant) {
        let is_same = match (&self.in_use, &in_use) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            if let (Some(old), Some(new)) = (&self.in_use, &in_use) {
                self.lingering.replaced(old, new, now);
            }
            self.in_use = in_use;
        }
        if self.lingering.expire(now) || !is_same {
            self.epoch += 1;
        }
    }

    fn note_fleet(&mut self, fleet: Arc<Fleet>) {
        if Arc::ptr_eq(&self.fleet, &fleet) {
            return;
        }
        let platforms: BTreeSet<_> = fleet.nodes.iter().filter_map(|node| node.facts.platform.as_ref()).collect();
        // Nodes may all be gone for a moment; images are for those that come.
        if !platforms.is_empty() && !platforms.iter().copied().eq(&self.platforms) {
            self.platforms = platforms.into_iter().cloned().collect();
            self.epoch += 1;
        }
        self.fleet = fleet;
    }

    /// What the cache of this mirror shall hold; says whether that is something else than before.
    fn plan(&mut self, mirror: &RegistryMirror) -> bool {
        let of = (self.epoch, mirror.resource_version());
        let old = self.lists.get(&mirror.name_any());
        if old.is_some_and(|list| list.of == of) {
            return false;
        }
        let none = BTreeMap::new();
        let in_use = match &self.in_use {
            Some(in_use) => Some(&**in_use),
            None => (!mirror.spec.images.in_use).then_some(&none),
        };
        let wanted = in_use.and_then(|in_use| wanted(&mirror.spec, in_use, &self.lingering, &self.platforms));
        let is_same = old.is_some_and(|list| list.wanted == wanted && list.mirror.spec == mirror.spec);
        let exposed = self.lists.remove(&mirror.name_any()).map_or_else(|| exposed_before(mirror), |list| list.exposed);
        self.lists.insert(mirror.name_any(), List { of, mirror: mirror.clone(), wanted, exposed });
        !is_same
    }

    fn tls(&mut self, authority: &Arc<Authority>) -> Option<Arc<ClientConfig>> {
        match &self.tls {
            Some((of, tls)) if Arc::ptr_eq(of, authority) => Some(tls.clone()),
            _ => {
                let tls = tls(authority)?;
                self.tls = Some((authority.clone(), tls.clone()));
                Some(tls)
            }
        }
    }

    fn settle(&mut self, answer: Answer, now: Instant) -> BTreeSet<String> {
        let Answer { pod, address, told, answer } = answer;
        let Some(replica) = self.replicas.0.get_mut(&pod).filter(|replica| replica.address == address) else {
            return BTreeSet::new();
        };
        let is_first = replica.settle(told.as_deref(), answer, now);
        let mirror = replica.mirror.clone();
        if is_first
            && let (Some(list), Some(in_use)) = (self.lists.get(&mirror), &self.in_use)
            && list.mirror.spec.images.in_use
        {
            let registry = &list.mirror.spec.registry;
            // Without the host, also where the repository begins like one.
            let held = replica.reports.iter().flatten().map(|report| format!("{registry}/{}", report.image));
            for image in held.filter_map(|image| ImageName::parse(&image)) {
                self.lingering.adopt(image, in_use, now);
            }
            self.epoch += 1;
        }
        BTreeSet::from([mirror])
    }
}

impl List {
    /// Says since when each image is exposed, and which of them are for long.
    fn date(&mut self, report: &mut ImagesReport, now: Timestamp) {
        let images: BTreeSet<_> = report.exposed.iter().map(|exposed| &exposed.image).collect();
        self.exposed.retain(|image, _| images.contains(image));
        for exposed in &mut report.exposed {
            let since = *self.exposed.entry(exposed.image.clone()).or_insert(now);
            exposed.since = Some(since);
            // A time in the future was written before the clock was put right: so long ago that nobody knows.
            if now.duration_since(since).abs() >= LASTING {
                report.lasting.insert(exposed.image.clone());
            }
        }
    }
}

/// Since when images are exposed, as far as the operator's last life wrote it down.
fn exposed_before(mirror: &RegistryMirror) -> HashMap<ImageName, Timestamp> {
    let images = mirror.status.iter().flat_map(|status| &status.images);
    let listed = images.flat_map(|images| &images.exposed);
    listed.filter_map(|it| Some((ImageName::parse(&it.image)?, it.since.as_ref()?.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::verdict::Exposed;

    fn list(status: &str) -> List {
        let mirror: RegistryMirror = crate::fixture::parse(&format!(
            "{{metadata: {{name: hub}}, spec: {{registry: docker.io}}, status: {status}}}"
        ));
        let exposed = exposed_before(&mirror);
        List { of: (0, None), mirror, wanted: None, exposed }
    }

    /// The names of those that are exposed for long, of these that are exposed.
    fn lasting(list: &mut List, images: &[&str], now: Timestamp) -> Vec<String> {
        let image = |text: &&str| ImageName::parse(text).unwrap();
        let exposed = |text| Exposed { image: image(text), reason: "NotFound", message: None, since: None };
        let mut report = ImagesReport { exposed: images.iter().map(exposed).collect(), ..ImagesReport::default() };
        list.date(&mut report, now);
        assert!(report.exposed.iter().all(|exposed| exposed.since == list.exposed.get(&exposed.image).copied()));
        report.lasting.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_image_is_told_of_after_ten_minutes_without_a_pause_between_them() {
        let start: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let mut list = list("{}");
        let mut lasting = |images: &[&str], now: SignedDuration| lasting(&mut list, images, start + now);
        let (minutes, none) = (SignedDuration::from_mins, [""; 0]);
        assert_eq!(lasting(&["a:1"], minutes(0)), none);
        assert_eq!(lasting(&["a:1", "b:1"], minutes(5)), none);
        assert_eq!(lasting(&["a:1", "b:1"], LASTING - SignedDuration::from_millis(1)), none);
        assert_eq!(lasting(&["a:1", "b:1"], LASTING), ["docker.io/library/a:1"]);
        // One that was whole for a moment begins anew.
        assert_eq!(lasting(&["a:1"], minutes(11)), ["docker.io/library/a:1"]);
        assert_eq!(lasting(&["a:1", "b:1"], minutes(16)), ["docker.io/library/a:1"]);
        assert_eq!(lasting(&["a:1", "b:1"], minutes(26)), ["docker.io/library/a:1", "docker.io/library/b:1"]);
    }

    #[test]
    fn a_new_operator_counts_on_from_what_the_last_one_wrote_down() {
        let status = "{images: {inUse: 3, survivable: 1, exposed: [
            {image: 'docker.io/library/a:1', reason: NotFound, since: '2026-11-21T10:00:00Z'},
            {image: 'docker.io/library/b:1', reason: NotFound}]}}";
        let at = |time: &str| lasting(&mut list(status), &["a:1", "b:1"], time.parse().unwrap());
        assert_eq!(at("2026-11-21T10:09:59Z"), [""; 0]);
        assert_eq!(at("2026-11-21T10:10:00Z"), ["docker.io/library/a:1"], "the other one's age was not written down");
    }
}
