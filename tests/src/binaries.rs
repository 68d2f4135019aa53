//! Builds the project's own binaries and says where they are. It knows nothing of what they do.
#![allow(clippy::expect_used, clippy::panic, reason = "a harness fails its test by panicking")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The cache.
pub const REGISTRY: &str = "breakwater-registry";
/// The operator.
pub const OPERATOR: &str = "breakwater-operator";
/// The node agent.
pub const NODE_AGENT: &str = "breakwater-node-agent";

/// Failures are remembered too: a build that fails once would fail for each test anew.
static BUILT: Mutex<Option<HashMap<&'static str, Result<PathBuf, String>>>> = Mutex::new(None);

/// The binary of the package with this name, built in the profile and the target folder of the running test, once per
/// process. Cargo finds out in a moment that nothing has changed.
pub fn binary(package: &'static str) -> PathBuf {
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    match built.entry(package).or_insert_with(|| build(package)) {
        Ok(path) => path.clone(),
        Err(errors) => panic!("cargo could not build {package}:\n{errors}"),
    }
}

/// The workspace's root folder.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests are a folder of the workspace")
}

fn build(package: &str) -> Result<PathBuf, String> {
    let profile_folder = profile_folder();
    let target = profile_folder.parent().ok_or("the test runs outside of target/<profile>")?;
    let profile = match profile_folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "--package", package, "--bin", package])
        .args(["--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(profile_folder.join(package))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// `target/<profile>`: the running test is `target/<profile>/deps/<name>-<hash>`, or a folder higher for a binary.
fn profile_folder() -> PathBuf {
    let running = std::env::current_exe().expect("the running program has a path");
    let folder = running.parent().expect("a program is in a folder");
    match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().expect("deps is in a profile folder").to_owned(),
        _ => folder.to_owned(),
    }
}
