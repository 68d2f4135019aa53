//! The cache folder outside the checkout: where it is, how one builder at a time fills it, and how a result appears in it
//! all at once.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `$BREAKWATER_CACHE`, else `$XDG_CACHE_HOME/breakwater`, else `~/.cache/breakwater`.
///
/// # Errors
/// Fails when none of the variables is set.
pub fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("BREAKWATER_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("breakwater")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/breakwater")))
        .context("no cache folder: set BREAKWATER_CACHE, XDG_CACHE_HOME or HOME")
}

/// Returns `<cache>/<name>`, made by `make` in a folder of its own first if it is not there yet.
///
/// `make` runs in one process at a time; a build that was cut off leaves nothing that could be taken for a result.
pub(super) fn make_once(name: &str, title: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache_folder()?;
    let result = cache.join(name);
    if result.exists() {
        return Ok(result);
    }
    let _lock = lock(name, title)?;
    if result.exists() {
        return Ok(result);
    }
    let unfinished = cache.join(format!("{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("make {}", unfinished.display()))?;
    make(&unfinished)?;
    fs::rename(&unfinished, &result).with_context(|| format!("publish {}", result.display()))?;
    Ok(result)
}

/// Waits until no other process of the harness makes `name`; the lock ends with the file.
pub(super) fn lock(name: &str, title: &str) -> Result<File> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache).with_context(|| format!("make the cache folder {}", cache.display()))?;
    let path = cache.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another process that is making {title}");
            file.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    Ok(file)
}
