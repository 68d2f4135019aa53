//! Reads files that others wrote: regular ones of a sane size, whatever stands at their path. Never waits for a writer.

use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A larger one is somebody's mistake.
pub const SIZE_MAX: u64 = 1024 * 1024;

/// Reads a file to its end.
///
/// # Errors
/// It cannot be read, is no regular file, no UTF-8 or too large: part of it would say something else than the whole.
pub fn read(path: &Path) -> io::Result<String> {
    // Opening a FIFO would wait for its writer otherwise.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file"));
    }
    let mut text = String::new();
    let read = file.take(SIZE_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > SIZE_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn only_regular_files_of_a_sane_size_are_read_and_nobody_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("most"), vec![b'a'; SIZE_MAX as usize]).unwrap();
        std::fs::write(path("more"), vec![b'a'; SIZE_MAX as usize + 1]).unwrap();
        std::fs::write(path("bytes"), [0xff]).unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::os::unix::fs::symlink("most", path("link")).unwrap();
        for name in ["most", "link"] {
            assert_eq!(read(&path(name)).unwrap().len() as u64, SIZE_MAX);
        }
        let kinds = ["more", "bytes", "fifo", ".", "none"].map(|name| read(&path(name)).unwrap_err().kind());
        use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput, NotFound};
        assert_eq!(kinds, [FileTooLarge, InvalidData, InvalidInput, InvalidInput, NotFound]);
    }
}
