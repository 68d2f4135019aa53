//! The lists that a registry makes of what it holds: tags by pages, and referrers of a digest. Pure.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

use super::answer::Answer;
use super::content::{Blob, INDEX};

/// A page of tags: `n` of them after `last`, with a link to the next.
pub(super) fn tags(repository: &str, tags: &HashMap<String, String>, query: &str) -> Answer {
    let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let last = value("last").unwrap_or_default();
    let names: BTreeSet<&str> = tags.keys().map(String::as_str).filter(|name| *name > last).collect();
    let most = value("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let page: Vec<&str> = names.iter().copied().take(most).collect();
    let answer = Answer::ok("application/json", json!({"name": repository, "tags": page}).to_string());
    match page.last() {
        Some(end) if page.len() < names.len() => {
            answer.with("Link", &format!(r#"</v2/{repository}/tags/list?n={most}&last={end}>; rel="next""#))
        }
        _ => answer,
    }
}

/// An index of the manifests whose subject is `digest`.
pub(super) fn referrers(manifests: &HashMap<String, Blob>, digest: &str) -> Answer {
    let refers = |manifest: &&Blob| {
        let json: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
        json["subject"]["digest"] == digest
    };
    let found: Vec<Value> = manifests.values().filter(refers).map(Blob::descriptor).collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": found});
    Answer::ok(INDEX, index.to_string())
}
