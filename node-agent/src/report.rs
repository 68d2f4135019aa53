//! Keeps this node's `MirrorNode` saying what the agent found. Writes on change only; never stands in the way of the node's
//! own work.

use crate::metrics::Tally;
use crate::spread::spread;
use crate::status::{Findings, stamp};
use breakwater_crds::{Lacking, MirrorNode, MirrorNodeStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use std::future::pending;
use std::time::Duration;
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{sleep, timeout};

/// The field manager of everything that an agent writes.
pub const FIELD_MANAGER: &str = "breakwater-node-agent";
/// Changes within this time are one write.
const GATHER: Duration = Duration::from_millis(100);
const REQUEST: Duration = Duration::from_secs(10);
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Somebody may have deleted the object, or replaced its definition; writing the same again changes nothing otherwise. On each node another
/// part of the half of this is added, as to every pause.
const REASSERT: Duration = Duration::from_secs(600);

/// What to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The Node's uid, which makes it the owner.
    pub node_uid: String,
    /// What was found.
    pub findings: Findings,
}

/// Why a report was not written.
#[derive(Debug, thiserror::Error)]
enum Unwritten {
    #[error("read MirrorNode: {0}")]
    Read(#[source] kube::Error),
    #[error("apply MirrorNode: {0}")]
    Apply(#[source] kube::Error),
    #[error("apply the status of MirrorNode: {0}")]
    ApplyStatus(#[source] kube::Error),
    #[error("the API server did not answer within {REQUEST:?}")]
    Late,
}

/// Writes each report until dropped.
pub async fn report_forever(
    client: Client,
    node_name: String,
    mut reports: Receiver<Option<Report>>,
    tally: Sender<Tally>,
) {
    let mut reporter = Reporter::new(Api::all(client), node_name, tally);
    loop {
        let report = reports.borrow_and_update().clone();
        let attempted = timeout(REQUEST, reporter.write(report)).await.unwrap_or(Err(Unwritten::Late));
        let is_written = attempted.is_ok();
        let pause = reporter.pause_after(attempted);
        // A failing API server is not asked more often because there is news.
        let news = async {
            if !is_written || reports.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        if timeout(pause, news).await.is_err() && is_written {
            reporter.lacking = Lacking::default();
        }
        sleep(GATHER).await;
    }
}

/// Removes the report, as good as it goes: its Node owns it anyway.
pub async fn withdraw(client: Client, node_name: &str) {
    let api: Api<MirrorNode> = Api::all(client);
    let deleted = timeout(Duration::from_secs(3), api.delete(node_name, &DeleteParams::default())).await;
    if !matches!(deleted, Ok(Ok(_))) {
        tracing::debug!(node = node_name, "MirrorNode stays until its Node goes");
    }
}

/// What is known of the object that the API server has. An attempt may be dropped at any of its requests.
struct Reporter {
    api: Api<MirrorNode>,
    node_name: String,
    tally: Sender<Tally>,
    /// The status that was written last, or that an earlier process wrote: its times go on. None: not read yet.
    written: Option<MirrorNodeStatus>,
    /// The owner of the object that is there.
    owner: Option<String>,
    /// What the definition does not hold, and what was told of that.
    lacking: Lacking,
    told_lacking: Lacking,
    backoff: Duration,
    /// What was told of an attempt that failed, until one does not.
    complaint: Option<String>,
}

impl Reporter {
    fn new(api: Api<MirrorNode>, node_name: String, tally: Sender<Tally>) -> Self {
        Self {
            api,
            node_name,
            tally,
            written: None,
            owner: None,
            lacking: Lacking::default(),
            told_lacking: Lacking::default(),
            backoff: BACKOFF,
            complaint: None,
        }
    }

    /// Writes a report. One request where the object is there already.
    async fn write(&mut self, report: Option<Report>) -> Result<(), Unwritten> {
        let Some(Report { node_uid, findings }) = report else { return Ok(()) };
        let written = match self.written.take() {
            Some(written) => written,
            None => {
                let found = self.api.get_opt(&self.node_name).await.map_err(Unwritten::Read)?;
                found.and_then(|node| node.status).unwrap_or_default()
            }
        };
        let status = stamp(&findings, &written, &Time(Timestamp::now()));
        self.written = Some(written);
        let is_there = self.owner.take().is_some_and(|owner| owner == node_uid);
        if !(is_there && self.apply_status_of_what_is_there(&status).await?) {
            self.apply_object(&node_uid).await.map_err(Unwritten::Apply)?;
            self.apply_status(&status).await.map_err(Unwritten::ApplyStatus)?;
        }
        self.tell_of_lacking();
        (self.owner, self.written) = (Some(node_uid), Some(status));
        Ok(())
    }

    /// Says whether it was there.
    async fn apply_status_of_what_is_there(&mut self, status: &MirrorNodeStatus) -> Result<bool, Unwritten> {
        match self.apply_status(status).await {
            Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(false),
            answer => answer.map(|()| true).map_err(Unwritten::ApplyStatus),
        }
    }

    async fn apply_object(&self, node_uid: &str) -> Result<(), kube::Error> {
        let Self { api, node_name, .. } = self;
        let owner = json!({
            "apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid, "blockOwnerDeletion": false,
        });
        let object = identity(&json!({"name": node_name, "ownerReferences": [owner]}));
        api.patch(node_name, &parameters(), &Patch::Apply(&object)).await.map(drop)
    }

    /// Applies what of the status the definition holds. An apply with anything else is refused as a whole, and names it.
    async fn apply_status(&mut self, status: &MirrorNodeStatus) -> Result<(), kube::Error> {
        let Self { api, node_name, lacking, .. } = self;
        loop {
            let mut object = identity(&json!({"name": node_name}));
            object["status"] = json!(status);
            lacking.take_from(&mut object);
            match api.patch_status(node_name, &parameters(), &Patch::Apply(&object)).await {
                Err(kube::Error::Api(answer)) if lacking.learn(&answer.message) => {}
                answer => return answer.map(drop),
            }
        }
    }

    /// Says what an older definition does not hold, and when it holds all.
    fn tell_of_lacking(&mut self) {
        let Self { lacking, told_lacking, tally, .. } = self;
        if lacking == told_lacking {
            return;
        }
        if lacking.is_empty() {
            tracing::info!("the definition of MirrorNodes is of this version now");
        } else {
            tracing::warn!(%lacking, "the definition of MirrorNodes is older than this agent, what it lacks is lost; \
                apply the definitions of this version: config/crd, or the chart");
        }
        tally.send_modify(|tally| tally.lacking = lacking.len());
        told_lacking.clone_from(lacking);
    }

    /// How long to wait for news after this attempt. What went wrong is told once, and again where it is something else.
    fn pause_after(&mut self, attempted: Result<(), Unwritten>) -> Duration {
        let node = &self.node_name;
        let pause = match attempted {
            Ok(()) => {
                self.backoff = BACKOFF;
                if self.complaint.take().is_some() {
                    tracing::info!(node, "status is reported again");
                }
                REASSERT
            }
            Err(error) => {
                let complaint = Some(error.to_string());
                if self.complaint != complaint {
                    tracing::warn!(node, %error, "status is not reported, trying again");
                }
                self.complaint = complaint;
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                self.backoff
            }
        };
        pause + spread(node, pause / 2)
    }
}

fn identity(metadata: &Value) -> Value {
    json!({"apiVersion": MirrorNode::api_version(&()), "kind": MirrorNode::kind(&()), "metadata": metadata})
}

fn parameters() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}
