//! How much a cache may hold: `40Gi`, `500M`, `1073741824` or `80%` of the volume. Pure.

use std::str::FromStr;

/// The value of `--cache-size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the volume.
    Percent(u8),
}

/// Why a text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeInvalid {
    /// Neither a quantity nor a percentage.
    #[error("must be a quantity such as 40Gi, 500M or 1073741824, or a part of the volume such as 80%")]
    Syntax,
    /// A part of the volume that is none.
    #[error("must be from 1% to 100% of the volume")]
    Percent,
    /// Nothing could be kept.
    #[error("must be at least one byte")]
    Nothing,
    /// More than a file system can hold.
    #[error("must be less than 16Ei")]
    TooLarge,
}

impl CacheSize {
    /// In bytes, on a volume of `capacity` bytes.
    pub fn of_volume(self, capacity: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => part(capacity, percent),
        }
    }
}

/// So many hundredths of something.
pub(super) fn part(whole: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(whole) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

impl FromStr for CacheSize {
    type Err = SizeInvalid;

    fn from_str(text: &str) -> Result<Self, SizeInvalid> {
        if let Some(percent) = text.strip_suffix('%') {
            let is_number = !percent.is_empty() && percent.bytes().all(|byte| byte.is_ascii_digit());
            return match percent.parse() {
                Ok(percent @ 1..=100) if is_number => Ok(Self::Percent(percent)),
                _ if is_number => Err(SizeInvalid::Percent),
                _ => Err(SizeInvalid::Syntax),
            };
        }
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let bytes = scaled(number, multiplier(suffix).ok_or(SizeInvalid::Syntax)?)?;
        if bytes == 0 { Err(SizeInvalid::Nothing) } else { Ok(Self::Bytes(bytes)) }
    }
}

/// The suffixes of a Kubernetes quantity, as far as bytes have them.
fn multiplier(suffix: &str) -> Option<u128> {
    const DECIMAL: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let (name, base) = match suffix.strip_suffix('i') {
        Some("k") => return None,
        Some("K") => ("k", 1024_u128),
        Some(name) if !name.is_empty() => (name, 1024),
        Some(_) => return None,
        None => (suffix, 1000),
    };
    let power = DECIMAL.iter().position(|known| *known == name)?;
    base.checked_pow(u32::try_from(power).ok()?)
}

/// `1.5` times the multiplier, rounded down.
fn scaled(number: &str, multiplier: u128) -> Result<u64, SizeInvalid> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Nine places are more than anybody writes, and cannot overflow.
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 || fraction.contains('.') || number.ends_with('.') {
        return Err(SizeInvalid::Syntax);
    }
    let parse = |digits: &str| digits.parse::<u128>().map_err(|_| SizeInvalid::Syntax);
    let places = u32::try_from(fraction.len()).map_err(|_| SizeInvalid::Syntax)?;
    let of_fraction = if fraction.is_empty() { 0 } else { parse(fraction)? * multiplier / 10_u128.pow(places) };
    let bytes = parse(whole)?.checked_mul(multiplier).and_then(|bytes| bytes.checked_add(of_fraction));
    u64::try_from(bytes.ok_or(SizeInvalid::TooLarge)?).map_err(|_| SizeInvalid::TooLarge)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities() {
        for (text, bytes) in [
            ("1", 1),
            ("1073741824", 1 << 30),
            ("1k", 1000),
            ("1Ki", 1024),
            ("500M", 500_000_000),
            ("40Gi", 40 << 30),
            ("1.5Gi", 3 << 29),
            ("0.5k", 500),
            ("15Ei", 15 << 60),
        ] {
            assert_eq!(text.parse(), Ok(CacheSize::Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn parts_of_the_volume() {
        assert_eq!("80%".parse(), Ok(CacheSize::Percent(80)));
        assert_eq!(CacheSize::Percent(80).of_volume(1000), 800);
        assert_eq!(CacheSize::Percent(100).of_volume(u64::MAX), u64::MAX);
        assert_eq!(CacheSize::Bytes(5).of_volume(1000), 5);
    }

    #[test]
    fn what_is_no_size() {
        let syntax =
            ["", "Gi", "1gi", "1K", "1ki", "1i", "1 Gi", "-1", "+1", "1..5", "1.", ".5", "1e3", "%", "+5%", "1.5%"];
        for bad in syntax {
            assert_eq!(bad.parse::<CacheSize>(), Err(SizeInvalid::Syntax), "{bad}");
        }
        assert_eq!("0%".parse::<CacheSize>(), Err(SizeInvalid::Percent));
        assert_eq!("101%".parse::<CacheSize>(), Err(SizeInvalid::Percent));
        assert_eq!("999%".parse::<CacheSize>(), Err(SizeInvalid::Percent));
        assert_eq!("0Gi".parse::<CacheSize>(), Err(SizeInvalid::Nothing));
        assert_eq!("16Ei".parse::<CacheSize>(), Err(SizeInvalid::TooLarge));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<CacheSize>();
        }

        #[test]
        fn plain_bytes_are_themselves(bytes in 1_u64..) {
            prop_assert_eq!(bytes.to_string().parse::<CacheSize>(), Ok(CacheSize::Bytes(bytes)));
        }
    }
}
