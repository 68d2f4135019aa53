//! Certificates and tokens: made and judged here, stored by [`keeper`]. All but the keeper is without I/O.

pub mod authority;
pub mod keeper;
pub mod leaf;
pub mod succession;
pub mod tokens;

pub use authority::{Authority, AuthorityInvalid};
pub use leaf::Leaf;
pub use tokens::Tokens;

use k8s_openapi::ByteString;
use std::collections::BTreeMap;
use std::time::Duration;

/// The data of a Secret.
pub type SecretData = BTreeMap<String, ByteString>;

/// A text value of a Secret; absent when it is missing or no UTF-8.
fn text<'a>(data: &'a SecretData, key: &str) -> Option<&'a str> {
    data.get(key).and_then(|value| std::str::from_utf8(&value.0).ok())
}

/// The text as a value of a Secret.
fn value(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

/// Making a key or a certificate failed.
#[derive(Debug, thiserror::Error)]
pub enum IssueFailed {
    /// The certificate library refused.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// The system gave no random numbers.
    #[error("no random numbers from the system")]
    Random,
}

/// 32 random bytes in hexadecimal.
fn random_hex() -> Result<String, IssueFailed> {
    let mut bytes = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueFailed::Random)?;
    Ok(hex::encode(bytes))
}

/// A certificate authority's life begins so much earlier than it is made, because the clocks of nodes differ.
const SKEW: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// A time so much later; the last that there is where the clock is beyond reason.
fn plus(time: jiff::Timestamp, duration: jiff::SignedDuration) -> jiff::Timestamp {
    time.saturating_add(duration).unwrap_or(time)
}

/// Sets a certificate's life.
fn set_life(params: &mut rcgen::CertificateParams, begin: jiff::Timestamp, end: jiff::Timestamp) {
    // The library takes another kind of time than the rest of this crate and exports this constructor alone.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |time: jiff::Timestamp| Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0));
    params.not_before = epoch + since_epoch(begin);
    params.not_after = epoch + since_epoch(end);
}
