//! Blobs on a plain connection go from the page cache to the socket by `sendfile(2)`: their bytes never enter this process,
//! so a fast reader costs little processor time and a paused one no memory. Knows sockets and files, nothing of HTTP.
//!
//! hyper counts and frames a body by the bytes it is handed. So a body hands it a slice of `BLANK` as long as the part of
//! the file that is meant, and notes file and offset in its connection's `Files`; the connection's `FileStream` knows such
//! a slice by its address and sends the noted part instead. A blank slice without a note breaks the connection. What the
//! kernel cannot read of a blob is told to the blob, as by the time it is tried the body has long handed out its slice.

use std::{
    collections::VecDeque,
    fs::File,
    future::Future,
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rustix::{
    fs::sendfile,
    io::{Errno, ReadWriteFlags, preadv2},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::store::blobs::StoredBlob;

const LARGEST_PART: usize = 512 * 1024;
/// Less is not worth a system call and a packet of its own.
const SMALLEST_PART: u64 = 32 * 1024;
/// Read by nobody, and so never in memory.
static BLANK: [u8; LARGEST_PART] = [0; LARGEST_PART];

tokio::task_local! {
    static FILES: Files;
}

/// What the blank slices on their way through a connection stand for, in their order.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<VecDeque<Part>>>);

struct Part {
    file: Arc<File>,
    /// What the file holds, if it is complete.
    blob: Option<StoredBlob>,
    offset: u64,
    left: usize,
}

impl Files {
    /// Runs a connection whose bodies may be sent so.
    pub async fn within<T>(self, connection: impl Future<Output = T>) -> T {
        FILES.scope(self, connection).await
    }
}

/// A blank slice for at most `length` bytes from `offset` on; `None` if they have to be read: the connection cannot send
/// files, they are few, or they are not in memory, where waiting for the disk would hold up other connections. `blob` is
/// doubted should they be unreadable all the same.
pub fn frame(file: &Arc<File>, blob: Option<&StoredBlob>, offset: u64, length: u64) -> Option<Bytes> {
    let files = FILES.try_with(Files::clone).ok()?;
    let length = length.min(LARGEST_PART as u64);
    // The kernel reads ahead in order: what stands at both ends has the middle too.
    if length < SMALLEST_PART || !is_cached(file, offset) || !is_cached(file, offset + length - 1) {
        return None;
    }
    let blank = BLANK.get(..usize::try_from(length).ok()?)?;
    let part = Part { file: Arc::clone(file), blob: blob.cloned(), offset, left: blank.len() };
    files.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(part);
    Some(Bytes::from_static(blank))
}

fn is_cached(file: &File, offset: u64) -> bool {
    matches!(read_cached(file, offset, &mut [0]), Ok(1))
}

/// Reads what can be had without waiting for the disk; an error if that is nothing, or if the file system cannot tell.
pub fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT)
}

/// A socket that sends parts of files where it is given blank slices.
pub struct FileStream {
    stream: TcpStream,
    files: Files,
}

impl FileStream {
    /// `files` are those that the connection's bodies note.
    pub fn new(stream: TcpStream, files: Files) -> Self {
        Self { stream, files }
    }

    fn poll_send(&self, cx: &mut Context<'_>, blank: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let mut files = self.files.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(part) = files.front_mut() else {
                return Poll::Ready(Err(io::Error::other("a blank slice stands for nothing")));
            };
            let length = part.left.min(blank.len());
            match self.stream.try_io(Interest::WRITABLE, || send(&self.stream, part, length)) {
                // The file was cut behind our back.
                Ok(0) => return Poll::Ready(Err(part.unreadable(io::ErrorKind::UnexpectedEof.into()))),
                Ok(sent) => {
                    part.offset += sent as u64;
                    part.left -= sent;
                    if part.left == 0 {
                        files.pop_front();
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_of_file(&error) => return Poll::Ready(Err(part.unreadable(error))),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Part {
    fn unreadable(&self, error: io::Error) -> io::Error {
        if let Some(blob) = &self.blob {
            blob.doubt();
        }
        error
    }
}

/// Whether an error of sending comes from the disk: a client that goes away must not cost a blob its good name.
fn is_of_file(error: &io::Error) -> bool {
    let of_disk = [Errno::IO, Errno::STALE, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA, Errno::REMOTEIO];
    error.raw_os_error().is_some_and(|code| of_disk.iter().any(|errno| errno.raw_os_error() == code))
}

fn send(stream: &TcpStream, part: &Part, length: usize) -> io::Result<usize> {
    let mut offset = part.offset;
    match sendfile(stream, &part.file, Some(&mut offset), length) {
        // A file system that cannot send.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let mut buffer = vec![0; length.min(64 * 1024)];
            let read = rustix::io::pread(&part.file, &mut buffer, part.offset)?;
            Ok(rustix::io::write(stream, &buffer[..read])?)
        }
        sent => Ok(sent?),
    }
}

fn is_blank(slice: &[u8]) -> bool {
    !slice.is_empty() && BLANK.as_ptr_range().contains(&slice.as_ptr())
}

impl AsyncRead for FileStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for FileStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if is_blank(buf) { self.poll_send(cx, buf) } else { Pin::new(&mut self.stream).poll_write(cx, buf) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices.iter().position(|slice| is_blank(slice)) {
            Some(0) => self.poll_send(cx, &slices[0]),
            Some(before) => Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..before]),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        }
    }

    /// Otherwise hyper would copy what it is handed.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        digest::{Algorithm, Digest},
        store::{Store, blobs::Presence},
    };

    async fn pair(files: Files) -> (FileStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (FileStream::new(listener.accept().await.unwrap().0, files), client)
    }

    fn file(length: usize) -> (Arc<File>, Vec<u8>) {
        let bytes: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
        let mut file = tempfile::tempfile_in(".").unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), bytes)
    }

    #[tokio::test]
    async fn parts_of_files_go_out_between_other_bytes() {
        let files = Files::default();
        let (mut server, mut client) = pair(files.clone()).await;
        let (file, bytes) = file(3_000_000);
        let sending = files.clone().within(async move {
            let mut offset = 5;
            while let Some(blank) = frame(&file, None, offset, 3_000_000 - offset) {
                server.write_all(b"<").await.unwrap();
                server.write_all(&blank).await.unwrap();
                offset += blank.len() as u64;
            }
            server.shutdown().await.unwrap();
            offset
        });
        let mut got = Vec::new();
        let (offset, read) = tokio::join!(sending, client.read_to_end(&mut got));
        read.unwrap();
        let mut expected = Vec::new();
        for part in bytes[5..offset as usize].chunks(LARGEST_PART) {
            expected.push(b'<');
            expected.extend(part);
        }
        assert!(offset > 2_900_000 && got == expected);
        assert!(files.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_file_that_was_cut_breaks_the_connection() {
        let files = Files::default();
        let (mut server, _client) = pair(files.clone()).await;
        let (file, _) = file(100_000);
        let blank = files.within(async { frame(&file, None, 0, 100_000) }).await.unwrap();
        file.set_len(0).unwrap();
        assert_eq!(server.write_all(&blank).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_blob_that_the_disk_does_not_give_is_doubted() {
        let dir = tempfile::tempdir().unwrap();
        let registry = "docker.io".parse().unwrap();
        let store = Store::open(dir.path().join("data"), &registry, "1Gi".parse().unwrap()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"content");
        store.keep_small(&digest, b"content", true).unwrap();
        let blob = store.blobs.open(&digest).unwrap();
        let files = Files::default();
        let (mut server, client) = pair(files.clone()).await;
        // Its first byte is never mapped, and reading it is an input/output error.
        let unreadable = Arc::new(File::open("/proc/self/mem").unwrap());
        let part = Part { file: unreadable, blob: Some(blob), offset: 0, left: 10 };
        files.0.lock().unwrap().push_back(part);
        assert_eq!(store.blobs.presence(&digest, None), Presence::Verified);
        let error = server.write_all(&BLANK[..10]).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
        assert_eq!(store.blobs.presence(&digest, None), Presence::Unverified);
        drop(client);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_casts_no_doubt() {
        let (files, (file, _)) = (Files::default(), file(100_000));
        assert!(!is_of_file(&io::ErrorKind::BrokenPipe.into()));
        let (mut server, client) = pair(files.clone()).await;
        client.set_zero_linger().unwrap();
        drop(client);
        let error = loop {
            let blank = files.clone().within(async { frame(&file, None, 0, 100_000) }).await.unwrap();
            if let Err(error) = server.write_all(&blank).await {
                break error;
            }
        };
        assert!(!is_of_file(&error), "{error}");
    }

    #[tokio::test]
    async fn a_blank_slice_without_a_note_is_never_sent() {
        let (mut server, _client) = pair(Files::default()).await;
        assert!(server.write_all(&BLANK[..10]).await.is_err());
    }

    #[tokio::test]
    async fn elsewhere_files_are_read() {
        assert!(frame(&file(100_000).0, None, 0, 100_000).is_none());
    }
}
