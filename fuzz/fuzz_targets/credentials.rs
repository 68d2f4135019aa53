//! Mounted `.dockerconfigjson` files: any bytes, any registry, any repository.
#![no_main]

use breakwater_registry::upstream::credentials::Keyring;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &[u8])| {
    let (registry, repository, text) = input;
    let registry = registry.parse().unwrap_or_else(|_| "docker.io".parse().expect("a registry"));
    let Some(keyring) = Keyring::parse(text, &registry) else { return };
    let shown = format!("{keyring:?}");
    if let Ok(repository) = repository.parse()
        && let Some(login) = keyring.login(&repository)
    {
        assert!(!login.user.is_empty(), "{shown}");
        assert!(keyring.any().is_some(), "{shown}");
    }
});
