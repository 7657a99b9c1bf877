//! An upstream of bare sockets, for what no HTTP library does: to answer before it has read, to die while
//! it reads, to read nothing at all.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Debug, Default)]
struct Script {
    /// So many bytes of a PATCH's body are read.
    reading: usize,
    /// What is said then; nothing closes the connection.
    reply: String,
    /// Whether what is left of the body is read after the answer.
    reads_on: bool,
    stalls: bool,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    patches: usize,
    read: usize,
    /// The last bytes of a connection that was cut.
    cut: Option<Vec<u8>>,
}

/// Answers every POST with an upload, and a PATCH by script.
pub(crate) struct Raw {
    address: std::net::SocketAddr,
    script: Arc<Mutex<Script>>,
    seen: watch::Sender<Seen>,
}

impl Raw {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let script = Arc::new(Mutex::new(Script::default()));
        let seen = watch::Sender::new(Seen::default());
        let (s, e) = (Arc::clone(&script), seen.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(talk(socket, Arc::clone(&s), e.clone()));
            }
        });
        Self { address, script, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Reads so many bytes of a PATCH's body, then says this, or nothing, and closes; `reads_on`
    /// reads the rest before.
    pub(crate) fn on_patch(&self, reading: usize, reply: &str, reads_on: bool) {
        *self.script.lock() = Script { reading, reply: reply.to_owned(), reads_on, stalls: false };
    }

    /// Reads nothing of a PATCH's body.
    pub(crate) fn stall(&self) {
        self.script.lock().stalls = true;
    }

    pub(crate) fn patches(&self) -> usize {
        self.seen.borrow().patches
    }

    pub(crate) async fn until_read(&self, bytes: usize) {
        let mut seen = self.seen.subscribe();
        let read = seen.wait_for(|seen| seen.read >= bytes);
        super::soon("the upstream to read", read).await.expect("the sender is part of self");
    }

    /// Waits until a connection was cut, and returns its last bytes.
    pub(crate) async fn until_cut(&self) -> Vec<u8> {
        let mut seen = self.seen.subscribe();
        let cut = seen.wait_for(|seen| seen.cut.is_some()).await;
        cut.expect("the sender is part of self").cut.clone().unwrap_or_default()
    }
}

async fn talk(mut socket: TcpStream, script: Arc<Mutex<Script>>, seen: watch::Sender<Seen>) {
    let mut held = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let mut buffer = [0; 4096];
            match socket.read(&mut buffer).await {
                Ok(read) if read > 0 => held.extend_from_slice(&buffer[..read]),
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&held[..end]).into_owned();
        held.drain(..end);
        if head.starts_with("PATCH") {
            let script = script.lock().clone();
            seen.send_modify(|seen| seen.patches += 1);
            patched(socket, script, held, seen).await;
            return;
        }
        let answer = if head.starts_with("POST") {
            "HTTP/1.1 202 Accepted\r\nLocation: /v2/a/b/blobs/uploads/1\r\nRange: 0-0\r\nContent-Length: 0\r\n\r\n"
        } else {
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        };
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn patched(mut socket: TcpStream, script: Script, held: Vec<u8>, seen: watch::Sender<Seen>) {
    if script.stalls {
        std::future::pending::<()>().await;
    }
    let (mut read, mut tail) = (held.len(), held);
    let mut buffer = vec![0; 64 * 1024];
    while read < script.reading {
        match socket.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                read += count;
                tail.extend_from_slice(&buffer[..count]);
                let keep = tail.len().saturating_sub(16);
                tail.drain(..keep);
                seen.send_modify(|seen| seen.read = read);
            }
            _ => {
                seen.send_modify(|seen| seen.cut = Some(tail));
                return;
            }
        }
    }
    if socket.write_all(script.reply.as_bytes()).await.is_ok() && script.reads_on {
        while socket.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    }
}
