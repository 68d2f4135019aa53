//! Lists of pins, from a request or from disk: what is let through is written and read again as it was.
#![no_main]

use breakwater_registry::pins::list;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let registry = "docker.io".parse().expect("a host");
    if let Ok(pins) = list::parse(bytes, &registry) {
        let written = list::write(&pins).expect("JSON");
        assert_eq!(list::parse(&written, &registry).expect("what was written"), pins);
    }
});
