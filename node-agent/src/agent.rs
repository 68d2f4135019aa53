//! START HERE: what an agent does, from top to bottom.
//!
//! Whenever something changed, in the cluster or in certs.d (`touched`), and every 30 seconds, one turn: what is known of the cluster (`watch`, kept on disk by
//! `known`) becomes a plan (`plan`, pure), the relay gets its routes (`relay`), the files are written or given back
//! (`files`, `hosts_toml`), the container runtime is looked at (`runtime`) and seen to read them (`prove`, `cri`), and what
//! came of it is reported (`status`, `report`). Files are written only while the relay listens. At a stop, `departure`
//! decides whether they stay.

mod routes;
mod upkeep;

use crate::admin::{self, Admin};
use crate::args::Args;
use crate::departure::{self, Departure};
use crate::files::{Fault, Outcome};
use crate::known::{Known, Trust};
use crate::metrics::Tally;
use crate::plan::{self, Plan};
use crate::prove::{Target, prove_forever};
use crate::relay::{Relay, Trusting};
use crate::report::{self, Report};
use crate::runtime::{Configure, Look, Places, look};
use crate::status::{self, RuntimeSeen, Seen};
use crate::touched::Touched;
use crate::watch::{self, Sources};
use kube::Client;
use routes::routes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use upkeep::{Folder, Upkeep};

/// What others do to the files is noticed after at most this time, should the kernel not tell at once.
const RESCAN: Duration = Duration::from_secs(30);
/// While the runtime was not seen to read the files it is looked at more often: somebody may be mending it.
const RELOOK: Duration = Duration::from_secs(5);
/// A taken port is tried again after this time.
const REBIND: Duration = Duration::from_secs(2);

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentFault {
    /// Without its state nothing may be changed.
    #[error("--state-dir: {0}")]
    OpenState(#[source] io::Error),
    /// Nobody would see whether it lives.
    #[error("--admin-listen {address}: {source}; free the port, or choose another and probe that")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Only a new process gets the node's new folder mounted.
    #[error("{folder}: {source}")]
    Replaced {
        /// The folder.
        folder: PathBuf,
        /// What became of it.
        #[source]
        source: Fault,
    },
    /// A task that must run died.
    #[error("a task died: {0}")]
    Task(#[source] JoinError),
}

/// Runs until told to stop.
///
/// # Errors
/// The state folder or the admin listener's port cannot be used, a folder was taken away, or a task died.
pub async fn run(client: Client, args: Args, stop: CancellationToken) -> Result<(), AgentFault> {
    let mut running = Running::start(&client, args).await?;
    running.turn_until(&stop).await?;
    running.depart(client).await
}

/// An agent between its start and its departure.
struct Running {
    agent: Agent,
    upkeep: Upkeep,
    /// What to turn on, besides the relay's news.
    news: Receiver<Known>,
    touched: Touched,
    /// They follow the cluster, report to it and prove.
    tasks: JoinSet<()>,
    /// Lives on while running downloads end.
    admin: JoinSet<()>,
    node_name: String,
    /// Where the agents' DaemonSet is, and its name.
    agent_namespace: String,
    daemon_set: String,
}

impl Running {
    async fn start(client: &Client, args: Args) -> Result<Self, AgentFault> {
        // Without `..`: a setting that nobody uses does not compile.
        let Args {
            node_name,
            certs_dir,
            config_path,
            registries_conf_dir,
            runtime_config,
            configure_runtime,
            cri_socket,
            state_dir,
            relay_listen,
            admin_listen,
            namespace,
            agent_namespace,
            daemon_set,
            log_format: _, // used before anything is logged
        } = args;
        let stored = Known::load(&state_dir);
        let (known, news) = tokio::sync::watch::channel(stored.clone());
        let sources = Sources { node_name: node_name.clone(), namespace, agent_namespace: agent_namespace.clone() };
        let mut tasks = watch::start(client, &sources, &known);
        let listener = TcpListener::bind(admin_listen).await;
        let listener = listener.map_err(|source| AgentFault::Admin { address: admin_listen, source })?;
        let (reports, to_report) = tokio::sync::watch::channel(None);
        let (targets, to_prove) = tokio::sync::watch::channel(None);
        let (tally, to_count) = tokio::sync::watch::channel(Tally::default());
        let drop_ins = registries_conf_dir.is_some();
        let places = Places { config: runtime_config, socket: cri_socket.0, drop_ins };
        let config_path = registries_conf_dir.as_ref().map_or(config_path, |folder| folder.display().to_string());
        let folder = registries_conf_dir.map_or(Folder::Certs(certs_dir), Folder::RegistriesConf);
        let configure = Configure::new(&state_dir, configure_runtime && !drop_ins);
        let telling = Telling { config_path, places, configure, reports, targets, tally: tally.clone() };

        let touched = Touched::new();
        let agent = Agent::listening(relay_listen, telling).await;
        let relay_url = plan::relay_url(agent.relay_address());
        let upkeep = Upkeep::start(folder, state_dir, relay_url, stored, touched.watches()).await?;
        tasks.spawn(report::report_forever(client.clone(), node_name.clone(), to_report, tally));
        tasks.spawn(prove_forever(to_prove, agent.relay.clone(), known));
        let mut admin = JoinSet::new();
        admin.spawn(admin::serve(listener, Admin { relay: agent.relay.clone(), tally: to_count }));
        Ok(Self { agent, upkeep, news, touched, tasks, admin, node_name, agent_namespace, daemon_set })
    }

    async fn turn_until(&mut self, stop: &CancellationToken) -> Result<(), AgentFault> {
        let Self { agent, upkeep, news, touched, tasks, admin, .. } = self;
        while !stop.is_cancelled() {
            agent.turn(upkeep, news).await?;
            tokio::select! {
                () = stop.cancelled() => {}
                // The sender lives as long as the tasks.
                _ = news.changed() => {}
                () = agent.relay.changed() => {}
                () = touched.next() => {}
                () = sleep(agent.pause()) => {}
                Some(Err(died)) = tasks.join_next() => return Err(AgentFault::Task(died)),
                Some(Err(died)) = admin.join_next() => return Err(AgentFault::Task(died)),
                Some(Err(died)) = agent.serving.join_next() => return Err(AgentFault::Task(died)),
            }
        }
        Ok(())
    }

    /// Leaves the files to the next agent, or the node as it was found.
    async fn depart(self, client: Client) -> Result<(), AgentFault> {
        let Self { agent, mut upkeep, news, mut tasks, node_name, agent_namespace, daemon_set, .. } = self;
        let node = news.borrow().node.clone();
        let departure =
            departure::decide(client.clone(), &agent_namespace, &daemon_set, &node_name, node.as_ref()).await;
        tracing::info!(node = node_name, ?departure, "stopping");
        tasks.shutdown().await;
        if departure == Departure::End {
            agent.unconfigure().await?;
            upkeep.give_everything_back().await?;
            report::withdraw(client, &node_name).await;
        }
        agent.stop_serving().await;
        Ok(())
    }
}

/// The state of the node's own side.
struct Agent {
    relay: Relay,
    relay_listen: SocketAddr,
    /// Where the relay listens, or why it does not.
    listening: Result<SocketAddr, String>,
    serving: JoinSet<()>,
    stop_serving: CancellationToken,
    /// What the routes were made from: they are replaced only when that changed.
    routed: Option<(Plan, Option<Trust>)>,
    trusting: Trusting,
    trust: Result<(), String>,
    telling: Telling,
    /// Whether the runtime was seen to read every file that is in place.
    proven: bool,
}

/// What is said of the node's side, and to whom.
struct Telling {
    config_path: String,
    places: Places,
    configure: Configure,
    reports: Sender<Option<Report>>,
    targets: Sender<Option<Target>>,
    tally: Sender<Tally>,
}

impl Agent {
    /// The relay before everything else: a file that points at it must never be the older of the two.
    async fn listening(relay_listen: SocketAddr, telling: Telling) -> Self {
        let mut agent = Self {
            relay: Relay::default(),
            relay_listen,
            listening: Err("the relay does not listen yet".to_owned()),
            serving: JoinSet::new(),
            stop_serving: CancellationToken::new(),
            routed: None,
            trusting: Trusting::default(),
            trust: Ok(()),
            telling,
            proven: false,
        };
        agent.listen().await;
        agent
    }

    /// One turn of the story above.
    async fn turn(&mut self, upkeep: &mut Upkeep, news: &mut Receiver<Known>) -> Result<(), AgentFault> {
        self.relay.beat();
        self.listen().await;
        let known = news.borrow_and_update().clone();
        let plan = plan::plan(&known, self.relay_address());
        if let Some(plan) = &plan {
            self.route(plan, known.trust.as_ref());
        }
        let wanted = match (&self.listening, &plan) {
            // Without a relay nothing is wanted; while too little is known, what is there stays.
            (Err(_), _) => Some(Vec::new()),
            (Ok(_), plan) => {
                plan.as_ref().map(|plan| plan.mirrors.iter().map(|planned| planned.wanted.clone()).collect())
            }
        };
        let outcome = upkeep.converge(wanted, &known).await?;
        let look = self.look(&outcome, &known).await?;
        self.count(&outcome);
        if let Some(plan) = &plan {
            self.prove(&outcome, &look, &known);
            self.report(plan, &outcome, &look, known);
        }
        Ok(())
    }

    /// Binds the relay's port unless that is done.
    async fn listen(&mut self) {
        if self.listening.is_ok() {
            return;
        }
        let bound =
            TcpListener::bind(self.relay_listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        match bound {
            Ok((address, listener)) => {
                tracing::info!(relay = %address, "relay listens");
                self.listening = Ok(address);
                self.serving.spawn(self.relay.clone().serve(listener, self.stop_serving.clone()));
            }
            Err(error) => {
                let message = format!("the relay cannot listen on {}: {error}; free the port", self.relay_listen);
                if self.listening.as_ref().err() != Some(&message) {
                    tracing::error!(error = message, "pulls go to the upstream");
                }
                self.listening = Err(message);
            }
        }
    }

    fn relay_address(&self) -> SocketAddr {
        *self.listening.as_ref().unwrap_or(&self.relay_listen)
    }

    fn route(&mut self, plan: &Plan, trust: Option<&Trust>) {
        if self.routed.as_ref().is_some_and(|(old_plan, old_trust)| old_plan == plan && old_trust.as_ref() == trust) {
            return;
        }
        let (routes, trusted) = routes(plan, trust, &mut self.trusting);
        self.relay.set_routes(routes);
        self.trust = trusted;
        self.routed = Some((plan.clone(), trust.cloned()));
    }

    /// Has the files proven that are in place.
    fn prove(&mut self, outcome: &Outcome, look: &Look, known: &Known) {
        let placed = outcome.placed.iter().filter(|(_, placed)| placed.is_ok());
        let registries: BTreeSet<_> = placed.map(|(registry, _)| registry.to_string()).collect();
        self.proven = registries.iter().all(|registry| known.proofs.is_proven(registry, &look.fingerprint));
        let target = self.listening.is_ok().then(|| Target {
            registries,
            fingerprint: look.fingerprint.clone(),
            socket: look.socket.clone(),
        });
        self.telling.tally.send_modify(|tally| tally.proven = self.proven);
        send_news(&self.telling.targets, target);
    }

    fn report(&self, plan: &Plan, outcome: &Outcome, look: &Look, known: Known) {
        let Some(node) = known.node else { return };
        let seen = Seen {
            plan,
            placed: &outcome.placed,
            stuck: &outcome.stuck,
            views: &self.relay.views(),
            listening: &self.listening.as_ref().map(|_| ()).map_err(Clone::clone),
            trust: &self.trust,
            runtime_version: known.runtime_version,
            runtime: RuntimeSeen { proofs: &known.proofs, look, folder: &self.telling.config_path },
        };
        let findings = status::findings(seen);
        self.telling.tally.send_modify(|tally| tally.mirrors = findings.states());
        send_news(&self.telling.reports, Some(Report { node_uid: node.uid, findings }));
    }

    /// Looks at the runtime's configuration and mends it where that was asked for.
    async fn look(&self, outcome: &Outcome, known: &Known) -> Result<Look, AgentFault> {
        let Telling { places, configure, config_path, .. } = &self.telling;
        let (places, configure, folder) = (places.clone(), configure.clone(), config_path.clone());
        let (version, proofs) = (known.runtime_version.clone(), known.proofs.clone());
        let placed = outcome.placed.iter().filter(|(_, placed)| placed.is_ok());
        let registries: Vec<_> = placed.map(|(registry, _)| registry.to_string()).collect();
        let looking = spawn_blocking(move || {
            let mut look = look(&places, version.as_deref());
            let seen = proofs.seen(registries.iter(), &look.fingerprint);
            let mended = configure.turn(&places, version.as_deref(), &look, &folder, seen);
            look.note = mended.err().map(|error| error.to_string());
            look
        });
        looking.await.map_err(AgentFault::Task)
    }

    async fn unconfigure(&self) -> Result<(), AgentFault> {
        let configure = self.telling.configure.clone();
        let given_back = spawn_blocking(move || configure.give_back()).await.map_err(AgentFault::Task)?;
        if let Err(error) = given_back {
            tracing::error!(%error, "the runtime's configuration is not as it was found");
        }
        Ok(())
    }

    /// For the metrics.
    fn count(&self, outcome: &Outcome) {
        let placed = outcome.placed.values().filter(|placed| placed.is_ok()).count();
        let failed = outcome.placed.len() - placed;
        self.telling.tally.send_modify(|tally| {
            tally.listening = self.listening.as_ref().ok().copied();
            tally.files = BTreeMap::from([("placed", placed), ("failed", failed), ("stuck", outcome.stuck.len())]);
            tally.written += outcome.written;
            tally.given_back += outcome.given_back.len() as u64;
            tally.mended += outcome.mended.len() as u64;
        });
    }

    fn pause(&self) -> Duration {
        match (&self.listening, self.proven) {
            (Err(_), _) => REBIND,
            (Ok(_), false) => RELOOK,
            (Ok(_), true) => RESCAN,
        }
    }

    async fn stop_serving(mut self) {
        self.telling.tally.send_modify(|tally| tally.listening = None);
        self.stop_serving.cancel();
        while self.serving.join_next().await.is_some() {}
    }
}

fn send_news<T: PartialEq>(to: &Sender<T>, news: T) {
    to.send_if_modified(|before| {
        let modified = *before != news;
        *before = news;
        modified
    });
}
