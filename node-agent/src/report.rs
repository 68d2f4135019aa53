//! Keeps this node's `MirrorNode` saying what the agent found. Writes on change only; never stands in the way of the node's
//! own work.

use crate::spread::spread;
use crate::status::{Findings, stamp};
use breakwater_crds::{MirrorNode, MirrorNodeStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::{sleep, timeout};

/// The field manager of everything that an agent writes.
pub const FIELD_MANAGER: &str = "breakwater-node-agent";
/// Changes within this time are one write.
const GATHER: Duration = Duration::from_millis(200);
const REQUEST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Somebody may have deleted the object; writing the same again changes nothing otherwise. On each node another part of
/// the half of this is added, as to every pause.
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
pub async fn report_forever(client: Client, node_name: String, mut reports: Receiver<Option<Report>>) {
    let api: Api<MirrorNode> = Api::all(client);
    let mut written: Option<MirrorNodeStatus> = None;
    // The owner of the object that is there.
    let mut owner: Option<String> = None;
    let mut backoff = Duration::from_millis(500);
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
            write(&api, &node_name, &report.node_uid, &status, is_there).await?;
            owner = Some(report.node_uid);
            *written = status;
            Ok(())
        };
        let pause = match timeout(REQUEST, attempt).await.unwrap_or(Err(Unwritten::Late)) {
            Ok(()) => {
                backoff = Duration::from_millis(500);
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
        let is_written = pause == REASSERT;
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
        drop(timeout(pause, news).await);
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

/// One request where the object is there already.
async fn write(
    api: &Api<MirrorNode>,
    node_name: &str,
    node_uid: &str,
    status: &MirrorNodeStatus,
    is_there: bool,
) -> Result<(), Unwritten> {
    let identity = |metadata: serde_json::Value| json!({"apiVersion": MirrorNode::api_version(&()), "kind": MirrorNode::kind(&()), "metadata": metadata});
    let owner =
        json!({"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid, "blockOwnerDeletion": false});
    let object = identity(json!({"name": node_name, "ownerReferences": [owner]}));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let mut with_status = identity(json!({"name": node_name}));
    with_status["status"] = json!(status);
    let with_status = Patch::Apply(&with_status);
    if is_there {
        match api.patch_status(node_name, &parameters, &with_status).await {
            Err(kube::Error::Api(answer)) if answer.is_not_found() => {}
            answer => return answer.map(drop).map_err(Unwritten::ApplyStatus),
        }
    }
    api.patch(node_name, &parameters, &Patch::Apply(&object)).await.map_err(Unwritten::Apply)?;
    api.patch_status(node_name, &parameters, &with_status).await.map(drop).map_err(Unwritten::ApplyStatus)
}
