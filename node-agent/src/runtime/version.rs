//! The container runtime and its version, as the kubelet or the runtime itself names them. Pure.

/// containerd's version, as far as its behaviour depends on it. Pre-releases count as their release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

/// Why a version says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoVersion {
    /// Another runtime, whose settings are not containerd's.
    #[error("the node runs {0}")]
    Other(String),
    /// Not a version.
    #[error("{0:?} is not a version of containerd")]
    Text(String),
}

impl Version {
    /// Parses `containerd://2.4.2`, with or without a `v` and whatever a distribution appends.
    ///
    /// # Errors
    /// Another runtime, or no version.
    pub(super) fn parse(text: &str) -> Result<Self, NoVersion> {
        let (name, version) = text.split_once("://").ok_or_else(|| NoVersion::Text(text.to_owned()))?;
        if name != "containerd" {
            return Err(NoVersion::Other(text.to_owned()));
        }
        let numbers = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match numbers.take(3).collect::<Result<Vec<u32>, _>>().as_deref() {
            Ok([major, minor, patch]) => Ok(Self(*major, *minor, *patch)),
            _ => Err(NoVersion::Text(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, version) in [
            ("containerd://2.4.2", Version(2, 4, 2)),
            ("containerd://v1.7.28-k3s1", Version(1, 7, 28)),
            ("containerd://1.6.20~ds1", Version(1, 6, 20)),
            ("containerd://2.4.0-beta.0", Version(2, 4, 0)),
        ] {
            assert_eq!(Version::parse(text), Ok(version), "{text}");
        }
        assert!(matches!(Version::parse("cri-o://1.34.0"), Err(NoVersion::Other(_))));
        for bad in ["", "2.4.2", "containerd://", "containerd://2.4", "containerd://x.y.z"] {
            assert!(matches!(Version::parse(bad), Err(NoVersion::Text(_))), "{bad}");
        }
    }
}
