//! What the disk holds of pinned images. Blocks; asks nobody.

use std::io;

use tokio_util::sync::CancellationToken;

use super::{
    kept::Sight,
    list::{self, ListInvalid, Pin},
    plan::{self, Need, Plan},
};
use crate::{
    digest::Digest,
    holdings,
    reference::Reference,
    registry_host::RegistryHost,
    store::{Store, blobs::Presence},
};

/// What changed since it was verified is hashed at once, so much of it in one look; the scrub does the rest.
const MOST_HASHED: u64 = 256 << 20;

/// Why the pins of an earlier run are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it is damaged")]
    Parse(#[source] ListInvalid),
}

/// The pins of an earlier run.
pub(super) fn recall(store: &Store, registry: &RegistryHost) -> Result<Vec<Pin>, Unreadable> {
    match store.pin_list.get().map_err(Unreadable::Read)? {
        Some(bytes) => list::parse(&bytes, registry).map_err(Unreadable::Parse),
        None => Ok(Vec::new()),
    }
}

/// Finds out what an image needs and what of that is here.
pub(super) fn examine(store: &Store, pin: &Pin) -> Sight {
    let record = match &pin.reference {
        Reference::Digest(digest) => {
            return Sight { root: Some(digest.clone()), plan: look(store, pin, digest), elder: Vec::new() };
        }
        // A tag that upstream has taken away still stands for what was pinned.
        Reference::Tag(tag) => store.tags.get(&pin.repository, tag),
    };
    let Some(record) = record else { return Sight::default() };
    let (root, plan) = (record.current.digest.clone(), look(store, pin, &record.current.digest));
    let elders = [record.previous, record.last_complete].into_iter().flatten().filter(|elder| elder.digest != root);
    let elder = match plan.is_complete() {
        true => None,
        false => elders.map(|elder| look(store, pin, &elder.digest)).find(Plan::is_complete),
    };
    Sight { root: Some(root), plan, elder: elder.unwrap_or_default().needs }
}

fn look(store: &Store, pin: &Pin, root: &Digest) -> Plan {
    let read = |digest: &Digest| Some(holdings::manifest(store, &pin.repository, digest)?.0.bytes);
    let mut plan = plan::plan(root, &pin.platforms, read);
    for need in plan.needs.iter_mut().filter(|need| !need.is_manifest) {
        need.is_here = store.blobs.presence(&need.digest, need.stated_size()) != Presence::Absent;
    }
    plan
}

/// Looks again whether what was here still is and what was not has come, and that nothing has been written to it since it
/// was verified.
pub(super) fn look_again(store: &Store, images: &mut [Vec<Need>], over: &CancellationToken) {
    let mut left = MOST_HASHED;
    for need in images.iter_mut().flatten() {
        // A manifest that was not here must be read before it counts.
        let may_count = need.is_here || !need.is_manifest;
        need.is_here = may_count
            && match store.blobs.presence(&need.digest, need.stated_size()) {
                Presence::Absent => false,
                Presence::Unverified if left > 0 && !over.is_cancelled() => {
                    left = left.saturating_sub(need.size);
                    let blob = store.blobs.open(&need.digest);
                    blob.is_some_and(|blob| {
                        blob.is_verified
                            || store.blobs.verify(&need.digest, &blob, |_| over.is_cancelled()).unwrap_or(true)
                    })
                }
                Presence::Unverified | Presence::Verified => true,
            };
    }
}
