//! What the disk holds of pinned images. Blocks; asks nobody.

use super::{
    kept::Sight,
    list::{self, Pin},
    plan::{self, Need, Plan},
};
use crate::{
    digest::Digest,
    holdings,
    reference::Reference,
    registry_host::RegistryHost,
    store::{Store, tags::TagRecord},
};

/// The pins of an earlier run. Those that cannot be read are none: whoever asked for them will ask again.
pub(super) fn recall(store: &Store, registry: &RegistryHost) -> Vec<Pin> {
    let bytes = match store.pin_list.get() {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "pins.json cannot be read: nothing is pinned");
            return Vec::new();
        }
    };
    list::parse(&bytes, registry).unwrap_or_else(|error| {
        tracing::warn!(%error, "pins.json is broken: nothing is pinned");
        Vec::new()
    })
}

/// Finds out what an image needs and what of that is here.
pub(super) fn examine(store: &Store, pin: &Pin) -> Sight {
    let (root, elder) = match &pin.reference {
        Reference::Digest(digest) => (Some(digest.clone()), None),
        Reference::Tag(tag) => match store.tags.get(&pin.repository, tag) {
            // A tag that upstream has taken away still stands for what was pinned.
            Some(TagRecord { current, last_complete, .. }) => (Some(current.digest), last_complete),
            None => (None, None),
        },
    };
    let plan = root.as_ref().map(|root| look(store, pin, root)).unwrap_or_default();
    let elder = elder.map(|elder| elder.digest).filter(|elder| Some(elder) != root.as_ref() && !plan.is_complete());
    let elder = elder.map(|elder| look(store, pin, &elder).needs).unwrap_or_default();
    Sight { root, plan, elder }
}

fn look(store: &Store, pin: &Pin, root: &Digest) -> Plan {
    let read = |digest: &Digest| {
        let (manifest, _) = holdings::manifest(store, &pin.repository, digest)?;
        Some(manifest.bytes.to_vec())
    };
    let mut plan = plan::plan(root, &pin.platforms, read);
    recheck(store, &mut plan.needs);
    plan
}

/// Looks again whether what was here still is, by name and size only.
pub(super) fn recheck(store: &Store, needs: &mut [Need]) {
    for need in needs {
        // A manifest that was not here must be read before it counts.
        let may_count = need.is_here || !need.is_manifest;
        need.is_here = may_count && store.blobs.has(&need.digest, need.stated_size());
    }
}
