//! The token that a relay shows to one cache, derived from one key that every agent holds.
//!
//! Derived, not stored: a new mirror needs no new Secret at the agents, and a cache learns only its own token.

use aws_lc_rs::hmac;
use std::fmt;

/// The key that every relay token derives from: 64 hexadecimal characters. Its Debug form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct RelayKey(String);

impl RelayKey {
    /// Parses the text of a Secret; white space around it is ignored.
    ///
    /// # Errors
    /// Anything but 64 hexadecimal characters.
    pub fn parse(text: &str) -> Result<Self, MalformedRelayKey> {
        let text = text.trim();
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(MalformedRelayKey)
        }
    }

    /// The text to store in a Secret.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayKey(hidden)")
    }
}

/// A relay key that is not 64 hexadecimal characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("relay key must be 64 hexadecimal characters")]
pub struct MalformedRelayKey;

/// The token for the cache with this Service name: hex of HMAC-SHA256.
#[must_use]
pub fn relay_token(key: &RelayKey, service: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.0.as_bytes());
    hex::encode(hmac::sign(&key, service.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cache_has_its_own_token() {
        let key = RelayKey::parse(&format!(" {}\n", "0a".repeat(32))).unwrap();
        assert_eq!(relay_token(&key, "cache-a").len(), 64);
        assert_ne!(relay_token(&key, "cache-a"), relay_token(&key, "cache-b"));
        assert_eq!(format!("{key:?}"), "RelayKey(hidden)");
    }

    #[test]
    fn a_malformed_key_is_refused() {
        assert_eq!(RelayKey::parse("short"), Err(MalformedRelayKey));
        assert_eq!(RelayKey::parse(&"zz".repeat(32)), Err(MalformedRelayKey));
    }
}
