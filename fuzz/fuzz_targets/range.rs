//! `Range` and `Content-Range`: what is read lies within the content.
#![no_main]

use breakwater_registry::range::{ByteRange, parse_content_range};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, u64)| {
    let (text, size) = input;
    if let Some(span) = ByteRange::parse(text).and_then(|range| range.within(size)) {
        assert!(span.start < span.end && span.end <= size, "{span:?} of {size}");
        let stated = parse_content_range(&span.content_range(size));
        assert_eq!(stated, Some((span.start, Some(size))), "{span:?} of {size}");
    }
    parse_content_range(text);
});
