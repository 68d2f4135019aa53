//! What the cache of a mirror shall hold: the images in use, those of the spec, and those that were in use a moment ago. Pure.

use super::reference::ImageName;
use breakwater_crds::RegistryMirrorSpec;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Images outlive their last Pod by this, so that whatever runs every hour finds them, be it a CronJob or not.
const LINGER: Duration = Duration::from_secs(2 * 60 * 60);
/// A cache refuses a longer list as a whole.
const MOST_PINS: usize = 10_000;
/// And a larger one: 4 MiB, of which some is left to spare.
const MOST_BYTES: usize = 3_500_000;

/// One entry of a cache's list of pins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Pin {
    /// `repository:tag` or `repository@digest`, as a cache answers.
    #[serde(skip)]
    pub(super) image: String,
    /// The same as it is asked for.
    #[serde(rename = "image")]
    pub(super) asked: String,
    /// Sorted.
    pub(super) platforms: Vec<String>,
}

/// The list for one cache, and what of it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// In the order of importance: where space ends, the last ones go without.
    pub(super) pins: Vec<Pin>,
    /// The images that are in use or asked for, and of each whether a new node needs it before its relay.
    pub(super) counted: BTreeMap<ImageName, bool>,
}

/// What the cache of a mirror shall hold. `platforms` are those of the nodes; none are known where there is no node.
pub(super) fn wanted(
    spec: &RegistryMirrorSpec,
    in_use: &BTreeMap<ImageName, bool>,
    lingering: &Lingering,
    platforms: &BTreeSet<String>,
) -> Option<Wanted> {
    let chosen = BTreeSet::from_iter(spec.images.platforms.iter().cloned());
    let platforms: Vec<_> = if chosen.is_empty() { platforms.clone() } else { chosen }.into_iter().collect();
    if platforms.is_empty() {
        return None;
    }
    let is_ours = |image: &&ImageName| image.registry() == spec.registry;
    let included = spec.images.include.iter().filter_map(|text| ImageName::of_registry(&spec.registry, text));
    let included: BTreeSet<_> = included.collect();
    let mut counted: BTreeMap<_, _> = included.iter().map(|image| (image.clone(), false)).collect();
    let mut leaving = Vec::new();
    if spec.images.in_use {
        let ours = in_use.iter().filter(|(image, _)| is_ours(image));
        counted.extend(ours.map(|(image, is_bootstrap)| (image.clone(), *is_bootstrap)));
        leaving = lingering.until.keys().filter(is_ours).filter(|image| !counted.contains_key(*image)).collect();
    }
    let others = counted.keys().filter(|image| !included.contains(*image));
    let mut bytes = 0;
    let pins = included.iter().chain(others).chain(leaving).map_while(|image| {
        let pin = Pin { image: image.pin().to_owned(), asked: image.asked(), platforms: platforms.clone() };
        bytes += pin.asked.len() + platforms.iter().map(|it| it.len() + 3).sum::<usize>() + 32;
        (bytes <= MOST_BYTES).then_some(pin)
    });
    Some(Wanted { pins: pins.take(MOST_PINS).collect(), counted })
}

/// Images that were in use a moment ago.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    until: BTreeMap<ImageName, Instant>,
}

impl Lingering {
    /// Takes note that other images are in use now.
    pub(super) fn replaced(&mut self, old: &BTreeMap<ImageName, bool>, new: &BTreeMap<ImageName, bool>, now: Instant) {
        for image in old.keys().filter(|image| !new.contains_key(*image)) {
            self.until.insert(image.clone(), now + LINGER);
        }
        self.until.retain(|image, _| !new.contains_key(image));
    }

    /// A cache still holds it for the operator's last life.
    pub(super) fn adopt(&mut self, image: ImageName, in_use: &BTreeMap<ImageName, bool>, now: Instant) {
        if !in_use.contains_key(&image) {
            self.until.entry(image).or_insert(now + LINGER);
        }
    }

    /// Forgets those whose time is over; says whether there were any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.until.len();
        self.until.retain(|_, until| *until > now);
        self.until.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;
    use proptest::prelude::*;

    fn names(texts: &[&str]) -> BTreeMap<ImageName, bool> {
        texts.iter().map(|text| (ImageName::parse(text).unwrap(), text.contains("proxy"))).collect()
    }

    fn spec(images: &str) -> RegistryMirrorSpec {
        parse(&format!("{{registry: docker.io, images: {images}}}"))
    }

    fn platforms(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn check(images: &str, in_use: &[&str], lingering: &Lingering, expected: &str) {
        let wanted = wanted(&spec(images), &names(in_use), lingering, &platforms(&["linux/amd64"])).unwrap();
        let shown: Vec<_> =
            wanted.pins.iter().map(|pin| format!("{} {}", pin.image, pin.platforms.join(","))).collect();
        assert_eq!(shown.join("; "), expected);
    }

    #[test]
    fn a_cache_holds_what_is_in_use_of_its_registry() {
        let none = Lingering::default();
        check(
            "{}",
            &["redis:7", "ghcr.io/a/b:1", "nginx"],
            &none,
            "library/nginx:latest linux/amd64; library/redis:7 linux/amd64",
        );
        check(
            "{include: ['z:1', 'redis:7']}",
            &["redis:7"],
            &none,
            "library/redis:7 linux/amd64; library/z:1 linux/amd64",
        );
        check("{inUse: false, include: ['z:1']}", &["redis:7"], &none, "library/z:1 linux/amd64");
        check("{platforms: [linux/s390x, linux/arm64]}", &["a"], &none, "library/a:latest linux/arm64,linux/s390x");
        assert_eq!(wanted(&spec("{}"), &names(&["a"]), &none, &platforms(&[])), None, "no node, no platform");
    }

    #[test]
    fn images_outlive_their_last_pod_for_a_while() {
        let (now, mut lingering) = (Instant::now(), Lingering::default());
        lingering.replaced(&names(&["old:1", "kept:1"]), &names(&["kept:1"]), now);
        check("{}", &["kept:1"], &lingering, "library/kept:1 linux/amd64; library/old:1 linux/amd64");
        check("{inUse: false}", &["kept:1"], &lingering, "");
        let wanted = wanted(&spec("{}"), &names(&["kept:1"]), &lingering, &platforms(&["linux/amd64"])).unwrap();
        assert_eq!(wanted.counted.len(), 1, "only what is in use counts");
        assert!(!lingering.expire(now + LINGER - Duration::from_secs(1)));
        assert!(lingering.expire(now + LINGER));
        check("{}", &["kept:1"], &lingering, "library/kept:1 linux/amd64");

        lingering.adopt(ImageName::parse("before:1").unwrap(), &names(&["kept:1"]), now);
        lingering.adopt(ImageName::parse("kept:1").unwrap(), &names(&["kept:1"]), now);
        check("{}", &["kept:1"], &lingering, "library/kept:1 linux/amd64; library/before:1 linux/amd64");
        lingering.replaced(&names(&["kept:1"]), &names(&["before:1"]), now);
        check("{}", &["before:1"], &lingering, "library/before:1 linux/amd64; library/kept:1 linux/amd64");
    }

    #[test]
    fn a_list_is_never_longer_than_a_cache_takes() {
        let long = "x".repeat(240);
        let many: BTreeMap<_, _> =
            (0..12_000).map(|n| (ImageName::parse(&format!("a/{long}:{n}")).unwrap(), false)).collect();
        let wanted =
            wanted(&spec("{}"), &many, &Lingering::default(), &platforms(&["linux/amd64", "linux/arm64"])).unwrap();
        assert!(wanted.pins.len() > 9_000 && wanted.pins.len() <= MOST_PINS);
        assert!(serde_json::to_vec(&wanted.pins).unwrap().len() < 4 << 20);
        assert_eq!(wanted.counted.len(), 12_000);
    }

    proptest! {
        #[test]
        fn each_image_is_pinned_once_and_all_that_counts_is(
            include in proptest::collection::vec(0_u8..9, 0..6),
            in_use in proptest::collection::vec(0_u8..9, 0..6),
            before in proptest::collection::vec(0_u8..9, 0..6),
        ) {
            let text = |numbers: &[u8]| numbers.iter().map(|n| format!("img:{n}")).collect::<Vec<_>>();
            let set = |numbers: &[u8]| names(&text(numbers).iter().map(String::as_str).collect::<Vec<_>>());
            let mut lingering = Lingering::default();
            lingering.replaced(&set(&before), &set(&in_use), Instant::now());
            let mut spec = spec("{}");
            spec.images.include = text(&include);
            let wanted = wanted(&spec, &set(&in_use), &lingering, &platforms(&["linux/amd64"])).unwrap();
            let pinned: BTreeSet<_> = wanted.pins.iter().map(|pin| &pin.image).collect();
            prop_assert_eq!(pinned.len(), wanted.pins.len());
            let all: BTreeSet<u8> = include.iter().chain(&in_use).chain(&before).copied().collect();
            prop_assert_eq!(pinned.len(), all.len());
            prop_assert!(wanted.counted.keys().all(|image| pinned.contains(&image.pin().to_owned())));
            prop_assert!(in_use.iter().chain(&include).collect::<BTreeSet<_>>().len() == wanted.counted.len());
        }
    }
}
