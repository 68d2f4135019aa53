//! `make scale`: the operator beside a large cluster. START HERE.
//!
//! etcd, the API server and the operator are real. Nobody acts on the objects but the operator; the harness writes what agents and
//! kubelets would write, and plays the caches.

mod caches;
mod fill;
mod measure;
mod objects;
pub mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakwater_crds::{RegistryMirror, RegistryMirrorStatus};
use futures::{StreamExt, stream};
use kube::{Api, api::ListParams};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::api_stage;
use crate::cluster::{Cluster, until};
use crate::operator::Operator;
use crate::product;
use fill::Writer;
pub use measure::{Load, Memory};
use measure::{Window, memory};
pub use objects::Size;
use objects::mirror_name;

const SETTLE_LIMIT: Duration = Duration::from_secs(600);
const EFFECT_LIMIT: Duration = Duration::from_secs(60);
const OPERATOR: &str = "operator-0";
/// A kubelet writes its node's status so often.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// A mirror's status is not written again sooner; a change is measured after that.
const CALM: Duration = Duration::from_secs(6);
const REPETITIONS: usize = 5;

/// What is to be simulated.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How large.
    pub size: Size,
    /// How long a steady state is watched.
    pub watched: Duration,
    /// How many MirrorNodes change per second while nodes are restless.
    pub churn: u32,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// What was simulated.
    pub plan: Plan,
    /// From the operator's first start to every mirror's final status.
    pub settled: Duration,
    /// From a later start to knowing how every image fares.
    pub restarted: Duration,
    /// After that start.
    pub memory: Memory,
    /// With nothing but heartbeats.
    pub steady: Load,
    /// Memory after that.
    pub steady_memory: Memory,
    /// From a change to its effect, repeatedly.
    pub effects: Vec<(&'static str, Vec<Duration>)>,
    /// While MirrorNodes change.
    pub churn: Load,
    /// Memory after that.
    pub churn_memory: Memory,
    /// From the last agent's word that no cache answers to every mirror saying so.
    pub outage: Duration,
    /// Memory after that.
    pub outage_memory: Memory,
}

/// The simulated cluster and the operator that works on it.
struct Scene {
    plan: Plan,
    cluster: Cluster,
    writer: Writer,
    operator: Operator,
    caches: JoinSet<Result<()>>,
}

/// Builds the cluster, measures the operator `program` on it, and removes it; `tell` hears what is going on.
///
/// # Errors
/// Fails when a part does not come up, or an effect does not show.
pub async fn run(plan: Plan, program: &Path, tell: impl Fn(&str)) -> Result<Figures> {
    let cluster = product::api_server().await?;
    let writer = Writer { client: cluster.client(), size: plan.size };
    let began = Instant::now();
    writer.fill().await?;
    writer.mirrors().await?;
    tell(&format!("filled in {:.0?}", began.elapsed()));
    let began = Instant::now();
    let mut scene = Scene::start(plan, cluster, writer, program)?;
    scene.settled().await?;
    let settled = began.elapsed();
    tell(&format!("settled in {settled:.1?}, {:?}", scene.memory()?));
    let restarted = scene.restart(program).await?;
    let memory = scene.memory()?;
    tell(&format!("restarted in {restarted:.1?}, {memory:?}"));
    let steady = scene.steady().await?;
    let steady_memory = scene.memory()?;
    tell(&format!("steady {steady:?}, {steady_memory:?}"));
    let effects = scene.effects().await?;
    tell(&format!("effects {effects:?}"));
    let churn = scene.churn().await?;
    let churn_memory = scene.memory()?;
    tell(&format!("churn {churn:?}, {churn_memory:?}"));
    let outage = scene.outage().await?;
    let outage_memory = scene.memory()?;
    tell(&format!("outage {outage:.1?}, {outage_memory:?}"));
    scene.remove().await?;
    Ok(Figures {
        plan,
        settled,
        restarted,
        memory,
        steady,
        steady_memory,
        effects,
        churn,
        churn_memory,
        outage,
        outage_memory,
    })
}

impl Scene {
    fn start(plan: Plan, cluster: Cluster, writer: Writer, program: &Path) -> Result<Self> {
        api_stage::write_kubeconfig(&cluster, &cluster.state().join("operator-kubeconfig"))?;
        let operator = start_operator(&cluster, program)?;
        let mut caches = JoinSet::new();
        caches.spawn(caches::play(cluster.client()));
        Ok(Self { plan, cluster, writer, operator, caches })
    }

    fn memory(&self) -> Result<Memory> {
        memory(self.operator.id()?)
    }

    /// Waits until every mirror says what is true.
    async fn settled(&mut self) -> Result<()> {
        let size = self.plan.size;
        let expected: Vec<_> = (0..size.mirrors).map(|mirror| size.images_of(mirror)).collect();
        let is_settled = |(number, status): (usize, &RegistryMirrorStatus)| {
            let images = status.images.as_ref();
            let count = |of: i32| usize::try_from(of).ok();
            let images_are = images.is_some_and(|images| {
                count(images.in_use) == Some(expected[number]) && images.survivable == images.in_use
            });
            let ready = status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
            images_are && ready && status.nodes.is_some_and(|nodes| count(nodes.active) == Some(size.nodes))
        };
        self.all_mirrors("every mirror to be Ready and its images to survive", is_settled).await
    }

    async fn all_mirrors(&mut self, what: &str, holds: impl Fn((usize, &RegistryMirrorStatus)) -> bool) -> Result<()> {
        let mirrors: Api<RegistryMirror> = Api::all(self.cluster.client());
        let Self { caches, operator, .. } = self;
        let reached = until(SETTLE_LIMIT, what, async || {
            operator.still_runs()?;
            if let Some(ended) = caches.try_join_next() {
                ended.context("the caches' task died")?.context("the caches ended")?;
            }
            sleep(Duration::from_millis(200)).await;
            let found = mirrors.list(&ListParams::default()).await.context("list the mirrors")?.items;
            let statuses: Vec<_> = found.iter().filter_map(|mirror| mirror.status.as_ref()).collect();
            let is_all = statuses.len() == found.len() && statuses.into_iter().enumerate().all(&holds);
            Ok(is_all.then_some(()))
        });
        reached.await.with_context(|| self.operator.log())
    }

    /// Stops the operator and starts it anew.
    async fn restart(&mut self, program: &Path) -> Result<Duration> {
        self.operator.signal("TERM").await?;
        self.operator.ended().await?;
        let began = Instant::now();
        self.operator = start_operator(&self.cluster, program)?;
        let images: usize = (0..self.plan.size.mirrors).map(|mirror| self.plan.size.images_of(mirror)).sum();
        let operator = &self.operator;
        until(SETTLE_LIMIT, "the operator to know how images fare", async || {
            let metrics = operator.metrics().await?;
            let sum = |name: &str| -> f64 {
                let values = metrics.lines().filter(|line| line.starts_with(name));
                values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
            };
            let passes = sum("breakwater_reconcile_runs_total");
            let knows = sum("breakwater_images_survivable") == images as f64;
            Ok((knows && passes >= self.plan.size.mirrors as f64).then_some(()))
        })
        .await?;
        Ok(began.elapsed())
    }

    /// Nothing happens but that kubelets say that they live.
    async fn steady(&self) -> Result<Load> {
        sleep(CALM).await;
        let window = Window::open(self.operator.id()?, &self.writer.client).await?;
        self.at_rate(self.heartbeats(), self.plan.watched, async |number| {
            self.writer.heartbeat(number * 7919 % self.plan.size.nodes).await
        })
        .await?;
        window.close(&self.writer.client, is_operators).await
    }

    fn heartbeats(&self) -> f64 {
        self.plan.size.nodes as f64 / HEARTBEAT.as_secs_f64()
    }

    /// From each kind of change to what a mirror's status says of it.
    async fn effects(&self) -> Result<Vec<(&'static str, Vec<Duration>)>> {
        let mut edited = Vec::new();
        let mut pulled = Vec::new();
        let (mut bypassed, mut healed) = (Vec::new(), Vec::new());
        for number in 0..REPETITIONS {
            let (mirror, node) = (number % self.plan.size.mirrors, number % self.plan.size.nodes);
            let generation = self.mirror(mirror).await?.metadata.generation.unwrap_or_default();
            let edit = self.writer.edit(mirror, 61 + number);
            edited.push(self.effect(mirror, edit, |status| status.observed_generation > Some(generation)).await?);
            let images = i32::try_from(self.plan.size.images_of(mirror) + 1).context("too many images")?;
            let pod = self.writer.newcomer(mirror, number);
            let shows =
                |status: &RegistryMirrorStatus| status.images.as_ref().is_some_and(|it| it.survivable == images);
            pulled.push(self.effect(mirror, pod, shows).await?);
            let bypasses =
                |amount| move |status: &RegistryMirrorStatus| status.nodes.is_some_and(|it| it.bypassed == amount);
            let turn = self.writer.report(node, |of| of == mirror);
            bypassed.push(self.effect(mirror, turn, bypasses(1)).await?);
            let heal = self.writer.report(node, |_| false);
            healed.push(self.effect(mirror, heal, bypasses(0)).await?);
        }
        Ok(vec![
            ("a mirror's spec is edited: `observedGeneration`", edited),
            ("a Pod with a new image is created: the cache is told and holds it, `images.survivable`", pulled),
            ("a node bypasses a cache: `nodes.bypassed`, Ready=False", bypassed),
            ("it uses the cache again: Ready=True", healed),
        ])
    }

    /// How long after a change a mirror's status shows it.
    async fn effect(
        &self,
        mirror: usize,
        change: impl Future<Output = Result<()>>,
        shows: impl Fn(&RegistryMirrorStatus) -> bool,
    ) -> Result<Duration> {
        sleep(CALM).await;
        let began = Instant::now();
        change.await?;
        until(EFFECT_LIMIT, "a change to show", async || Ok(self.mirror(mirror).await?.status.filter(&shows))).await?;
        Ok(began.elapsed())
    }

    async fn mirror(&self, number: usize) -> Result<RegistryMirror> {
        let mirrors: Api<RegistryMirror> = Api::all(self.cluster.client());
        mirrors.get(&mirror_name(number)).await.context("get a mirror")
    }

    /// Nodes lose and find caches all the time, one mirror each.
    async fn churn(&self) -> Result<Load> {
        let window = Window::open(self.operator.id()?, &self.writer.client).await?;
        let Size { nodes, mirrors, .. } = self.plan.size;
        self.at_rate(self.plan.churn.into(), self.plan.watched, async |number| {
            let (node, turn) = (number * 7919 % nodes, number / nodes);
            self.writer.report(node, |mirror| (turn + node) % 2 == 0 && mirror == number % mirrors).await
        })
        .await?;
        window.close(&self.writer.client, is_operators).await
    }

    /// Every agent says that no cache answers.
    async fn outage(&mut self) -> Result<Duration> {
        let size = self.plan.size;
        self.writer.all(stream::iter(0..size.nodes), async |node| self.writer.report(node, |_| true).await).await?;
        let began = Instant::now();
        let all_bypass = |(_, status): (usize, &RegistryMirrorStatus)| {
            status.nodes.is_some_and(|nodes| usize::try_from(nodes.bypassed).is_ok_and(|it| it == size.nodes))
        };
        self.all_mirrors("every mirror to be bypassed everywhere", all_bypass).await?;
        Ok(began.elapsed())
    }

    /// Does something so many times a second.
    async fn at_rate(&self, rate: f64, time: Duration, act: impl AsyncFn(usize) -> Result<()>) -> Result<()> {
        let mut tick = interval(Duration::from_secs_f64(1.0 / rate));
        let ticks = stream::poll_fn(|cx| tick.poll_tick(cx).map(Some)).enumerate().map(|(number, _)| number);
        // That the time is over is how it ends.
        match timeout(time, self.writer.all(ticks, act)).await {
            Ok(ended) => ended,
            Err(_) => Ok(()),
        }
    }

    async fn remove(self) -> Result<()> {
        let Self { plan: _, cluster, writer: _, operator, mut caches } = self;
        ensure!(caches.try_join_next().is_none(), "the caches ended");
        operator.kill().await?;
        caches.shutdown().await;
        cluster.remove().await
    }
}

fn start_operator(cluster: &Cluster, program: &Path) -> Result<Operator> {
    Operator::of(program, OPERATOR, &cluster.state().join("operator-kubeconfig"), cluster.state())
}

/// Everything else in a window is written by the harness, or by the API server to itself.
fn is_operators(request: &str) -> bool {
    let (verb, resource) = request.split_once(' ').unwrap_or((request, ""));
    match resource {
        "nodes/status" | "mirrornodes/status" => false,
        "registrymirrors/status" | "secrets" | "services" | "events" | "leases" | "statefulsets" => true,
        _ => matches!(verb, "LIST" | "PATCH"),
    }
}
