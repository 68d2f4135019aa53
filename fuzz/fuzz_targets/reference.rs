//! Names, tags and digests: what is let through is its own text, and safe as a file name.
#![no_main]

use breakwater_registry::{
    digest::Digest,
    reference::{RepositoryName, Tag},
    registry_host::RegistryHost,
};
use libfuzzer_sys::fuzz_target;

fn is_safe(component: &str) -> bool {
    !component.is_empty()
        && component != "."
        && component != ".."
        && component.bytes().all(|byte| byte.is_ascii_graphic())
}

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert_eq!(name.as_str(), text);
        assert!(text.len() <= 255 && text.split('/').all(is_safe), "{text}");
        assert!(text.split('/').all(|component| !component.starts_with('_')), "{text}");
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert_eq!(tag.as_str(), text);
        assert!(text.len() <= 128 && is_safe(text) && !text.contains(['/', '\\']), "{text}");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
    }
    if let Ok(host) = text.parse::<RegistryHost>() {
        assert!(host.is_also_called(host.as_str()), "{text}");
    }
});
