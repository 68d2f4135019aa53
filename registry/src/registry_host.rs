//! The registry that this cache stands for: the host as it stands in image names. Pure.

use std::{fmt, str::FromStr};

/// Docker Hub goes by several names; the first is the one that image names hold.
const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// A registry's host with an optional port, lower-case: `docker.io`, `registry.example.com:5000`, `[::1]:5000`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegistryHost(Box<str>);

/// Why a text is no registry host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be the host as it stands in image names, with no scheme or path, such as docker.io")]
pub struct HostInvalid;

impl RegistryHost {
    /// The host as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where this registry lives unless told otherwise.
    pub fn default_url(&self) -> String {
        if self.is_docker_hub() { "https://registry-1.docker.io".to_owned() } else { format!("https://{}", self.0) }
    }

    /// Whether `name` means this registry.
    pub fn is_also_called(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        *self.0 == *name || (self.is_docker_hub() && DOCKER_HUB.contains(&name.as_str()))
    }

    fn is_docker_hub(&self) -> bool {
        DOCKER_HUB.contains(&&*self.0)
    }
}

impl FromStr for RegistryHost {
    type Err = HostInvalid;

    fn from_str(text: &str) -> Result<Self, HostInvalid> {
        let authority: http::uri::Authority = text.parse().map_err(|_| HostInvalid)?;
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
        let has_odd_port = authority.port_u16().is_none() && text.len() > authority.host().len();
        if authority.host().is_empty() || !text.bytes().all(is_plain) || has_odd_port {
            return Err(HostInvalid);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["docker.io", "registry.example.com:5000", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"] {
            assert!(good.parse::<RegistryHost>().is_ok(), "{good}");
        }
        for bad in ["", "https://docker.io", "docker.io/library", "user@host", "a b", "host:", "host:x"] {
            assert!(bad.parse::<RegistryHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn docker_hub_has_many_names() {
        let hub: RegistryHost = "docker.io".parse().unwrap();
        assert!(
            hub.is_also_called("index.docker.io") && hub.is_also_called("Docker.IO") && !hub.is_also_called("ghcr.io")
        );
        assert_eq!(hub.default_url(), "https://registry-1.docker.io");
        let other: RegistryHost = "Ghcr.io".parse().unwrap();
        assert_eq!(other.default_url(), "https://ghcr.io");
        assert!(other.is_also_called("ghcr.io") && !other.is_also_called("docker.io"));
    }
}
