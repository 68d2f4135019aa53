//! What is pinned: images and platforms, as they stand in a request and in `pins.json`. Pure.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

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

/// `os/architecture[/variant]`, as the OCI image spec has them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7")]
pub struct PlatformInvalid;

impl Platform {
    /// Whether an index's entry for `offered`, written `os/architecture/variant` with an empty variant for none, is meant.
    /// Without a variant every one is.
    pub fn takes(&self, offered: &str) -> bool {
        let mut parts = offered.split('/');
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let is_same = os == Some(&self.os) && architecture == Some(&self.architecture);
        let usual = usual_variant(&self.architecture);
        is_same
            && self.variant.as_deref().is_none_or(|wanted| wanted == if variant.is_empty() { usual } else { variant })
    }
}

/// What an entry without a variant is made for.
fn usual_variant(architecture: &str) -> &'static str {
    match architecture {
        "arm64" => "v8",
        "arm" => "v7",
        "amd64" => "v1",
        _ => "",
    }
}

impl FromStr for Platform {
    type Err = PlatformInvalid;

    fn from_str(text: &str) -> Result<Self, PlatformInvalid> {
        let is_word = |part: &&str| {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            !part.is_empty() && part.len() <= 64 && part.bytes().all(is_plain)
        };
        let parts: Vec<&str> = text.split('/').filter(is_word).collect();
        let (os, architecture, variant) = match (parts.as_slice(), text.split('/').count()) {
            ([os, architecture], 2) => (os, architecture, None),
            ([os, architecture, variant], 3) => (os, architecture, Some((*variant).to_owned())),
            _ => return Err(PlatformInvalid),
        };
        Ok(Self { os: (*os).to_owned(), architecture: (*architecture).to_owned(), variant })
    }
}

impl TryFrom<String> for Platform {
    type Error = PlatformInvalid;

    fn try_from(text: String) -> Result<Self, PlatformInvalid> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { os, architecture, variant } = self;
        write!(f, "{os}/{architecture}")?;
        variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
    let mut places = std::collections::HashMap::new();
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

    #[test]
    fn platforms() {
        let takes = |wanted: &str, offered: &str| wanted.parse::<Platform>().unwrap().takes(offered);
        assert!(takes("linux/amd64", "linux/amd64/") && takes("linux/arm64", "linux/arm64/v8"));
        assert!(takes("linux/arm64/v8", "linux/arm64/") && takes("linux/arm", "linux/arm/v6"));
        assert!(takes("linux/arm/v7", "linux/arm/") && !takes("linux/arm/v7", "linux/arm/v6"));
        assert!(!takes("linux/amd64", "windows/amd64/") && !takes("linux/amd64", "unknown/unknown/"));
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "a/b/", "a//b", "a b/c"] {
            assert_eq!(bad.parse::<Platform>(), Err(PlatformInvalid), "{bad}");
        }
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
