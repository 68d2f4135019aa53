//! A registry's host as images name it, parsed once, and the folders containerd looks it up in. Pure.

use std::fmt;

/// `docker.io`, `registry.example.com:5000`: safe as one path component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryHost {
    name: String,
    colon: Option<usize>,
}

/// A text that is no registry host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a host with an optional port: {0:?}")]
pub struct NoRegistryHost(String);

impl RegistryHost {
    /// Parses a host with an optional port.
    ///
    /// # Errors
    /// Anything that is not letters, digits, `.` and `-`, beginning and ending in a letter or digit, and an optional port.
    pub fn parse(text: &str) -> Result<Self, NoRegistryHost> {
        let refuse = || NoRegistryHost(text.chars().take(80).collect());
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = host.as_bytes();
        let host_fits = bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last());
        let port_fits = port.is_none_or(|p| (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()));
        if text.len() > 253 || !host_fits || !port_fits {
            return Err(refuse());
        }
        Ok(Self { name: text.to_owned(), colon: port.map(|_| host.len()) })
    }

    /// The host as images name it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The folder that we make for it.
    #[must_use]
    pub fn folder(&self) -> &str {
        &self.name
    }

    /// The folder that containerd prefers to [`Self::folder`] where it exists: `host_port_`.
    #[must_use]
    pub fn preferred_folder(&self) -> Option<String> {
        self.colon.map(|at| format!("{}_{}_", &self.name[..at], &self.name[at + 1..]))
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_could_leave_the_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "../a", "_default", "a:", "a:b", "a:1:2", "-a", "a.", "a\0b", "a:123456"] {
            assert!(RegistryHost::parse(bad).is_err(), "{bad:?}");
        }
        assert!(RegistryHost::parse(&"a".repeat(254)).is_err());
    }

    #[test]
    fn a_port_gives_a_preferred_folder() {
        let host = RegistryHost::parse("registry.example.com:5000").unwrap();
        assert_eq!(host.folder(), "registry.example.com:5000");
        assert_eq!(host.preferred_folder().as_deref(), Some("registry.example.com_5000_"));
        assert_eq!(RegistryHost::parse("docker.io").unwrap().preferred_folder(), None);
    }
}
