//! What an image is made for, as it is asked for and as an index offers it. Pure.

use std::{fmt, str::FromStr};

use serde::Serialize;

const MOST_CHARACTERS: usize = 128;

/// `os/architecture[/variant]`, as the OCI image spec has them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Platform(Box<str>);

/// Why a text is no platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7")]
pub struct PlatformInvalid;

impl Platform {
    /// Whether an index's entry for `offered` is meant, written `os/architecture/variant` with an empty variant for none.
    /// Without a variant every one is.
    pub fn takes(&self, offered: &str) -> bool {
        let (wanted, offered) = (parts(&self.0), parts(offered));
        let variant = offered[2].or_else(|| usual_variant(offered[1]?));
        wanted[..2] == offered[..2] && (wanted[2].is_none() || wanted[2] == variant)
    }
}

fn parts(platform: &str) -> [Option<&str>; 3] {
    let mut parts = platform.split('/').map(|part| Some(part).filter(|part| !part.is_empty()));
    std::array::from_fn(|_| parts.next().flatten())
}

/// What an entry without a variant is made for.
fn usual_variant(architecture: &str) -> Option<&'static str> {
    match architecture {
        "arm64" => Some("v8"),
        "arm" => Some("v7"),
        "amd64" => Some("v1"),
        _ => None,
    }
}

impl FromStr for Platform {
    type Err = PlatformInvalid;

    fn from_str(text: &str) -> Result<Self, PlatformInvalid> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let is_word = |part: &str| !part.is_empty() && part.bytes().all(is_plain);
        let is_valid = text.len() <= MOST_CHARACTERS && text.split('/').all(is_word);
        if is_valid && (2..=3).contains(&text.split('/').count()) {
            Ok(Self(text.into()))
        } else {
            Err(PlatformInvalid)
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_entries_are_meant() {
        let takes = |wanted: &str, offered: &str| wanted.parse::<Platform>().unwrap().takes(offered);
        assert!(takes("linux/amd64", "linux/amd64/") && takes("linux/arm64", "linux/arm64/v8"));
        assert!(takes("linux/arm64/v8", "linux/arm64/") && takes("linux/arm", "linux/arm/v6"));
        assert!(takes("linux/arm/v7", "linux/arm/") && !takes("linux/arm/v7", "linux/arm/v6"));
        assert!(!takes("linux/amd64", "windows/amd64/") && !takes("linux/amd64", "unknown/unknown/"));
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "a/b/", "a//b", "a b/c"] {
            assert_eq!(bad.parse::<Platform>(), Err(PlatformInvalid), "{bad}");
        }
    }
}
