//! Reads what stands in the data folder, whatever stands there: neither waits for the other end of a pipe, nor follows a link,
//! nor reads a device without end.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;

/// More than any record of a tag, a link or a boot needs.
const MOST_SMALL: u64 = 64 * 1024;

/// A small record; `None` if there is none, or none that can be read.
pub(super) fn small<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&record(path, MOST_SMALL).ok()?).ok()
}

/// The content of a plain file of at most so many bytes.
pub(super) fn record(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (mut file, found) = plain(OpenOptions::new().read(true), path)?;
    let length = found.len();
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.by_ref().take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a plain file; anything else is an error.
pub(super) fn plain(options: &mut OpenOptions, path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if found.is_file() { Ok((file, found)) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_plain_files_of_a_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, pipe] = ["file", "link", "pipe"].map(|name| dir.path().join(name));
        fs::write(&file, "12345").unwrap();
        symlink("/dev/zero", &link).unwrap();
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR.union(Mode::WUSR), 0).unwrap();
        assert_eq!(record(&file, 5).unwrap(), b"12345");
        for (path, most) in [(&file, 4), (&link, 5), (&pipe, 5), (&dir.path().to_owned(), 5)] {
            assert!(record(path, most).is_err(), "{}", path.display());
        }
        assert_eq!(record(&dir.path().join("none"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
