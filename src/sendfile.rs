//! File to socket inside the kernel, and files read without stopping a thread that serves sockets.
//!
//! With `unsafe`, as `handover.rs`: Pingora lends its socket only as a number, and `preadv2` has no safe
//! wrapper.

#![expect(unsafe_code, reason = "borrowing Pingora's socket by its number, and preadv2")]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::sys::socket::sockopt::TcpCongestion;
use nix::sys::socket::{self, MsgFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::SLICE_BYTES;

/// What is looked at and sent at a time, at most.
const STEP_BYTES: u64 = 4 * SLICE_BYTES as u64;

/// The least distance between two samples of residency: the kernel reads ahead no less.
const PROBE_BYTES: u64 = 128 * 1024;

/// A client's plain TCP socket, for the length of one transfer.
#[derive(Debug)]
pub struct Socket {
    raw: RawFd,
    /// A double that the runtime watches beside Pingora. Made when the socket is first full: what
    /// fits into its buffer needs none.
    watched: Option<AsyncFd<OwnedFd>>,
}

impl Socket {
    /// The socket of a session that outlives this.
    pub fn of(raw: RawFd) -> Self {
        Self { raw, watched: None }
    }

    /// Sends `from..to` of a file; `fresh` says that it was just written, and so is in memory. Not cancel safe: a dropped call leaves the client with a part.
    ///
    /// # Errors
    /// What the kernel says; `TimedOut` where the client takes nothing for `patience`;
    /// `UnexpectedEof` where the file is shorter than it should be.
    pub async fn send(
        &mut self,
        file: &Arc<File>,
        from: u64,
        to: u64,
        fresh: bool,
        patience: Duration,
    ) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let step = (to - at).min(STEP_BYTES);
            if !fresh && !is_resident(file, at, step) {
                make_resident(file, at, step).await?;
            }
            // A client that keeps up must not keep the thread from the others.
            tokio::task::consume_budget().await;
            let end = at + step;
            while at < end {
                match self.try_send(file, at, end - at) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => at += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.writable(patience).await?;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Sends bytes in memory. Not cancel safe.
    ///
    /// # Errors
    /// What the kernel says; `TimedOut` where the client takes nothing for `patience`.
    pub async fn send_bytes(&mut self, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
        while !bytes.is_empty() {
            match send_now(self.raw, bytes)? {
                0 => self.writable(patience).await?,
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    fn try_send(&self, file: &File, at: u64, length: u64) -> io::Result<u64> {
        let mut offset = i64::try_from(at).map_err(io::Error::other)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        // SAFETY: the caller holds the session whose socket this is, so the number is open.
        let socket = unsafe { BorrowedFd::borrow_raw(self.raw) };
        nix::sys::sendfile::sendfile(socket, file, Some(&mut offset), length)
            .map(|n| n as u64)
            .map_err(Into::into)
    }

    async fn writable(&mut self, patience: Duration) -> io::Result<()> {
        if self.watched.is_none() {
            // SAFETY: as in `try_send`.
            let fd = unsafe { BorrowedFd::borrow_raw(self.raw) }.try_clone_to_owned()?;
            // SAFETY: the registration owns the descriptor, so it stays open for as long.
            self.watched =
                Some(unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE)? });
        }
        let Some(watched) = &self.watched else { return Ok(()) };
        let mut guard = tokio::time::timeout(patience, watched.writable())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        guard.clear_ready();
        Ok(())
    }
}

/// Changes the algorithm by which a connection is sent to, where it is the one that is expected.
///
/// # Errors
/// What the kernel says.
pub fn change_congestion(raw: RawFd, from: &str, to: &OsString) -> io::Result<()> {
    // SAFETY: the caller holds the stream whose socket this is, so the number is open.
    let socket = unsafe { BorrowedFd::borrow_raw(raw) };
    if socket::getsockopt(&socket, TcpCongestion)? == from {
        socket::setsockopt(&socket, TcpCongestion, to)?;
    }
    Ok(())
}

/// Sends what the socket takes at once, and says how much that was.
///
/// # Errors
/// What the kernel says; a full socket is none.
pub fn send_now(raw: RawFd, bytes: &[u8]) -> io::Result<usize> {
    match socket::send(raw, bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
        other => other.map_err(Into::into),
    }
}

/// Reads part of a file: at once where its pages are in memory, else on a blocking thread.
///
/// # Errors
/// What the file system says; `UnexpectedEof` where the file ends early.
pub async fn read(file: &Arc<File>, at: u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = BytesMut::zeroed(length);
    let now = read_resident(file, at, &mut buffer).unwrap_or(0);
    if now < length {
        let file = Arc::clone(file);
        buffer = tokio::task::spawn_blocking(move || {
            file.read_exact_at(&mut buffer[now..], at + now as u64).map(|()| buffer)
        })
        .await
        .map_err(io::Error::other)??;
    }
    Ok(buffer.freeze())
}

/// Whether a stretch of a file is in memory, by five samples at most. Whole files come and leave in long
/// stretches, and islands are left by those who ask for short ones. A sample every 128 KiB
/// was a tenth of the work of sending. Being wrong costs time, nothing else.
fn is_resident(file: &File, at: u64, length: u64) -> bool {
    let mut byte = [0];
    let last = at + length - 1;
    let apart = (length / 4).max(PROBE_BYTES);
    (at..last)
        .step_by(usize::try_from(apart).unwrap_or(usize::MAX))
        .chain([last])
        .all(|p| read_resident(file, p, &mut byte).is_ok())
}

/// Reads a stretch of a file on a blocking thread, only so that it is in memory.
async fn make_resident(file: &Arc<File>, at: u64, length: u64) -> io::Result<()> {
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || {
        let mut scratch = vec![0; SLICE_BYTES];
        let mut position = at;
        while position < at + length {
            match file.read_at(&mut scratch, position)? {
                0 => break,
                n => position += n as u64,
            }
        }
        Ok(())
    })
    .await
    .map_err(io::Error::other)?
}

/// `preadv2` with `RWF_NOWAIT`: what is in memory, or `WouldBlock`.
fn read_resident(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let offset = i64::try_from(at).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and the vector points to `buffer`, which outlives the call.
    let n = unsafe { libc::preadv2(file.as_raw_fd(), &raw const iov, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::io::AsyncReadExt;

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    #[tokio::test]
    async fn a_part_of_a_file_reaches_a_slow_reader_whole() {
        let content: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
        let file = file(&content);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client =
            tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let sender = tokio::spawn(async move {
            let mut socket = Socket::of(server.as_raw_fd());
            socket.send(&file, 1000, 4_000_000, false, Duration::from_secs(20)).await
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        sender.await.unwrap().unwrap();
        assert!(got == content[1000..4_000_000]);
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error() {
        let file = file(b"abc");
        assert_eq!(&read(&file, 1, 2).await.unwrap()[..], b"bc");
        assert!(read(&file, 1, 3).await.is_err());
    }
}
