//! An image's name as a container runtime understands it: which registry it comes from, and what it is called there. Pure.
//!
//! The rules are those of containerd and Docker (`docker.io` and `library/` by default), the grammar that of the OCI distribution
//! spec: what does not fit is no image that a node could pull, and would make a cache refuse the whole list of pins.

use std::fmt;

const DOCKER_HUB: &str = "docker.io";
/// Longest repository that a registry takes.
const MOST_REPOSITORY: usize = 255;
const MOST_TAG: usize = 128;

/// An image by its full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    registry: Box<str>,
    pin: Box<str>,
}

impl ImageName {
    /// Reads what stands in a Pod's `image`. None where no registry could be asked for it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (registry, rest) = split_registry(text);
        // A bare image ID names what is on the node already.
        if registry.is_none() && is_hex(rest, 64) {
            return None;
        }
        let registry = registry.filter(|host| *host != "index.docker.io").unwrap_or(DOCKER_HUB);
        Self::within(registry, rest)
    }

    /// Reads an image of this registry, named with or without the registry's host.
    #[must_use]
    pub fn of_registry(registry: &str, text: &str) -> Option<Self> {
        let host = text.split_once('/').filter(|(host, _)| *host == registry);
        Self::within(registry, host.map_or(text, |(_, rest)| rest))
    }

    fn within(registry: &str, rest: &str) -> Option<Self> {
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = match name.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (name, None),
        };
        let prefix = if registry == DOCKER_HUB && !repository.contains('/') { "library/" } else { "" };
        let repository = format!("{prefix}{repository}");
        let is_valid = repository.len() <= MOST_REPOSITORY
            && repository.split('/').all(is_component)
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_digest);
        // With both, the digest alone decides.
        let pin = match (digest, tag) {
            (Some(digest), _) => format!("{repository}@{digest}"),
            (None, tag) => format!("{repository}:{}", tag.unwrap_or("latest")),
        };
        is_valid.then(|| Self { registry: registry.into(), pin: pin.into() })
    }

    /// The registry, as mirrors name it.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `repository:tag` or `repository@digest`, as a cache takes it.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// The same as a cache has to be asked for it. It takes a first part that is its registry's host for that host, so an image whose
    /// repository begins like one is asked for in full.
    #[must_use]
    pub fn asked(&self) -> String {
        let is_like_host = |first: &str| first.contains('.') || first.eq_ignore_ascii_case(&self.registry);
        match self.pin.split_once('/') {
            Some((first, _)) if is_like_host(first) => self.to_string(),
            _ => self.pin.clone().into(),
        }
    }

    /// Whether it is named by its content, which no registry can change.
    #[must_use]
    pub fn is_by_digest(&self) -> bool {
        self.pin.contains('@')
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.pin)
    }
}

/// A first component is a host only if it could not be part of a repository's name, or is `localhost`.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    let looks_like_host = |host: &str| {
        host == "localhost" || host.contains(['.', ':']) || host.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    match text.split_once('/') {
        Some((host, rest)) if looks_like_host(host) => (Some(host), rest),
        _ => (None, text),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_separator = |between: &str| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    let edges = [text.bytes().next(), text.bytes().last()];
    edges.into_iter().all(|byte| byte.is_some_and(is_word))
        && text
            .split(|letter: char| letter.is_ascii() && is_word(letter as u8))
            .filter(|between| !between.is_empty())
            .all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MOST_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn is_digest(text: &str) -> bool {
    match text.split_once(':') {
        Some(("sha256", hex)) => is_hex(hex, 64),
        Some(("sha512", hex)) => is_hex(hex, 128),
        _ => false,
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn name(text: &str) -> Option<String> {
        ImageName::parse(text).map(|image| format!("{} {}", image.registry(), image.pin()))
    }

    #[test]
    fn names_are_read_as_containerd_reads_them() {
        let check = |text: &str, expected: &str| assert_eq!(name(text).as_deref(), Some(expected), "{text}");
        check("nginx", "docker.io library/nginx:latest");
        check("nginx:1.27", "docker.io library/nginx:1.27");
        check("grafana/grafana:11", "docker.io grafana/grafana:11");
        check("docker.io/nginx", "docker.io library/nginx:latest");
        check("index.docker.io/library/nginx:1", "docker.io library/nginx:1");
        check("localhost/app", "localhost app:latest");
        check("localhost:5000/app:v1", "localhost:5000 app:v1");
        check("registry.example.com:5000/team/app:v1", "registry.example.com:5000 team/app:v1");
        check("Registry/app", "Registry app:latest");
        check("10.1.2.3:5000/app", "10.1.2.3:5000 app:latest");
        check("docker.io", "docker.io library/docker.io:latest");
        check(&format!("nginx@{DIGEST}"), &format!("docker.io library/nginx@{DIGEST}"));
        check(&format!("ghcr.io/a/b:v1@{DIGEST}"), &format!("ghcr.io a/b@{DIGEST}"));
        check("a__b/c-d---e.f_g:X", "docker.io a__b/c-d---e.f_g:X");
    }

    #[test]
    fn what_no_registry_could_be_asked_for_is_no_image() {
        let bare_id = DIGEST.strip_prefix("sha256:").unwrap();
        let long_tag = format!("a:{}", "t".repeat(129));
        let bad = ["", " ", "nginx:", "nginx:-x", "Nginx", "a//b", "/a", "a/", "a b", "a@", "a@sha256:00", "a@md5:x"];
        for text in bad.into_iter().chain(["a:b:c", "ghcr.io/", "a..b", "a.-b", "a___b", "ä", bare_id, &long_tag]) {
            assert_eq!(name(text), None, "{text}");
        }
    }

    #[test]
    fn an_included_image_may_be_named_with_or_without_its_registry() {
        let pin =
            |registry: &str, text: &str| ImageName::of_registry(registry, text).map(|image| image.pin().to_owned());
        assert_eq!(pin("docker.io", "nginx:1").as_deref(), Some("library/nginx:1"));
        assert_eq!(pin("docker.io", "docker.io/library/nginx:1").as_deref(), Some("library/nginx:1"));
        assert_eq!(pin("r.example:5000", "r.example:5000/app:1").as_deref(), Some("app:1"));
        assert_eq!(pin("r.example:5000", "app:1").as_deref(), Some("app:1"));
        assert_eq!(
            pin("ghcr.io", "quay.io/app:1").as_deref(),
            Some("quay.io/app:1"),
            "a dot is allowed in a repository"
        );
    }

    #[test]
    fn a_repository_that_begins_like_the_host_is_asked_for_in_full() {
        let asked = |text: &str| ImageName::parse(text).unwrap().asked();
        assert_eq!(asked("nginx:1"), "library/nginx:1");
        assert_eq!(asked("ghcr.io/team/app:1"), "team/app:1");
        assert_eq!(asked("ghcr.io/ghcr.io/app:1"), "ghcr.io/ghcr.io/app:1");
        assert_eq!(asked("docker.io/index.docker.io/app:1"), "docker.io/index.docker.io/app:1");
        assert_eq!(asked("localhost/localhost/app:1"), "localhost/localhost/app:1");
        assert_eq!(asked("Registry/registry/app:1"), "Registry/registry/app:1");
        assert_eq!(asked("r.example:5000/a.b:1"), "a.b:1");
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_what_is_read_reads_the_same_again(text in "\\PC{0,80}|[a-zA-Z0-9./:@_-]{0,60}") {
            if let Some(image) = ImageName::parse(&text) {
                prop_assert_eq!(ImageName::parse(&image.to_string()), Some(image));
            }
        }

        #[test]
        fn well_formed_names_are_read(
            host in "([a-z0-9]{1,8}\\.){1,2}[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            repository in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,2}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}",
        ) {
            let image = ImageName::parse(&format!("{host}/{repository}:{tag}")).unwrap();
            prop_assert_eq!(image.registry(), host.as_str());
            let plain = if host == DOCKER_HUB && !repository.contains('/') { "library/" } else { "" };
            prop_assert_eq!(image.pin(), format!("{plain}{repository}:{tag}"));
        }
    }
}
