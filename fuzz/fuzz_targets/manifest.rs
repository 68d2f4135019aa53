//! Manifests: what they name is bounded, whatever they are.
#![no_main]

use breakwater_registry::manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let names = manifest::names(bytes);
    assert!(names.manifests.len() <= 4096 && names.blobs.len() <= 4096);
    manifest::recognise(bytes);
});
