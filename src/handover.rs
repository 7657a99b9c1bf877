//! Sockets that another process has opened: the one before this one, which hands over to its new
//! binary, or systemd, which holds the port between them.
//!
//! The process before starts the new binary with one end of a pair of sockets as its standard input,
//! and `PIERHEAD_HANDOVER` set. Over it go the listening sockets and the lock of the cache folder, with
//! a line of JSON that says which is which and what tokens are signed with. `serving` comes back once the new process accepts; `draining`
//! with the bytes that are still to be kept answers that, and the end of the stream says that
//! the process before has gone. Whoever dies shows by the same end: no process id is believed.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

/// Says that standard input is the process before. No key of the configuration.
pub const VARIABLE: &str = "PIERHEAD_HANDOVER";

/// What the new process says once it accepts.
const SERVING: &str = "serving";

/// The line that says how many bytes are still to be kept begins so.
const DRAINING: &str = "draining ";

/// The kernel passes no more descriptors at once (`SCM_MAX_FD`).
const SOCKETS_MAX: usize = 250;

/// The JSON of as many sockets is shorter.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A listening socket on its way.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Listening {
    /// As it is configured; port 0 stands for any.
    pub configured: SocketAddr,
    /// As it is bound.
    pub local: SocketAddr,
    /// The descriptor, in the process that sends it.
    #[serde(skip)]
    pub fd: RawFd,
}

/// A lock on its way, with what tells its file from others.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// Device and inode of the file.
    pub file: (u64, u64),
    /// The descriptor, in the process that sends it.
    #[serde(skip)]
    pub fd: RawFd,
}

/// What is said of the descriptors, which come in this order.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    listening: Vec<Listening>,
    lock: Lock,
    hosting: bool,
    /// A version before this one had none.
    #[serde(default)]
    secret: Vec<u8>,
}

/// What a process may begin with.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(Option<SocketAddr>, SocketAddr, TcpListener)>,
    /// The lock of the cache folder, with device and inode of its file.
    pub lock: Option<(OwnedFd, (u64, u64))>,
    /// Whether the process before hosts repositories, which it may still change.
    pub hosting: bool,
    /// What the process before signs with where nothing is configured; empty where none was told.
    pub secret: Zeroizing<Vec<u8>>,
    /// The process before, where there is one.
    pub before: Option<Before>,
}

/// The process before this one.
#[derive(Debug)]
pub struct Before(BufReader<UnixStream>);

/// What is heard of the process before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It takes nobody any more; so many bytes are still to be kept.
    Draining(u64),
    /// It has gone.
    Gone,
}

impl Inherited {
    /// Takes what the process before hands over, or what systemd holds; nothing, where there is neither.
    ///
    /// # Errors
    /// Where something was to come and has not.
    pub fn take() -> io::Result<Self> {
        if std::env::var_os(VARIABLE).is_some() {
            return Self::from_before();
        }
        let mut sockets = Vec::new();
        for fd in sd_notify::listen_fds()? {
            let listener = TcpListener::from(own(fd));
            listener.set_nonblocking(true)?;
            sockets.push((None, listener.local_addr()?, listener));
        }
        Ok(Self { sockets, ..Self::default() })
    }

    fn from_before() -> io::Result<Self> {
        // Ours alone: what standard input is stays as it is.
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        let (line, fds) = receive(&stream)?;
        stream.set_read_timeout(None)?;
        let message: Message = serde_json::from_slice(&line)?;
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| io::Error::other("a socket has not come"));
        let mut sockets = Vec::new();
        for Listening { configured, local, .. } in message.listening {
            sockets.push((Some(configured), local, TcpListener::from(next()?)));
        }
        let lock = Some((next()?, message.lock.file));
        let before = Some(Before(BufReader::new(stream)));
        let (hosting, secret) = (message.hosting, Zeroizing::new(message.secret));
        Ok(Self { sockets, lock, hosting, secret, before })
    }

    /// The socket for a configured address, where one has come.
    pub fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let fits = |exact: bool| {
            self.sockets.iter().position(|(configured, local, _)| {
                if exact { *configured == Some(address) } else { *local == address }
            })
        };
        let at = fits(true).or_else(|| fits(false))?;
        Some(self.sockets.remove(at).2)
    }

    /// Closes the sockets that nobody has taken, and says which they were. Clients would wait there
    /// for ever.
    pub fn close_rest(&mut self) -> Vec<SocketAddr> {
        self.sockets.drain(..).map(|(_, local, _)| local).collect()
    }
}

impl Before {
    /// Says that this process accepts.
    ///
    /// # Errors
    /// Where the process before has gone.
    pub fn serving(&mut self) -> io::Result<()> {
        writeln!(self.0.get_mut(), "{SERVING}")
    }

    /// Waits for what is heard next. Blocks.
    pub fn hear(&mut self) -> Heard {
        let mut line = String::new();
        while matches!(self.0.read_line(&mut line), Ok(read) if read > 0) {
            if let Some(bytes) = line.strip_prefix(DRAINING).and_then(|b| b.trim().parse().ok()) {
                return Heard::Draining(bytes);
            }
            line.clear(); // said by a later version
        }
        Heard::Gone
    }
}

/// The new binary, on its way to serve.
#[derive(Debug)]
pub struct Successor {
    /// Killed where it is dropped before it serves.
    child: Child,
    stream: tokio::io::BufReader<tokio::net::UnixStream>,
}

impl Successor {
    /// Starts a program with the same arguments as this one, and hands the sockets and the lock over.
    /// It is killed where this value is dropped before it serves.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(
        program: &PathBuf,
        listening: Vec<Listening>,
        lock: Lock,
        (hosting, secret): (bool, &[u8]),
    ) -> io::Result<Self> {
        if listening.len() > SOCKETS_MAX {
            return Err(io::Error::other("too many addresses to hand over; restart instead"));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, "stdin")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .kill_on_drop(true)
            .spawn()?;
        let mut fds: Vec<RawFd> = listening.iter().map(|one| one.fd).collect();
        fds.push(lock.fd);
        let mut line =
            serde_json::to_vec(&Message { listening, lock, hosting, secret: secret.to_vec() })?;
        line.push(b'\n');
        // Some kilobytes: they fit the socket's buffer, whatever the other side does.
        let rights = [ControlMessage::ScmRights(&fds)];
        let text = [IoSlice::new(&line)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = match sendmsg::<UnixAddr>(ours.as_raw_fd(), &text, &rights, flags, None) {
            Err(nix::errno::Errno::EPIPE) => line.len(), // it has ended; `serves` says how
            sent => sent?,
        };
        if sent < line.len() {
            return Err(io::Error::other("the sockets could not be handed over"));
        }
        ours.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(ours)?;
        Ok(Self { child, stream: tokio::io::BufReader::new(stream) })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Waits until it accepts. Not cancel safe: given up, it is to be dropped.
    ///
    /// # Errors
    /// One sentence, where it ends instead.
    pub async fn serves(&mut self) -> Result<(), String> {
        let mut line = String::new();
        loop {
            line.clear();
            match self.stream.read_line(&mut line).await {
                Ok(read) if read > 0 && line.trim() == SERVING => return Ok(()),
                Ok(read) if read > 0 => {} // said by a later version
                _ => break,
            }
        }
        match self.child.wait().await {
            Ok(status) => Err(format!("it ended ({status}) before it served")),
            Err(error) => Err(format!("it has gone before it served ({error})")),
        }
    }

    /// Tells it that this process takes nobody any more. What is returned says, by its end, when
    /// this process has gone; it is held until then.
    pub async fn draining(self, bytes: u64) -> tokio::net::UnixStream {
        let mut stream = self.stream.into_inner();
        std::mem::forget(self.child); // it lives on, and nobody waits for it
        // Where it has died meanwhile, nobody is left to tell.
        let _ = stream.write_all(format!("{DRAINING}{bytes}\n").as_bytes()).await;
        stream
    }
}

/// One line, with the descriptors that came along.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut buffer = [0; 4096];
        let mut space = nix::cmsg_space!([RawFd; SOCKETS_MAX + 3]);
        let mut text = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let read = {
            let message =
                recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut text, Some(&mut space), flags)?;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(passed) = control {
                    fds.extend(passed.into_iter().map(own));
                }
            }
            message.bytes
        };
        line.extend_from_slice(&buffer[..read]);
        if read == 0 || line.len() > LINE_BYTES_MAX {
            return Err(io::Error::other("the process before has not handed over its sockets"));
        }
    }
    Ok((line, fds))
}

/// Takes a descriptor that was made for this process.
#[expect(unsafe_code, reason = "descriptors come as numbers from the kernel and from systemd")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for us, or systemd before this process began; either way
    // nobody else here knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The program to be started in place of this one: what stands now where this one was started from.
/// Called as the program begins; the path of one that has been replaced cannot be asked for later.
///
/// # Errors
/// Where the system does not tell.
pub fn own_program() -> io::Result<PathBuf> {
    let called = std::env::args_os().next().map(PathBuf::from);
    match called {
        // As it was called, and not where that leads: a link may lead to the next version.
        Some(path) if path.components().count() > 1 => std::path::absolute(path),
        _ => std::env::current_exe(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_over_a_pair_and_are_found_by_their_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let rights = [listener.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        let text = [IoSlice::new(b"{}\n")];
        let flags = MsgFlags::empty();
        sendmsg::<UnixAddr>(ours.as_raw_fd(), &text, &rights, flags, None).unwrap();
        let (line, fds) = receive(&theirs).unwrap();
        assert_eq!((line.as_slice(), fds.len()), (b"{}\n".as_slice(), 1));
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let passed = TcpListener::from(fds.into_iter().next().unwrap());
        let mut inherited =
            Inherited { sockets: vec![(Some(any), local, passed)], ..Inherited::default() };
        assert!(inherited.listener("127.0.0.1:1".parse().unwrap()).is_none());
        assert_eq!(inherited.listener(any).unwrap().local_addr().unwrap(), local);
        assert!(inherited.close_rest().is_empty());
    }

    #[test]
    fn a_pair_that_is_closed_early_is_no_handover() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(receive(&theirs).is_err());
    }

    #[test]
    fn what_the_process_before_says_is_heard_to_its_end() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut before = Before(BufReader::new(theirs));
        ours.write_all(b"something new\ndraining 42\n").unwrap();
        assert_eq!(before.hear(), Heard::Draining(42));
        drop(ours);
        assert_eq!(before.hear(), Heard::Gone);
    }
}
