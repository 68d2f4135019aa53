//! What a kubelet does for the agent's Pod: asks its liveness probe as the DaemonSet says, ends an agent that does not answer, and
//! starts it again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::agent::{Agent, Stage};
use crate::cluster::until;

/// As in config/node-agent/daemonset.yaml.
const PERIOD: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(1);
const FAILURES: u32 = 3;
const FAILURES_AT_START: u32 = 10;
const GRACE: Duration = Duration::from_secs(1);
const START_LIMIT: Duration = Duration::from_secs(10);

/// The agent's keeper.
pub(super) struct Kubelet {
    stage: Arc<Stage>,
    flags: Vec<String>,
    agent: Arc<Mutex<Option<Agent>>>,
    probing: JoinSet<()>,
}

impl Kubelet {
    pub(super) fn new(stage: Arc<Stage>, flags: Vec<String>) -> Self {
        Self { stage, flags, agent: Arc::default(), probing: JoinSet::new() }
    }

    /// Starts the agent anew, waits for its startup probe, and probes it from then on.
    pub(super) async fn start(&mut self) -> Result<()> {
        self.kill().await?;
        *self.agent.lock().await = Some(start(&self.stage, &self.flags)?);
        let probe = Probe::of(&self.stage)?;
        until(START_LIMIT, "the agent's startup probe", async || Ok(probe.succeeds().await.then_some(()))).await?;
        let (stage, flags, agent) = (self.stage.clone(), self.flags.clone(), self.agent.clone());
        self.probing.spawn(async move {
            if let Err(error) = keep(&probe, &stage, &flags, &agent).await {
                eprintln!("the agent's keeper: {error:#}");
            }
        });
        Ok(())
    }

    /// Ends the agent, and lets it be.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.probing.shutdown().await;
        match self.agent.lock().await.take() {
            Some(mut agent) => agent.kill().await,
            None => Ok(()),
        }
    }

    /// Stops the agent in its tracks; the probe will find out.
    pub(super) async fn freeze(&self) -> Result<()> {
        self.agent.lock().await.as_ref().context("no agent runs")?.freeze()
    }
}

fn start(stage: &Stage, flags: &[String]) -> Result<Agent> {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    stage.agent_in("", &flags)
}

/// The probe of `/healthz`.
struct Probe {
    client: reqwest::Client,
    url: String,
}

impl Probe {
    fn of(stage: &Stage) -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).pool_max_idle_per_host(0);
        let client = client.build().context("make an HTTP client")?;
        Ok(Self { client, url: format!("http://{}/healthz", stage.admin()) })
    }

    async fn succeeds(&self) -> bool {
        self.client.get(&self.url).send().await.is_ok_and(|answer| answer.status().is_success())
    }
}

/// Probes an agent that has started, and each that replaces one.
async fn keep(probe: &Probe, stage: &Stage, flags: &[String], agent: &Mutex<Option<Agent>>) -> Result<()> {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut failures, mut most) = (0, FAILURES);
    loop {
        ticks.tick().await;
        if probe.succeeds().await {
            (failures, most) = (0, FAILURES);
            continue;
        }
        failures += 1;
        if failures == most {
            tokio::time::sleep(GRACE).await;
            let mut agent = agent.lock().await;
            if let Some(agent) = agent.as_mut() {
                agent.kill().await?;
            }
            *agent = Some(start(stage, flags)?);
            (failures, most) = (0, FAILURES_AT_START);
        }
    }
}
