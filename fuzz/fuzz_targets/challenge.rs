//! `WWW-Authenticate`: a token is fetched by HTTP or not at all.
#![no_main]

use breakwater_registry::upstream::challenge::{self, Challenge};
use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|lines: Vec<&[u8]>| {
    let mut headers = HeaderMap::new();
    for line in lines {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    if let Some(Challenge::Bearer { realm, .. }) = challenge::parse(&headers) {
        assert!(matches!(realm.scheme(), "http" | "https") && realm.has_host(), "{realm}");
    }
});
