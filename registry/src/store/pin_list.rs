//! `pins.json`: the list of pins as it was last accepted. Knows nothing of what a pin is.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    read,
    write::{Writer, rename},
};

/// More than is ever accepted.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// The file.
pub struct PinList {
    path: PathBuf,
    writer: Writer,
}

impl PinList {
    pub(super) fn new(path: PathBuf, writer: Writer) -> Self {
        Self { path, writer }
    }

    /// What was last put; `None` if nothing ever was.
    pub fn get(&self) -> io::Result<Option<Vec<u8>>> {
        match read::record(&self.path, MOST_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Replaces it in one step; what was accepted outlasts a power cut.
    pub(super) fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.writer.aside(bytes, 0o644, |aside, file| {
            file.sync_data()?;
            rename(aside, &self.path)?;
            // Its name, too.
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        })
    }
}
