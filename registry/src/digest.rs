//! Content digests: the grammar of the OCI image spec, and hashing. Knows nothing of storage or HTTP.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::digest::{Context, SHA256, SHA512};

/// The digests of no bytes at all: the only content whose file may be empty.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const EMPTY_SHA512: &str = "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
    47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

/// The registered hash algorithms; content under any other cannot be verified and so is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, what nearly all images use.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Its name in a digest and in the store's paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A well-formed content digest such as `sha256:e3b0...`. Its text is safe as a file name, and shared by all copies.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Arc<str>,
}

/// Why a text is not a digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestInvalid {
    /// There is no `algorithm:hex`, or the algorithm is unknown.
    #[error("digest must be sha256:<hex> or sha512:<hex>")]
    Algorithm,
    /// The second part has the wrong length or is not lower-case hexadecimal.
    #[error("digest must end in lower-case hexadecimal of full length")]
    Hex,
}

impl Digest {
    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal text after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Twelve digits, enough for a log line.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// The digest of `bytes` under `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether this is the digest of the empty content.
    pub fn is_of_nothing(&self) -> bool {
        [EMPTY_SHA256, EMPTY_SHA512].contains(&&*self.hex)
    }
}

impl FromStr for Digest {
    type Err = DigestInvalid;

    fn from_str(text: &str) -> Result<Self, DigestInvalid> {
        let (name, hex) = text.split_once(':').ok_or(DigestInvalid::Algorithm)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestInvalid::Algorithm),
        };
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(DigestInvalid::Hex);
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes content as it arrives.
pub struct Hasher {
    algorithm: Algorithm,
    context: Context,
}

impl Hasher {
    /// Starts with nothing hashed.
    pub fn new(algorithm: Algorithm) -> Self {
        let context = Context::new(match algorithm {
            Algorithm::Sha256 => &SHA256,
            Algorithm::Sha512 => &SHA512,
        });
        Self { algorithm, context }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of everything added so far; more may follow.
    pub fn so_far(&self) -> Digest {
        Self { algorithm: self.algorithm, context: self.context.clone() }.finish()
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        let hex = hex::encode(self.context.finish()).into();
        Digest { algorithm: self.algorithm, hex }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").hex(), EMPTY_SHA256);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            assert!(Digest::of(algorithm, b"").is_of_nothing() && !Digest::of(algorithm, b"x").is_of_nothing());
        }
        assert!(Digest::of(Algorithm::Sha256, b"abc").to_string().starts_with("sha256:ba7816bf8f01cfea"));
        assert!(Digest::of(Algorithm::Sha512, b"abc").to_string().starts_with("sha512:ddaf35a193617aba"));
    }

    #[test]
    fn what_is_no_digest() {
        for bad in ["", "sha256", "sha256:", "md5:00", "sha256:../../etc/passwd", &format!("sha256:{}", "A".repeat(64))]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(bytes: Vec<u8>) {
            let digest = Digest::of(Algorithm::Sha256, &bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }

        #[test]
        fn never_panics_and_stays_a_plain_name(text in ".*") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert!(digest.hex().bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }
}
