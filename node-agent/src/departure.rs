//! Whether a stop is an upgrade or the end: the agent asks for its own DaemonSet.

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::timeout;

/// Well within the Pod's grace period, with time left to give the files back and to drain.
const ANSWER: Duration = Duration::from_secs(5);

/// What a stop means for the node's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Another agent comes: the files stay.
    Upgrade,
    /// None comes: every file is given back.
    End,
}

/// Asks the API server. One that does not answer tells nothing, and the files stay.
pub async fn decide(client: Client, namespace: &str, daemon_set: &str) -> Departure {
    let api: Api<DaemonSet> = Api::namespaced(client, namespace);
    match timeout(ANSWER, api.get(daemon_set)).await {
        Ok(answer) => judge(answer.as_ref()),
        Err(_) => Departure::Upgrade,
    }
}

fn judge(answer: Result<&DaemonSet, &kube::Error>) -> Departure {
    match answer {
        Ok(daemon_set) if daemon_set.metadata.deletion_timestamp.is_some() => Departure::End,
        // Without the right to ask, what gave it is gone already.
        Err(kube::Error::Api(status)) if [401, 403, 404].contains(&status.code) => Departure::End,
        Ok(_) | Err(_) => Departure::Upgrade,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_answer_ends_it() {
        let refused = |code| {
            let status = kube::core::Status { code, ..Default::default() };
            judge(Err(&kube::Error::Api(Box::new(status))))
        };
        for code in [401, 403, 404] {
            assert_eq!(refused(code), Departure::End, "{code}");
        }
        for code in [429, 500, 503] {
            assert_eq!(refused(code), Departure::Upgrade, "{code}");
        }
        let found = |metadata: &str| {
            let daemon_set: DaemonSet = serde_saphyr::from_str(&format!("{{metadata: {metadata}}}")).unwrap();
            judge(Ok(&daemon_set))
        };
        assert_eq!(found("{name: a}"), Departure::Upgrade);
        assert_eq!(found("{name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}"), Departure::End);
    }
}
