//! nginx in its three parts: upstream, mark for hits (static files), and pull-through cache (`proxy_cache`).

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::content::MANIFEST_TYPE;
use super::process::Process;

/// What an nginx does.
#[derive(Clone, Debug)]
pub(super) enum Part<'a> {
    /// Serves a folder, at most so many bytes per second and connection; writes down what it sent if `counted`.
    Files { root: &'a Path, sendfile: bool, limit: Option<u64>, counted: bool },
    /// Caches what is at this address in a folder.
    Cache { upstream: SocketAddr, data: &'a Path },
}

/// Starts an nginx. `folder` gets its configuration and logs.
pub(super) fn start(part: &Part<'_>, address: SocketAddr, folder: &Path) -> Result<Process> {
    let path = folder.join("nginx.conf");
    fs::write(&path, configuration(part, address, folder)).with_context(|| format!("write {}", path.display()))?;
    Process::start(Command::new("nginx").arg("-c").arg(&path), &folder.join("log"))
}

/// Body bytes that an upstream has sent so far.
pub(super) fn sent_bytes(folder: &Path) -> Result<u64> {
    let log = fs::read_to_string(folder.join("access")).context("read nginx's access log")?;
    Ok(log.lines().filter_map(|line| line.parse::<u64>().ok()).sum())
}

fn configuration(part: &Part<'_>, address: SocketAddr, folder: &Path) -> String {
    let folder = folder.display();
    let (sendfile, serving) = match part {
        Part::Files { root, sendfile, limit, counted } => {
            let limit = limit.map(|limit| format!("limit_rate {limit};")).unwrap_or_default();
            let log =
                if *counted { format!("access_log {folder}/access bytes;") } else { "access_log off;".to_owned() };
            (*sendfile, files(root, &format!("{limit} {log}")))
        }
        Part::Cache { upstream, .. } => (true, cache(*upstream)),
    };
    let keeping = match part {
        Part::Cache { data, .. } => {
            format!(
                "proxy_cache_path {} levels=1:2 keys_zone=cache:64m max_size=64g use_temp_path=off;",
                data.display()
            )
        }
        Part::Files { .. } => String::new(),
    };
    let mut text = format!(
        "user root; daemon off; worker_processes auto; worker_rlimit_nofile 65536; pid {folder}/pid; error_log {folder}/errors;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n\
           sendfile {}; tcp_nopush on; keepalive_requests 1000000000; keepalive_timeout 300; send_timeout 300;\n\
           log_format bytes '$body_bytes_sent';\n\
           {keeping}\n",
        if sendfile { "on" } else { "off" }
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "{kind}_temp_path {folder}/{kind};");
    }
    let _ = writeln!(text, "server {{ listen {address} backlog=4096; {serving} }} }}");
    text
}

/// A registry of files. It does not say the digest of a tag: who pulls through learns it from the bytes.
fn files(root: &Path, settings: &str) -> String {
    format!(
        "root {}; {settings}\n\
         location = /v2/ {{ default_type application/json; add_header Docker-Distribution-API-Version registry/2.0; return 200 '{{}}'; }}\n\
         location ~ ^/v2/.+/manifests/(?<digest>sha256:.+)$ {{ default_type {MANIFEST_TYPE}; add_header Docker-Content-Digest $digest; }}\n\
         location ~ ^/v2/.+/manifests/ {{ default_type {MANIFEST_TYPE}; }}\n\
         location / {{ default_type application/octet-stream; }}",
        root.display(),
    )
}

fn cache(upstream: SocketAddr) -> String {
    format!(
        "access_log off; location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Connection '';\n\
         proxy_cache cache; proxy_cache_lock on; proxy_cache_valid 200 1h; }}"
    )
}
