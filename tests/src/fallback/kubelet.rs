//! What a kubelet does for the agent's Pod: asks its liveness probe as the DaemonSet says, ends an agent that does not answer, and
//! starts it again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::agent::{Agent, Stage};

/// As in config/node-agent/daemonset.yaml.
const PERIOD: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(1);
const FAILURES: u32 = 3;
const GRACE: Duration = Duration::from_secs(1);

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

    /// Starts the agent anew, and probes it from now on.
    pub(super) async fn start(&mut self) -> Result<()> {
        self.kill().await?;
        *self.agent.lock().await = Some(start(&self.stage, &self.flags)?);
        let (stage, flags, agent) = (self.stage.clone(), self.flags.clone(), self.agent.clone());
        self.probing.spawn(async move {
            if let Err(error) = keep(&stage, &flags, &agent).await {
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

async fn keep(stage: &Stage, flags: &[String], agent: &Mutex<Option<Agent>>) -> Result<()> {
    let client = reqwest::Client::builder().timeout(TIMEOUT).pool_max_idle_per_host(0);
    let client = client.build().context("make an HTTP client")?;
    let url = format!("http://{}/healthz", stage.admin());
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Until it answered once, that is for the startup probe.
    let (mut failures, mut has_started) = (0, false);
    loop {
        ticks.tick().await;
        let answered = client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success());
        has_started |= answered;
        failures = if answered || !has_started { 0 } else { failures + 1 };
        if failures == FAILURES {
            tokio::time::sleep(GRACE).await;
            let mut agent = agent.lock().await;
            if let Some(agent) = agent.as_mut() {
                agent.kill().await?;
            }
            *agent = Some(start(stage, flags)?);
            (failures, has_started) = (0, false);
        }
    }
}
