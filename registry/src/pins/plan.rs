//! What a pinned image needs, read from the manifests that are at hand. Pure: `read` brings the bytes.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;

use super::platform::Platform;
use crate::{
    digest::Digest,
    failure::Failure,
    manifest::{self, Named},
};

/// A real image needs a few hundred at most; a made-up tree of indexes must not fill the memory.
const MOST_NEEDS: usize = 16_384;
/// An index names images, seldom another index. Each level costs a look at all that are above it.
const MOST_DEPTH: usize = 8;
/// What build tools put beside images: signed statements on how they were built. No runtime asks for them.
const NO_PLATFORM: &str = "unknown/unknown/";

/// A content that an image needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which.
    pub digest: Digest,
    /// Its size, as far as it is known.
    pub size: u64,
    /// A manifest is needed to know what else is.
    pub is_manifest: bool,
    /// Whether it is here.
    pub is_here: bool,
}

impl Need {
    /// Its size, if it is known.
    pub fn stated_size(&self) -> Option<u64> {
        Some(self.size).filter(|size| *size > 0)
    }
}

/// Why an image can never be complete, whatever upstream sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Its index has no entry for a platform that was asked for.
    #[error("the image is not made for {0}")]
    NotOffered(Platform),
    /// It names too much.
    #[error("more than {MOST_NEEDS} contents or {MOST_DEPTH} levels of indexes: no image needs that")]
    Oversized,
    /// A manifest names nothing.
    #[error("{0} is not the manifest of an image, nor an index of images")]
    Unknown(Digest),
}

impl Obstacle {
    /// The name for the API.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NotOffered(_) => "NoSuchPlatform",
            Self::Oversized | Self::Unknown(_) => Failure::InvalidResponse.category(),
        }
    }
}

/// All that an image needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Each content once: manifests before what they name.
    pub needs: Vec<Need>,
    /// Why that is not all.
    pub obstacle: Option<Obstacle>,
}

impl Plan {
    /// The manifests that are not here.
    pub fn unread(&self) -> impl Iterator<Item = &Need> {
        self.needs.iter().filter(|need| need.is_manifest && !need.is_here)
    }

    /// Whether all of the image is here.
    pub fn is_complete(&self) -> bool {
        !self.needs.is_empty() && self.needs.iter().all(|need| need.is_here) && self.obstacle.is_none()
    }
}

/// Plans the image `root` for `platforms`, all if there are none. Whether a blob is here is for the caller to find out.
pub fn plan(root: &Digest, platforms: &BTreeSet<Platform>, mut read: impl FnMut(&Digest) -> Option<Bytes>) -> Plan {
    let mut plan = Plan::default();
    let mut seen = HashSet::new();
    let mut offered = BTreeSet::new();
    let mut suits_any = false;
    let mut manifests = vec![(root.clone(), 0, None, 0)];
    while let Some((digest, size, platform, depth)) = manifests.pop() {
        if depth > MOST_DEPTH || plan.needs.len() + manifests.len() > MOST_NEEDS {
            // Nothing but its name is kept.
            plan.needs.truncate(1);
            plan.obstacle = Some(Obstacle::Oversized);
            return plan;
        }
        if !seen.insert(digest.clone()) {
            continue;
        }
        let bytes = read(&digest);
        let size = bytes.as_ref().map_or(size, |bytes| bytes.len() as u64);
        let names = bytes.as_deref().map(manifest::names);
        plan.needs.push(Need { digest: digest.clone(), size, is_manifest: true, is_here: names.is_some() });
        let Some(names) = names else { continue };
        if names.manifests.is_empty() && names.blobs.is_empty() {
            plan.obstacle = Some(Obstacle::Unknown(digest));
            return plan;
        }
        // An image that no index gives a platform counts for whatever platform.
        suits_any |= names.manifests.is_empty() && platform.is_none();
        offered.extend(platform);
        let wanted = names.manifests.into_iter().filter(|entry| is_wanted(entry, platforms));
        manifests.extend(wanted.map(|entry| (entry.digest, entry.size, entry.platform, depth + 1)));
        for Named { digest, size, .. } in names.blobs {
            if seen.insert(digest.clone()) {
                plan.needs.push(Need { digest, size, is_manifest: false, is_here: false });
            }
        }
    }
    // Thousands of plans are kept.
    plan.needs.shrink_to_fit();
    // What is not read yet may offer any.
    if !suits_any && plan.unread().next().is_none() {
        let is_missing = |wanted: &&Platform| !offered.iter().any(|offered| wanted.takes(offered));
        plan.obstacle = platforms.iter().find(is_missing).cloned().map(Obstacle::NotOffered);
    }
    plan
}

/// Entries without a platform may be anything, another index for one.
fn is_wanted(entry: &Named, platforms: &BTreeSet<Platform>) -> bool {
    match &entry.platform {
        None => true,
        Some(offered) if platforms.is_empty() => offered != NO_PLATFORM,
        Some(offered) => platforms.iter().any(|wanted| wanted.takes(offered)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::Algorithm;

    #[derive(Default)]
    struct Shelf(HashMap<Digest, Bytes>);

    impl Shelf {
        fn put(&mut self, document: &Value) -> Digest {
            let bytes = document.to_string().into_bytes();
            let digest = Digest::of(Algorithm::Sha256, &bytes);
            self.0.insert(digest.clone(), bytes.into());
            digest
        }

        fn image(&mut self, layers: &[&str]) -> Digest {
            let layers: Vec<_> = layers.iter().map(|name| named(&blob(name), &json!(null))).collect();
            self.put(&json!({"config": named(&blob("config"), &json!(null)), "layers": layers}))
        }

        fn index(&mut self, entries: &[(&Digest, Value)]) -> Digest {
            let entries: Vec<_> = entries.iter().map(|(digest, platform)| named(digest, platform)).collect();
            self.put(&json!({"manifests": entries}))
        }

        fn plan(&self, root: &Digest, platforms: &[&str]) -> Plan {
            let platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
            plan(root, &platforms, |digest| self.0.get(digest).cloned())
        }
    }

    fn blob(name: &str) -> Digest {
        Digest::of(Algorithm::Sha256, name.as_bytes())
    }

    fn named(digest: &Digest, platform: &Value) -> Value {
        json!({"digest": digest.to_string(), "mediaType": "m", "size": 7, "platform": platform})
    }

    fn on(os: &str, architecture: &str) -> Value {
        json!({"os": os, "architecture": architecture})
    }

    fn digests(plan: &Plan) -> HashSet<Digest> {
        plan.needs.iter().map(|need| need.digest.clone()).collect()
    }

    #[test]
    fn an_image_counts_for_whatever_platform() {
        let mut shelf = Shelf::default();
        let image = shelf.image(&["a", "b", "a"]);
        let plan = shelf.plan(&image, &["plan9/mips"]);
        assert_eq!(digests(&plan), [image, blob("config"), blob("a"), blob("b")].into());
        assert!(plan.obstacle.is_none() && plan.needs.len() == 4 && plan.unread().next().is_none());
    }

    #[test]
    fn only_the_platforms_asked_for_are_needed() {
        let mut shelf = Shelf::default();
        let (amd, arm, statement) = (shelf.image(&["amd"]), shelf.image(&["arm"]), shelf.image(&["how"]));
        let nested = shelf.index(&[(&arm, on("linux", "arm64"))]);
        let index = shelf.index(&[
            (&amd, on("linux", "amd64")),
            (&nested, json!(null)),
            (&statement, on("unknown", "unknown")),
        ]);
        let needs = |platforms: &[&str]| digests(&shelf.plan(&index, platforms));
        let amd_only: HashSet<_> = [index.clone(), nested.clone(), amd.clone(), blob("config"), blob("amd")].into();
        assert_eq!(needs(&["linux/amd64"]), amd_only);
        assert!(needs(&[]).is_superset(&[amd, arm, blob("arm")].into()) && !needs(&[]).contains(&statement));
        assert!(needs(&["unknown/unknown"]).contains(&blob("how")));
        let plan = shelf.plan(&index, &["linux/amd64", "linux/s390x"]);
        assert_eq!(plan.obstacle.unwrap().to_string(), "the image is not made for linux/s390x");
    }

    #[test]
    fn what_is_not_here_is_asked_for_first() {
        let mut shelf = Shelf::default();
        let image = shelf.image(&["a"]);
        let index = shelf.index(&[(&image, on("linux", "amd64"))]);
        let unread = |shelf: &Shelf| shelf.plan(&index, &["linux/amd64"]).unread().cloned().collect::<Vec<_>>();
        assert_eq!(unread(&shelf), []);
        shelf.0.remove(&image);
        assert_eq!(
            unread(&shelf).iter().map(|need| (need.digest.clone(), need.size)).collect::<Vec<_>>(),
            [(image, 7)]
        );
        shelf.0.clear();
        assert_eq!(unread(&shelf).len(), 1);
        assert_eq!(shelf.plan(&index, &["linux/s390x"]).obstacle, None);
    }

    #[test]
    fn a_tree_without_end_is_given_up() {
        let mut shelf = Shelf::default();
        let leaf = |n: u32| named(&blob(&n.to_string()), &json!(null));
        let entries: Vec<_> = (0..8)
            .map(|n| shelf.put(&json!({"manifests": (n * 4096..(n + 1) * 4096).map(leaf).collect::<Vec<_>>()})))
            .collect();
        let root: Vec<_> = entries.iter().map(|digest| (digest, json!(null))).collect();
        let root = shelf.index(&root);
        let plan = shelf.plan(&root, &[]);
        assert!(plan.obstacle == Some(Obstacle::Oversized) && plan.needs.len() == 1);
    }

    #[test]
    fn an_index_in_an_index_is_followed_but_not_for_ever() {
        let mut shelf = Shelf::default();
        let image = shelf.image(&["a"]);
        let mut root = image.clone();
        for depth in 1..=MOST_DEPTH + 1 {
            root = shelf.index(&[(&root, json!(null))]);
            let plan = shelf.plan(&root, &["linux/amd64"]);
            assert_eq!(plan.obstacle, (depth > MOST_DEPTH).then_some(Obstacle::Oversized));
            assert_eq!(digests(&plan).contains(&image), depth <= MOST_DEPTH);
        }
    }

    #[test]
    fn what_names_nothing_is_no_image() {
        let mut shelf = Shelf::default();
        for odd in [json!({"schemaVersion": 1, "fsLayers": []}), json!({"manifests": []}), json!(7)] {
            let odd = shelf.put(&odd);
            let plan = shelf.plan(&odd, &[]);
            assert!(plan.obstacle == Some(Obstacle::Unknown(odd)) && !plan.is_complete());
        }
    }

    proptest! {
        #[test]
        fn more_platforms_never_need_less(mask in 0u8..8, more in 0u8..8) {
            let mut shelf = Shelf::default();
            let architectures = ["amd64", "arm64", "s390x"];
            let images: Vec<_> = architectures.iter().map(|name| shelf.image(&[name])).collect();
            let entries: Vec<_> = images.iter().zip(architectures).map(|(image, name)| (image, on("linux", name))).collect();
            let index = shelf.index(&entries);
            let asked = |mask: u8| {
                let chosen = architectures.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0);
                chosen.map(|(_, name)| format!("linux/{name}")).collect::<Vec<_>>()
            };
            let needs = |mask: u8| {
                let asked = asked(mask);
                digests(&shelf.plan(&index, &asked.iter().map(String::as_str).collect::<Vec<_>>()))
            };
            prop_assume!(mask != 0);
            prop_assert!(needs(mask | more).is_superset(&needs(mask)));
        }
    }
}
