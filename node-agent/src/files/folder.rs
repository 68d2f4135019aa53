//! The folders below certs.d, held by descriptor. Follows no symlink, reads only regular files of a sane size, replaces
//! atomically. Knows nothing of what the files say.

use super::{Fault, First};
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

const HOSTS_TOML: &str = "hosts.toml";
/// One name, as one agent writes: what a crash leaves behind is replaced by the next write.
const TEMPORARY: &str = ".hosts.toml.breakwater";
const SIZE_MAX: u64 = 1024 * 1024;
/// A file with more attributes, or a longer one, was given them for nothing.
const ATTRIBUTES_MAX: usize = 4 * 1024;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// certs.d itself.
pub(super) struct CertsDir(OwnedFd);

/// The folder of one registry.
pub(super) struct HostFolder(OwnedFd);

/// A file as it was found, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) text: String,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// When it was written; None: now.
    pub(super) modified: Option<SystemTime>,
}

impl CertsDir {
    /// Opens certs.d, if it is the folder that was seen first.
    pub(super) fn open(path: &Path, first: &mut First) -> Result<Self, Fault> {
        let folder = first.open(path).map_err(Fault::plain_io("open the folder certs.d"))?;
        folder.map(|folder| Self(folder.into())).ok_or(Fault::Replaced)
    }

    /// Whether anything has this name: containerd follows symlinks, so they count.
    pub(super) fn has(&self, name: &str) -> Result<bool, Fault> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Fault::io("look up the registry's folder")(error)),
        }
    }

    /// Names of the entries, whatever they are.
    pub(super) fn names(&self) -> Result<Vec<String>, Fault> {
        list(&self.0)
    }

    /// Opens a registry's folder; None if there is none.
    pub(super) fn open_folder(&self, name: &str) -> Result<Option<HostFolder>, Fault> {
        match rustix::fs::openat(&self.0, name, FOLDER, Mode::empty()) {
            Ok(fd) => Ok(Some(HostFolder(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(Fault::Unsafe("the registry's folder is a symlink or no folder")),
            Err(error) => Err(Fault::io("open the registry's folder")(error)),
        }
    }

    pub(super) fn make_folder(&self, name: &str) -> Result<HostFolder, Fault> {
        super::crash_point().map_err(Fault::plain_io("make the registry's folder"))?;
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(&self.0, name, mode).map_err(Fault::io("make the registry's folder"))?;
        rustix::fs::fsync(&self.0).map_err(Fault::io("make the registry's folder durable"))?;
        let folder = self.open_folder(name)?.ok_or(Fault::Unsafe("the registry's folder vanished"))?;
        // The umask may have taken bits that the runtime's user needs.
        rustix::fs::fchmod(&folder.0, mode).map_err(Fault::io("set the mode of the registry's folder"))?;
        Ok(folder)
    }

    /// Removes a folder if it is empty.
    pub(super) fn remove_folder(&self, name: &str) -> Result<(), Fault> {
        super::crash_point().map_err(Fault::plain_io("remove the registry's folder"))?;
        match rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                rustix::fs::fsync(&self.0).map_err(Fault::io("make the removal of the registry's folder durable"))
            }
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(Fault::io("remove the registry's folder")(error)),
        }
    }
}

impl HostFolder {
    /// Reads `hosts.toml`; None if there is none.
    pub(super) fn read(&self) -> Result<Option<Found>, Fault> {
        const ACTION: &str = "read hosts.toml";
        // NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.0, HOSTS_TOML, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(Fault::Unsafe("hosts.toml is a symlink")),
            Err(error) => return Err(Fault::io(ACTION)(error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(Fault::io(ACTION))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Fault::Unsafe("hosts.toml is no regular file"));
        }
        let (file, mut bytes) = (File::from(fd), Vec::new());
        // Earlier ones no journal can record.
        let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
        let modified = modified.filter(|time| *time >= SystemTime::UNIX_EPOCH);
        file.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(Fault::plain_io(ACTION))?;
        if bytes.len() as u64 > SIZE_MAX {
            return Err(Fault::Unsafe("hosts.toml is larger than 1 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(|_| Fault::NotText)?;
        Ok(Some(Found { text, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, modified }))
    }

    /// Whether containerd finds certificates here while there is no `hosts.toml`.
    pub(super) fn has_certificates(&self) -> Result<bool, Fault> {
        let certificate = |name: &String| [".crt", ".cert", ".key"].iter().any(|suffix| name.ends_with(suffix));
        Ok(list(&self.0)?.iter().any(certificate))
    }

    /// Replaces `hosts.toml` in one step: temporary file here, fsync, rename, fsync of the folder.
    pub(super) fn replace(&self, file: &Found) -> Result<(), Fault> {
        const ACTION: &str = "write hosts.toml";
        let step = || super::crash_point().map_err(Fault::plain_io(ACTION));
        step()?;
        self.remove_file(TEMPORARY)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&self.0, TEMPORARY, flags, Mode::from_raw_mode(0o600)).map_err(Fault::io(ACTION))?;
        step()?;
        let stat = rustix::fs::fstat(&fd).map_err(Fault::io(ACTION))?;
        if (stat.st_uid, stat.st_gid) != (file.uid, file.gid) {
            let (uid, gid) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
            rustix::fs::fchown(&fd, Some(uid), Some(gid))
                .map_err(Fault::io("keep the owner of hosts.toml, for which it must be root's"))?;
        }
        self.keep_attributes(&fd);
        let mut temporary = File::from(fd);
        temporary.write_all(file.text.as_bytes()).map_err(Fault::plain_io(ACTION))?;
        // After it was written, which takes some modes away.
        let mode = Mode::from_raw_mode(file.mode);
        rustix::fs::fchmod(&temporary, mode).map_err(Fault::io("keep the mode of hosts.toml"))?;
        if let Some(modified) = file.modified {
            // A file system without such times has nothing to give back.
            drop(temporary.set_modified(modified));
        }
        temporary.sync_all().map_err(Fault::plain_io(ACTION))?;
        step()?;
        rustix::fs::renameat(&self.0, TEMPORARY, &self.0, HOSTS_TOML).map_err(Fault::io(ACTION))?;
        step()?;
        rustix::fs::fsync(&self.0).map_err(Fault::io(ACTION))
    }

    /// Gives the new file the attributes of the one that it replaces, as far as that is allowed. Signatures are not among them: they
    /// are of other bytes.
    fn keep_attributes(&self, to: &OwnedFd) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(from) = rustix::fs::openat(&self.0, HOSTS_TOML, flags, Mode::empty()) else { return };
        let mut names = Vec::with_capacity(ATTRIBUTES_MAX);
        if rustix::fs::flistxattr(&from, spare_capacity(&mut names)).is_err() {
            return;
        }
        for name in names.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
            let mut value = Vec::with_capacity(ATTRIBUTES_MAX);
            if rustix::fs::fgetxattr(&from, name, spare_capacity(&mut value)).is_ok() {
                let _ = rustix::fs::fsetxattr(to, name, &value, XattrFlags::empty());
            }
        }
    }

    /// Removes `hosts.toml` and what a crash left of a write.
    pub(super) fn remove(&self) -> Result<(), Fault> {
        super::crash_point().map_err(Fault::plain_io("remove hosts.toml"))?;
        self.remove_file(TEMPORARY)?;
        self.remove_file(HOSTS_TOML)?;
        rustix::fs::fsync(&self.0).map_err(Fault::io("remove hosts.toml"))
    }

    /// Removes what a crash left of a write.
    pub(super) fn sweep(&self) -> Result<(), Fault> {
        super::crash_point().map_err(Fault::plain_io("remove a temporary file"))?;
        self.remove_file(TEMPORARY)
    }

    fn remove_file(&self, name: &str) -> Result<(), Fault> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Fault::io("remove hosts.toml")(error)),
        }
    }
}

/// Labels of SELinux, access lists, and what users note.
fn is_kept(attribute: &[u8]) -> bool {
    [&b"security.selinux"[..], b"system.posix_acl_access"].contains(&attribute) || attribute.starts_with(b"user.")
}

/// The user and group that new files of this process get.
pub(super) fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Names in a folder; names that are no text are nobody's that we know.
fn list(folder: &OwnedFd) -> Result<Vec<String>, Fault> {
    let action = "list a folder of certs.d";
    let mut names = Vec::new();
    for entry in Dir::read_from(folder).map_err(Fault::io(action))? {
        let entry = entry.map_err(Fault::io(action))?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
