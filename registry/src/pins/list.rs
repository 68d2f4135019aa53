//! What is pinned: images and platforms, as they stand in a request and in `pins.json`. Pure.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::platform::{Platform, PlatformInvalid};
use crate::{
    reference::{Reference, RepositoryName},
    registry_host::RegistryHost,
};

/// More than any cluster runs; what is kept in memory is bounded by it.
const MOST_IMAGES: usize = 10_000;

/// An image that the cache must hold completely and never evict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Where it is.
    pub repository: RepositoryName,
    /// Which it is.
    pub reference: Reference,
    /// For which platforms; none: for every one that it is made for.
    pub platforms: BTreeSet<Platform>,
}

impl Pin {
    /// `repository:tag` or `repository@digest`.
    pub fn image(&self) -> String {
        let separator = if matches!(self.reference, Reference::Tag(_)) { ':' } else { '@' };
        format!("{}{separator}{}", self.repository, self.reference)
    }
}

/// The body of a PUT, and `pins.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    images: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    image: String,
    #[serde(default)]
    platforms: Vec<String>,
}

/// Why a list of pins is refused. Each message names the entry and the mend.
#[derive(Debug, thiserror::Error)]
pub enum ListInvalid {
    /// The body is not of the documented shape.
    #[error(
        r#"the body must be like {{"images":[{{"image":"library/nginx:1.27","platforms":["linux/amd64"]}}]}}: {0}"#
    )]
    Shape(serde_json::Error),
    /// An image names nothing.
    #[error("images[{0}].image: {1:?} must be repository:tag or repository@sha256:<hex>, such as library/nginx:1.27")]
    Image(usize, String),
    /// A platform names nothing.
    #[error("images[{0}].platforms: {1:?} {PlatformInvalid}")]
    Platform(usize, String),
    /// There are too many.
    #[error("images: {0} entries are too many, at most {MOST_IMAGES} can be pinned")]
    TooMany(usize),
}

/// Reads a list of pins of this registry's cache. Entries of the same image become one.
pub fn parse(bytes: &[u8], registry: &RegistryHost) -> Result<Vec<Pin>, ListInvalid> {
    let Document { images } = serde_json::from_slice(bytes).map_err(ListInvalid::Shape)?;
    if images.len() > MOST_IMAGES {
        return Err(ListInvalid::TooMany(images.len()));
    }
    let mut pins: Vec<Pin> = Vec::with_capacity(images.len());
    let mut places = HashMap::new();
    for (index, Entry { image, platforms }) in images.into_iter().enumerate() {
        let (repository, reference) = parse_image(&image, registry).ok_or(ListInvalid::Image(index, shown(&image)))?;
        let parsed = platforms.iter().map(|text| text.parse().map_err(|_| ListInvalid::Platform(index, shown(text))));
        let platforms = parsed.collect::<Result<BTreeSet<Platform>, _>>()?;
        let place = *places.entry((repository.clone(), reference.clone())).or_insert(pins.len());
        match pins.get_mut(place) {
            // No platforms are all of them.
            Some(earlier) if platforms.is_empty() || earlier.platforms.is_empty() => earlier.platforms.clear(),
            Some(earlier) => earlier.platforms.extend(platforms),
            None => pins.push(Pin { repository, reference, platforms }),
        }
    }
    Ok(pins)
}

/// As `parse` reads it.
pub fn write(pins: &[Pin]) -> Result<Vec<u8>, serde_json::Error> {
    let entry =
        |pin: &Pin| Entry { image: pin.image(), platforms: pin.platforms.iter().map(Platform::to_string).collect() };
    serde_json::to_vec(&Document { images: pins.iter().map(entry).collect() })
}

/// `repository:tag`, `repository@digest` or, as Pods may have it, `repository:tag@digest`, where the digest counts; with
/// or without this registry's host.
fn parse_image(text: &str, registry: &RegistryHost) -> Option<(RepositoryName, Reference)> {
    let own = text.split_once('/').filter(|(host, _)| registry.is_also_called(host));
    let text = own.map_or(text, |(_, rest)| rest);
    let tagged = |text: &str| {
        let (name, tag) = text.rsplit_once(':')?;
        Some((name.parse::<RepositoryName>().ok()?, tag.parse().ok()?))
    };
    match text.split_once('@') {
        None => tagged(text).map(|(name, tag)| (name, Reference::Tag(tag))),
        Some((name, digest)) => {
            let name = name.parse().ok().or_else(|| tagged(name).map(|(name, _)| name))?;
            Some((name, Reference::Digest(digest.parse().ok()?)))
        }
    }
}

/// A wrong value may be of any length.
fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn docker_hub() -> RegistryHost {
        "docker.io".parse().unwrap()
    }

    fn parsed(text: &str) -> Result<Vec<Pin>, String> {
        parse(text.as_bytes(), &docker_hub()).map_err(|error| error.to_string())
    }

    fn image(text: &str) -> Result<String, String> {
        parsed(&serde_json::json!({"images": [{"image": text}]}).to_string()).map(|pins| pins[0].image())
    }

    #[test]
    fn images() {
        assert_eq!(image("library/nginx:1.27").unwrap(), "library/nginx:1.27");
        assert_eq!(image("docker.io/library/nginx:1.27").unwrap(), "library/nginx:1.27");
        assert_eq!(image(&format!("a/b@{DIGEST}")).unwrap(), format!("a/b@{DIGEST}"));
        assert_eq!(image(&format!("a/b:x@{DIGEST}")).unwrap(), format!("a/b@{DIGEST}"));
        for bad in ["", "a/b", "a/b:", "A:x", ":x", "a@sha256:00", "a b:x", "../x:y", &format!("a:-@{DIGEST}")] {
            assert!(image(bad).unwrap_err().starts_with("images[0].image: "), "{bad}");
        }
        let own = parse(br#"{"images":[{"image":"r.example:5000/a:1"}]}"#, &"r.example:5000".parse().unwrap()).unwrap();
        assert_eq!(own[0].image(), "a:1");
    }

    #[test]
    fn entries_of_one_image_become_one() {
        let text = r#"{"images":[{"image":"a:1","platforms":["linux/arm64"]},{"image":"b:1","platforms":["linux/amd64"]},
            {"image":"a:1","platforms":["linux/amd64"]},{"image":"b:1"}]}"#;
        let pins = parsed(text).unwrap();
        assert_eq!(format!("{:?}", pins[0].platforms), "{linux/amd64, linux/arm64}");
        assert!(pins[1].platforms.is_empty() && pins.len() == 2);
    }

    #[test]
    fn errors_name_the_entry_and_the_mend() {
        let error = parsed(r#"{"images":[{"image":"a:1"},{"image":"b:1","platforms":["amd64"]}]}"#).unwrap_err();
        assert_eq!(
            error,
            r#"images[1].platforms: "amd64" must be os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7"#
        );
        for bad in
            ["", "[]", "{}", r#"{"images":{}}"#, r#"{"images":[{"image":"a:1","platform":"x"}]}"#, r#"{"image":[]}"#]
        {
            assert!(parsed(bad).unwrap_err().contains(r#""images":["#), "{bad}");
        }
        assert!(
            parsed(&serde_json::json!({"images": vec![serde_json::json!({"image": "a:1"}); 10_001]}).to_string())
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes, &docker_hub());
        }

        #[test]
        fn what_is_written_is_read(names in proptest::collection::hash_set("[a-z]{1,9}:[a-z]{1,9}", 0..5), variant in "[a-z0-9]{1,4}") {
            let pin = |name: &String| serde_json::json!({"image": name, "platforms": [format!("linux/arm/{variant}"), "a/b"]});
            let text = serde_json::json!({"images": names.iter().map(pin).collect::<Vec<_>>()}).to_string();
            let pins = parsed(&text).unwrap();
            prop_assert_eq!(parse(&write(&pins).unwrap(), &docker_hub()).unwrap(), pins);
        }
    }
}
