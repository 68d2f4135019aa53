//! Byte ranges of RFC 9110, one range at a time. Pure: knows neither files nor headers beyond their text.

/// What a `Range` header asks for, before the size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=first-last`, both included.
    Closed {
        /// First byte.
        first: u64,
        /// Last byte, never before `first`.
        last: u64,
    },
    /// `bytes=first-`.
    From(u64),
    /// `bytes=-length`: the last bytes.
    Suffix(u64),
}

/// A part of a content of known size: `start..end`, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Span {
    /// Number of bytes.
    pub fn length(self) -> u64 {
        self.end - self.start
    }

    /// The value of `Content-Range` for a content of `size` bytes.
    pub fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end - 1)
    }
}

impl ByteRange {
    /// Reads a `Range` header. Other units, several ranges and nonsense give `None`: a server may ignore `Range`.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, spec) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = spec.trim().split_once('-')?;
        match (first.trim(), last.trim()) {
            ("", length) => Some(Self::Suffix(position(length)?)),
            (first, "") => Some(Self::From(position(first)?)),
            (first, last) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Self::Closed { first, last })
            }
        }
    }

    /// The part of a content of `size` bytes that is meant; `None` if there is no such part (416).
    pub fn within(self, size: u64) -> Option<Span> {
        let (start, end) = match self {
            Self::Closed { first, last } => (first, last.saturating_add(1).min(size)),
            Self::From(first) => (first, size),
            Self::Suffix(length) => (size.saturating_sub(length), size),
        };
        (start < end).then_some(Span { start, end })
    }
}

/// The first byte and the whole size that a `Content-Range: bytes first-last/size` of upstream states.
pub fn parse_content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (span, size) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _last) = span.split_once('-')?;
    let size = if size == "*" { None } else { Some(number(size)?) };
    Some((number(first)?, size))
}

/// A position beyond all that can be counted is beyond the end of any content.
fn position(text: &str) -> Option<u64> {
    let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits_only.then(|| text.parse().unwrap_or(u64::MAX))
}

fn number(text: &str) -> Option<u64> {
    let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits_only.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers() {
        assert_eq!(ByteRange::parse("bytes=0-"), Some(ByteRange::From(0)));
        assert_eq!(ByteRange::parse("bytes=5-9"), Some(ByteRange::Closed { first: 5, last: 9 }));
        assert_eq!(ByteRange::parse("Bytes= -7"), Some(ByteRange::Suffix(7)));
        assert_eq!(ByteRange::parse("bytes=99999999999999999999-"), Some(ByteRange::From(u64::MAX)));
        for ignored in ["", "bytes", "bytes=", "bytes=-", "bytes=9-5", "bytes=0-1,3-4", "items=0-1", "bytes=+1-2"] {
            assert_eq!(ByteRange::parse(ignored), None, "{ignored}");
        }
    }

    #[test]
    fn spans() {
        assert_eq!(ByteRange::From(10).within(10), None);
        assert_eq!(ByteRange::Suffix(0).within(10), None);
        assert_eq!(ByteRange::Suffix(20).within(10), Some(Span { start: 0, end: 10 }));
        assert_eq!(ByteRange::Closed { first: 2, last: 99 }.within(10), Some(Span { start: 2, end: 10 }));
        assert_eq!(Span { start: 2, end: 10 }.content_range(10), "bytes 2-9/10");
    }

    #[test]
    fn content_range() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_content_range("bytes */10"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            ByteRange::parse(&text);
            parse_content_range(&text);
        }

        #[test]
        fn a_span_lies_within(first: u64, last: u64, size: u64) {
            for range in [ByteRange::Closed { first: first.min(last), last: first.max(last) }, ByteRange::From(first), ByteRange::Suffix(last)] {
                if let Some(span) = range.within(size) {
                    prop_assert!(span.start < span.end && span.end <= size);
                }
            }
        }
    }
}
