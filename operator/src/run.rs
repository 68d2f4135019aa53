//! The life of the process: listen, find the API, become the leader, watch and reconcile, stop. Holds no rule about mirrors.
//!
//! Fail-stop on purpose: a lease that somebody else took or an essential task that ends is the end of the process, and its Pod starts it
//! anew. Where only the API server is away, all that the leader did is dropped, and the process stands by until it is back.

use crate::args::Args;
use crate::build::Settings;
use crate::controller::{Context, PassFailed, error_policy, reconcile};
use crate::health::{self, Admin, Readiness};
use crate::images::{self, ImageMetrics, Surveys};
use crate::lease::{Candidate, Lost};
use crate::memory::Memory;
use crate::metrics::{Metrics, MirrorConditions};
use crate::pki::keeper::{Keeper, Trust};
use crate::report::Reporter;
use crate::secrets::SecretReader;
use crate::skew::{Lacks, Skew};
use crate::startup::{NotReady, definitions_established};
use crate::telemetry::LogLevel;
use crate::upstream::keep_reports;
use crate::watches::{self, Mirrors, Namespaces, NotFilled, Stores, Trigger};
use breakwater_crds::RegistryMirror;
use futures::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Config, Controller, Error as ControllerError};
use kube::runtime::events::{Recorder, Reporter as EventReporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Name under which Events are reported.
const CONTROLLER: &str = "breakwater-operator";
/// Mirrors that are reconciled at the same time.
const CONCURRENCY: u16 = 8;
/// Changes come in bursts, one pass per burst is enough; short, because a mirror should be Ready soon after its Pod is.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Passes under way get so long to end before the lease is given back; both must fit into the 10 s that the Pod has to stop.
const DRAIN: Duration = Duration::from_secs(5);
const FIRST_LOOK: Duration = Duration::from_secs(30);

/// Why the operator could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The listener could not be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The API is not there.
    #[error(transparent)]
    NotReady(NotReady),
    /// A watch cannot be filled.
    #[error(transparent)]
    NotFilled(NotFilled),
    /// Somebody else may lead now.
    #[error("no longer the leader")]
    Lost(#[source] Lost),
    /// A task without which nothing works ended.
    #[error("an essential task ended")]
    TaskEnded,
}

/// Runs until `stop` is cancelled.
///
/// # Errors
/// It could not start or go on.
pub async fn run(args: Args, client: Client, log_level: LogLevel, stop: CancellationToken) -> Result<(), Stopped> {
    // Without `..`: a flag that nothing reads does not compile.
    let Args { namespace, nodes_namespace, image, image_pull_secrets, pod_name, listen, log_format: _ } = args;
    let conditions = MirrorConditions::default();
    let images = ImageMetrics::default();
    let metrics =
        Arc::new(Metrics::new(&PassFailed::STEPS, &PassFailed::CATEGORIES, conditions.clone(), images.clone()));
    let readiness = Readiness::default();
    let failed = |source| Stopped::Listen { address: listen, source };
    let listener = health::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %address, %image, %namespace, "starting");
    let mut tasks = JoinSet::new();
    let admin = Admin { readiness: readiness.clone(), metrics: metrics.clone(), log_level };
    tasks.spawn(health::serve(listener, admin));

    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        established = definitions_established(&client) => established.map_err(Stopped::NotReady)?,
    }
    let (mut skew, lacks) = Skew::new(&client, metrics.clone());
    // Before the first status: one with a field that is not defined would be refused as a whole.
    let look_again = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        look_again = skew.look() => look_again,
    };
    tasks.spawn(skew.keep(look_again));
    readiness.set();
    let candidate = Candidate::new(client.clone(), &namespace, pod_name.clone());
    let settings = Settings { namespace, image, image_pull_secrets };
    let watching = watches::paced(&client);
    let leader = Leader { client, watching, settings, nodes_namespace, pod_name, metrics, conditions, images, lacks };
    tokio::select! {
        ended = take_part(&leader, candidate, stop) => ended,
        _ = tasks.join_next() => Err(Stopped::TaskEnded),
    }
}

/// Stands by and leads, in turn, until `stop` is cancelled. An API server that was away finds the operator again where it left it: what
/// it would do is begun anew from what is there, and no restart with its growing pauses lies between.
async fn take_part(leader: &Leader, mut candidate: Candidate, stop: CancellationToken) -> Result<(), Stopped> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = candidate.acquire() => tracing::info!(identity = %leader.pod_name, "leading"),
        }
        leader.metrics.leads();
        tokio::select! {
            led = leader.lead(stop.clone()) => {
                candidate.release().await;
                return led;
            }
            lost = candidate.hold() => match lost {
                Lost::NotRenewed => tracing::warn!(error = %lost, "no longer the leader, standing by"),
                Lost::Taken(_) => return Err(Stopped::Lost(lost)),
            },
        }
        leader.steps_down();
    }
}

/// What the leader works with.
struct Leader {
    client: Client,
    /// The same for watches, which keep their pace also when it leads again.
    watching: Client,
    settings: Settings,
    nodes_namespace: String,
    pod_name: String,
    metrics: Arc<Metrics>,
    conditions: MirrorConditions,
    images: ImageMetrics,
    lacks: Lacks,
}

impl Leader {
    /// Says nothing more of mirrors, which others may have changed.
    fn steps_down(&self) {
        self.metrics.stands_by();
        self.conditions.watch(None);
        self.images.watch(None);
    }

    /// Reconciles until `stop` is cancelled and what is under way has ended.
    async fn lead(&self, stop: CancellationToken) -> Result<(), Stopped> {
        let Self { client, watching, settings, nodes_namespace, pod_name, metrics, conditions, images, lacks } = self;
        let namespace = settings.namespace.as_str();
        let mut tasks = JoinSet::new();
        let controller =
            Controller::new(Api::<DeserializeGuard<RegistryMirror>>::all(watching.clone()), watcher::Config::default())
                .trigger_backoff(ByClient);
        let mirrors = controller.store();
        conditions.watch(mirrors.clone());
        let (trigger, triggered) = mpsc::unbounded_channel();
        let authority_changed = Arc::new(Notify::new());
        let namespaces = Namespaces { system: namespace, nodes: nodes_namespace };
        let filling = watches::start(
            watching,
            namespaces,
            mirrors.clone(),
            trigger.clone(),
            authority_changed.clone(),
            &mut tasks,
        );
        let stores = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            stores = filling => stores.map_err(Stopped::NotFilled)?,
        };
        let (keeper, trust) = Keeper::new(client, namespace, nodes_namespace);
        tasks.spawn(keeper.run(authority_changed));
        let mut first_look = trust.clone();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // A first pass without the authority would report its absence; if it takes longer, that is the truth.
            _ = tokio::time::timeout(FIRST_LOOK, first_look.changed()) => {}
        }
        tasks.spawn(trigger_all(trust.clone(), mirrors.clone(), trigger.clone(), metrics.clone()));
        let (publish, upstreams) = watch::channel(Arc::new(HashMap::new()));
        tasks.spawn(keep_reports(stores.clone(), publish, mirror_of_cache(stores.clone(), trigger.clone())));
        let secrets = Arc::new(SecretReader::new(client.clone(), namespace));
        let surveys = keep_images(watching, &stores, secrets.clone(), trust.clone(), trigger, &mut tasks);
        images.watch(surveys.clone());

        let reporter = EventReporter { controller: CONTROLLER.to_owned(), instance: Some(pod_name.clone()) };
        let recorder = Recorder::new(client.clone(), reporter);
        let context = Arc::new(Context {
            settings: settings.clone(),
            stores,
            secrets,
            trust,
            upstreams,
            images: surveys,
            began: Instant::now(),
            reporter: Reporter::new(client.clone(), recorder, lacks.clone()),
            memory: Memory::default(),
            metrics: metrics.clone(),
            client: client.clone(),
        });
        drive(controller, triggered, context, stop, tasks).await
    }
}

/// The mirrors' watch keeps its client's pace. A pause of the controller's own would hold up the triggers of all other watches as well.
struct ByClient;

impl Iterator for ByClient {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Backoff for ByClient {
    fn reset(&mut self) {}
}

type MirrorRef = ObjectRef<DeserializeGuard<RegistryMirror>>;

/// Runs the controller; an essential task that ends ends it too.
async fn drive(
    controller: Controller<DeserializeGuard<RegistryMirror>>,
    mut triggered: mpsc::UnboundedReceiver<MirrorRef>,
    context: Arc<Context>,
    stop: CancellationToken,
    mut tasks: JoinSet<()>,
) -> Result<(), Stopped> {
    let triggers = futures::stream::poll_fn(move |cx| triggered.poll_recv(cx));
    let passes = controller
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY))
        .reconcile_on(triggers)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(reconcile, error_policy, context.clone());
    let all = follow(passes, &context);
    tokio::pin!(all);
    tokio::select! {
        () = &mut all => {}
        _ = tasks.join_next() => return Err(Stopped::TaskEnded),
        () = stop.cancelled() => {
            tracing::info!("stopping");
            if tokio::time::timeout(DRAIN, all).await.is_err() {
                tracing::warn!("passes under way were cut off");
            }
            return Ok(());
        }
    }
    if stop.is_cancelled() { Ok(()) } else { Err(Stopped::TaskEnded) }
}

/// Takes note of how passes ended; what failed is already logged by the error policy.
async fn follow<T, E>(passes: impl Stream<Item = Result<T, ControllerError<PassFailed, E>>>, context: &Context)
where
    E: std::error::Error + 'static,
{
    let mut passes = std::pin::pin!(passes);
    while let Some(pass) = passes.next().await {
        match pass {
            Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
            Err(ControllerError::ObjectNotFound(mirror)) => {
                context.memory.forget(&mirror.name);
                context.secrets.keep_only_of(&context.stores.mirrors());
            }
            Err(error) => {
                tracing::warn!(error = %crate::error_chain(&error), "watch of mirrors interrupted, beginning again");
            }
        }
    }
}

/// Asks for a pass over every mirror whenever the authority is another one.
async fn trigger_all(mut trust: Trust, mirrors: Mirrors, trigger: Trigger, metrics: Arc<Metrics>) {
    trust.mark_changed();
    while trust.changed().await.is_ok() {
        if let Ok(authority) = &*trust.borrow_and_update() {
            metrics.authority_ends(authority.ends());
        }
        for mirror in mirrors.state() {
            let _ = trigger.send(ObjectRef::new(&mirror.name_any()));
        }
    }
}

/// Lets the caches hold the images in use, in two tasks; asks for a pass over each mirror whose images fare otherwise.
fn keep_images(
    watching: &Client,
    stores: &Stores,
    secrets: Arc<SecretReader>,
    trust: Trust,
    trigger: Trigger,
    tasks: &mut JoinSet<()>,
) -> Surveys {
    let (publish_uses, in_use) = watch::channel(None);
    let (publish, surveys) = watch::channel(Arc::default());
    tasks.spawn(images::collect(watching.clone(), publish_uses));
    let keeper = images::Keeper { stores: stores.clone(), secrets, trust, in_use, publish };
    tasks.spawn(keeper.run(move |mirror| {
        let _ = trigger.send(ObjectRef::new(mirror));
    }));
    surveys
}

/// Asks for a pass over the mirror of a cache.
fn mirror_of_cache(stores: Stores, trigger: Trigger) -> impl Fn(&str) + Send + 'static {
    move |cache| {
        let pods = stores.cache_pods(cache);
        let mirrors = pods.iter().filter_map(|pod| pod.labels().get(breakwater_crds::names::LABEL_MIRROR));
        for mirror in mirrors {
            let _ = trigger.send(ObjectRef::new(mirror));
        }
    }
}
