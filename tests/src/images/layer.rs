//! One layer: an uncompressed tar without times or owners, so that its digest depends on its content alone.

use std::path::Path;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// A layer in the making.
pub struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// An empty layer.
    #[must_use]
    pub fn new() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }

    /// Adds a file that belongs to root; the folders above it come into being by themselves.
    ///
    /// # Errors
    /// Fails for a path that tar cannot hold.
    pub fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, path, bytes).with_context(|| format!("add {path} to a layer"))
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`Layer::file`].
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0o777);
        self.tar
            .append_link(&mut header, Path::new(path), Path::new(target))
            .with_context(|| format!("add the link {path} to a layer"))
    }

    /// The tar.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        // Writing to memory cannot fail.
        self.tar.into_inner().unwrap_or_default()
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_mtime(0);
    header
}

/// Bytes that no compression makes smaller, the same for the same seed (SplitMix64).
pub(super) fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
