//! Where a replica is, as `--peer` says it. Pure.

use std::{fmt, str::FromStr};

/// Where another replica is: `cache-1.cache:5000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress(String);

/// Why a text is no peer's address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be HOST:PORT of another replica, such as cache-1.cache:5000")]
pub struct AddressInvalid;

impl FromStr for PeerAddress {
    type Err = AddressInvalid;

    fn from_str(text: &str) -> Result<Self, AddressInvalid> {
        let authority: http::uri::Authority = text.parse().map_err(|_| AddressInvalid)?;
        let is_plain = authority.port_u16().is_some() && !authority.host().is_empty() && !text.contains('@');
        is_plain.then(|| Self(text.to_owned())).ok_or(AddressInvalid)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["cache-1.cache:5000", "10.0.0.1:5000", "[::1]:5000"] {
            assert_eq!(good.parse::<PeerAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "cache-1", ":5000", "http://a:1", "a:1/x", "user@a:1", "a:99999"] {
            assert_eq!(bad.parse::<PeerAddress>(), Err(AddressInvalid), "{bad}");
        }
    }
}
