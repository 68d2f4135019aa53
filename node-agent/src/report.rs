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
use std::time::Duration;
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{sleep, timeout};

/// The field manager of everything that an agent writes.
pub const FIELD_MANAGER: &str = "breakwater-node-agent";
/// Changes within this time are one write.
const GATHER: Duration = Duration::from_millis(200);
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
    let api: Api<MirrorNode> = Api::all(client);
    let mut written: Option<MirrorNodeStatus> = None;
    // The owner of the object that is there.
    let mut owner: Option<String> = None;
    let (mut lacking, mut lacked) = (Lacking::default(), Lacking::default());
    let mut backoff = BACKOFF;
    let mut complained = false;
    loop {
        let report = reports.borrow_and_update().clone();
        let attempt = async {
            let Some(report) = report else { return Ok(()) };
            let written = match &mut written {
                Some(written) => written,
                None => written.insert(read(&api, &node_name).await?),
            };
            let status = stamp(&report.findings, written, &Time(Timestamp::now()));
            let is_there = owner.take().is_some_and(|owner| owner == report.node_uid);
            write(&api, &node_name, &report.node_uid, &status, is_there, &mut lacking).await?;
            tell_of_lacking(&lacking, &mut lacked, &tally);
            owner = Some(report.node_uid);
            *written = status;
            Ok(())
        };
        let attempted = timeout(REQUEST, attempt).await.unwrap_or(Err(Unwritten::Late));
        let is_written = attempted.is_ok();
        let pause = match attempted {
            Ok(()) => {
                backoff = BACKOFF;
                if std::mem::take(&mut complained) {
                    tracing::info!(node = node_name, "status is reported again");
                }
                REASSERT
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(node = node_name, %error, "status is not reported, trying again");
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
                backoff
            }
        };
        let pause = pause + spread(&node_name, pause / 2);
        // A failing API server is not asked more often because there is news.
        let news = async {
            if !is_written {
                return sleep(pause).await;
            }
            if reports.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if timeout(pause, news).await.is_err() && is_written {
            lacking = Lacking::default();
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

/// What an earlier process wrote: its times go on.
async fn read(api: &Api<MirrorNode>, node_name: &str) -> Result<MirrorNodeStatus, Unwritten> {
    let found = api.get_opt(node_name).await.map_err(Unwritten::Read)?;
    Ok(found.and_then(|node| node.status).unwrap_or_default())
}

/// Says what an older definition does not hold, and when it holds all.
fn tell_of_lacking(lacking: &Lacking, lacked: &mut Lacking, tally: &Sender<Tally>) {
    if lacking == lacked {
        return;
    }
    if lacking.is_empty() {
        tracing::info!("the definition of MirrorNodes is of this version now");
    } else {
        tracing::warn!(%lacking, "the definition of MirrorNodes is older than this agent, what it lacks is lost; \
            apply the definitions of this version: config/crd, or the chart");
    }
    tally.send_modify(|tally| tally.lacking = lacking.len());
    lacked.clone_from(lacking);
}

/// One request where the object is there already.
async fn write(
    api: &Api<MirrorNode>,
    node_name: &str,
    node_uid: &str,
    status: &MirrorNodeStatus,
    is_there: bool,
    lacking: &mut Lacking,
) -> Result<(), Unwritten> {
    if is_there {
        match apply_status(api, node_name, status, lacking).await {
            Err(kube::Error::Api(answer)) if answer.is_not_found() => {}
            answer => return answer.map_err(Unwritten::ApplyStatus),
        }
    }
    let owner =
        json!({"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid, "blockOwnerDeletion": false});
    let object = identity(&json!({"name": node_name, "ownerReferences": [owner]}));
    api.patch(node_name, &parameters(), &Patch::Apply(&object)).await.map_err(Unwritten::Apply)?;
    apply_status(api, node_name, status, lacking).await.map_err(Unwritten::ApplyStatus)
}

/// Applies what of the status the definition holds. An apply with anything else is refused as a whole, and names it.
async fn apply_status(
    api: &Api<MirrorNode>,
    node_name: &str,
    status: &MirrorNodeStatus,
    lacking: &mut Lacking,
) -> Result<(), kube::Error> {
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

fn identity(metadata: &Value) -> Value {
    json!({"apiVersion": MirrorNode::api_version(&()), "kind": MirrorNode::kind(&()), "metadata": metadata})
}

fn parameters() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}
