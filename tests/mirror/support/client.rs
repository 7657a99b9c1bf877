//! Clients: one that asks and reads, one that can stop reading, one that sends any bytes at all.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AsHeaderName, HeaderMap, HeaderName};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::fault::value;
use super::image::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use super::soon;

/// A request that is yet to be sent. Each goes over a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    address: SocketAddr,
    method: Method,
    target: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Ask {
    /// Accepts every media type of manifest, as real clients do, until told otherwise.
    pub(crate) fn new(address: SocketAddr, method: Method, target: &str) -> Self {
        let accept = [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"].join(", ");
        let target = target.parse().unwrap_or_else(|error| panic!("{target}: {error}"));
        Self { address, method, target, headers: HeaderMap::new(), body: Bytes::new() }
            .header("accept", &accept)
            .header("host", &address.to_string())
    }

    /// Replaces a header.
    pub(crate) fn header(mut self, name: &'static str, text: &str) -> Self {
        self.headers.insert(HeaderName::from_static(name), value(text));
        self
    }

    /// Adds one more line of a header.
    pub(crate) fn line(mut self, name: &'static str, text: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), value(text));
        self
    }

    /// Sends these bytes along.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the request and reads the head of the answer.
    pub(crate) async fn open(self) -> Reading {
        let what = self.target.to_string();
        self.try_open().await.unwrap_or_else(|error| panic!("no answer to {what}: {error}"))
    }

    /// The same where the server may die meanwhile.
    async fn try_open(self) -> Result<Reading, String> {
        let what = format!("the head of {} {}", self.method, self.target);
        let head = async {
            let socket = TcpStream::connect(self.address).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(socket)).await.map_err(|e| e.to_string())?;
            let connection = tokio::spawn(async move {
                // A cut connection shows in the body.
                let _ended = connection.await;
            });
            let mut request = Request::new(Full::new(self.body.clone()));
            *request.method_mut() = self.method.clone();
            *request.uri_mut() = self.target.clone();
            *request.headers_mut() = self.headers.clone();
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            Ok::<_, String>((response, connection))
        };
        let (response, connection) = soon(&what, head).await?;
        let (head, body) = response.into_parts();
        Ok(Reading {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            connection,
            cut: false,
        })
    }

    /// All of the answer, or why it did not come to its end.
    pub(crate) async fn try_answer(self) -> Result<Answer, String> {
        let answer = self.try_open().await?.rest().await;
        if answer.whole { Ok(answer) } else { Err("the body was cut".to_owned()) }
    }

    /// The status of the answer; `None` where the server dies meanwhile.
    pub(crate) async fn status(self) -> Option<u16> {
        self.try_open().await.ok().map(|reading| reading.status)
    }

    /// Sends the request and reads what comes, from a mirror that may be killed meanwhile.
    pub(crate) async fn attempt(self) {
        let Ok(mut socket) = TcpStream::connect(self.address).await else { return };
        let request =
            format!("GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", self.target);
        let mut sink = vec![0; 64 * 1024];
        if socket.write_all(request.as_bytes()).await.is_ok() {
            while socket.read(&mut sink).await.is_ok_and(|read| read > 0) {}
        }
    }

    /// Sends the request and reads all of the answer.
    pub(crate) async fn answer(self) -> Answer {
        let what = format!("all of {} {}", self.method, self.target);
        soon(&what, self.open().await.rest()).await
    }
}

/// An answer that is being read. Dropping it closes the connection.
pub(crate) struct Reading {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    connection: JoinHandle<()>,
    cut: bool,
}

impl Reading {
    /// The next piece of the body; None at its end, good or bad.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let Ok(frame) = soon("the next piece of a body", self.body.frame()).await? else {
                self.cut = true;
                return None;
            };
            if let Ok(data) = frame.into_data() {
                return Some(data);
            }
        }
    }

    /// Reads until at least so many bytes came.
    pub(crate) async fn at_least(&mut self, bytes: u64) -> Bytes {
        let mut read = BytesMut::new();
        while (read.len() as u64) < bytes {
            let Some(piece) = self.next().await else {
                panic!("the body ended after {} bytes", read.len());
            };
            read.extend_from_slice(&piece);
        }
        read.freeze()
    }

    pub(crate) async fn rest(mut self) -> Answer {
        let mut read = BytesMut::new();
        while let Some(piece) = self.next().await {
            read.extend_from_slice(&piece);
        }
        let headers = std::mem::take(&mut self.headers);
        Answer { status: self.status, headers, body: read.freeze(), whole: !self.cut }
    }

    /// Reads all, keeps nothing, and says whether it was a whole body of exactly these bytes.
    pub(crate) async fn brings(mut self, bytes: &Bytes) -> bool {
        let mut rest = bytes.clone();
        while let Some(piece) = self.next().await {
            if !rest.starts_with(&piece) {
                return false;
            }
            let _same = rest.split_to(piece.len());
        }
        rest.is_empty() && !self.cut
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A connection that stays, for one request after the other.
pub(crate) struct Lasting {
    address: SocketAddr,
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Lasting {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("the mirror takes connections");
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.expect("HTTP");
        tokio::spawn(connection);
        Self { address, sender }
    }

    /// Whether the server has said that it closes the connection, or has done so.
    pub(crate) async fn is_over(&mut self) -> bool {
        self.sender.ready().await.is_err()
    }

    /// Status and body; an error where the connection broke before their end.
    pub(crate) async fn get(&mut self, path: &str) -> Result<(u16, Bytes), String> {
        let request = Request::get(path)
            .header("host", self.address.to_string())
            .header("accept", [OCI_MANIFEST, OCI_INDEX, "*/*"].join(", "))
            .body(Full::default())
            .expect("a request");
        let answer = async {
            self.sender.ready().await.map_err(|e| e.to_string())?;
            let answer = self.sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.map_err(|e| e.to_string())?;
            Ok((status, body.to_bytes()))
        };
        soon(path, answer).await
    }
}

/// A head and what came of the body.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether the body came to its end by the rules of HTTP.
    pub(crate) whole: bool,
}

impl Answer {
    /// A header's value, empty if it is absent.
    pub(crate) fn header(&self, name: impl AsHeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn cache(&self) -> &str {
        self.header("cache-status")
    }

    /// Whether a client would take this for these bytes.
    pub(crate) fn is(&self, bytes: &Bytes) -> bool {
        self.status == 200 && self.whole && self.body == *bytes
    }

    /// Whether a client would take this for other content than `bytes`. The gravest failure there
    /// is.
    pub(crate) fn deceives(&self, bytes: &Bytes) -> bool {
        let wrong = match self.status {
            200 => self.body != *bytes,
            206 => true,
            _ => false,
        };
        self.whole && wrong
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?} {:?}", self.status, self.body))
    }

    /// Checks that this is the specification's error, and returns its code and message.
    pub(crate) fn error(&self) -> (String, String) {
        check_error(self.header("content-type"), &self.body)
    }

    /// Checks that this is an error of this status and code.
    pub(crate) fn assert_error(&self, status: u16, code: &str) {
        let (given, message) = self.error();
        assert_eq!((self.status, given.as_str()), (status, code), "{message}");
    }
}

fn check_error(content_type: &str, body: &Bytes) -> (String, String) {
    let kind = content_type.split(';').next();
    assert_eq!(kind, Some("application/json"), "media type of an error: {body:?}");
    let body: Value = serde_json::from_slice(body).expect("an error is JSON");
    let first = &body["errors"][0];
    let text = |key: &str| first[key].as_str().unwrap_or_else(|| panic!("no {key} in {body}"));
    assert!(!text("message").is_empty(), "an error says something: {body}");
    (text("code").to_owned(), text("message").to_owned())
}

/// An answer to bytes that no client library would send.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Bytes,
}

impl RawAnswer {
    pub(crate) fn error(&self) -> (String, String) {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let kind = lines
            .filter(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            .map(|(_, kind)| kind)
            .next();
        check_error(kind.unwrap_or_default(), &self.body)
    }
}

/// Sends the bytes, reads until the server closes the connection, and takes what came for one
/// answer with a length. None: it closed without a word.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> Option<RawAnswer> {
    let mut socket = TcpStream::connect(address).await.expect("the mirror takes connections");
    let mut read = Vec::new();
    let talk = async {
        // The server may answer and close before it has read everything.
        let _sent = socket.write_all(bytes).await;
        let _ended = socket.read_to_end(&mut read).await;
    };
    soon("the answer to raw bytes", talk).await;
    let split = read.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&read[..split]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(RawAnswer { status, head, body: Bytes::copy_from_slice(&read[split + 4..]) })
}

/// A request with this line and `Connection: close`.
pub(crate) async fn raw_request(address: SocketAddr, line: &str) -> RawAnswer {
    let request = format!("{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answer = raw(address, request.as_bytes()).await;
    answer.unwrap_or_else(|| panic!("no answer to {line:?}"))
}
