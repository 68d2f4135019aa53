//! The tokens that one cache accepts. No I/O.

use super::{Authority, IssueFailed, SecretData, random_hex, text, value};
use breakwater_crds::relay_token;
use std::fmt;

const RELAY: &str = "relay";
const OPERATOR: &str = "operator";

/// The relays' token, derived, and the operator's, random. Its Debug form hides both.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens {
    relay: String,
    operator: String,
}

impl Tokens {
    /// Reads the operator's token from a Secret's data; the relays' is always derived anew.
    #[must_use]
    pub fn parse(data: &SecretData) -> Option<Self> {
        let operator = text(data, OPERATOR)?.to_owned();
        let relay = text(data, RELAY).unwrap_or_default().to_owned();
        (!operator.is_empty()).then_some(Self { relay, operator })
    }

    /// The Secret's data.
    #[must_use]
    pub fn data(&self) -> SecretData {
        SecretData::from([(RELAY.to_owned(), value(&self.relay)), (OPERATOR.to_owned(), value(&self.operator))])
    }

    /// The token that opens the cache's pins.
    #[must_use]
    pub(crate) fn operator(&self) -> &str {
        &self.operator
    }

    /// The tokens to store for the cache with this Service; the operator's is kept once made.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn completed(stored: Option<&Self>, authority: &Authority, service: &str) -> Result<Self, IssueFailed> {
        let operator = match stored {
            Some(stored) => stored.operator.clone(),
            None => random_hex()?,
        };
        Ok(Self { relay: relay_token(authority.relay_key(), service), operator })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_token_is_kept_and_the_relays_follows_the_key() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let authority = || Authority::parse(&Authority::create(now).unwrap(), now).unwrap();
        let (first, second) = (authority(), authority());
        let tokens = Tokens::completed(None, &first, "cache-a").unwrap();
        let stored = Tokens::parse(&tokens.data()).unwrap();
        assert_eq!(Tokens::completed(Some(&stored), &first, "cache-a").unwrap(), tokens);
        let moved = Tokens::completed(Some(&stored), &second, "cache-a").unwrap();
        assert_eq!(moved.operator, tokens.operator);
        assert_ne!(moved.relay, tokens.relay);
        assert_eq!(tokens.relay, relay_token(first.relay_key(), "cache-a"));
    }
}
