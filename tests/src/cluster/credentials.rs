//! Who may speak to the API server: static tokens, and the kubeconfig files that carry them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::random_hex;

/// A Kubernetes user with a token of its own.
#[derive(Debug, Clone)]
pub(super) struct User {
    name: String,
    group: &'static str,
    token: String,
}

impl User {
    pub(super) fn new(name: &str, group: &'static str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), group, token: random_hex(16)? })
    }

    /// A line of the API server's `--token-auth-file`.
    pub(super) fn token_line(&self) -> String {
        format!("{},{},{},\"{}\"\n", self.token, self.name, self.name, self.group)
    }

    /// Writes a kubeconfig with this user's token.
    pub(super) fn write_kubeconfig(&self, path: &Path, server: &str, ca_file: &Path) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": ca_file}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        });
        fs::write(path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path.to_owned())
    }
}
