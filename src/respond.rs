//! From an answer to bytes on the wire. Decides nothing but how to send: by sendfile on plain
//! HTTP/1, by copying through TLS and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use pingora::ErrorType;
use pingora::apps::{HttpPersistentSettings, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::stream::Stream;
use std::os::fd::AsRawFd;

use crate::blocks::Large;
use crate::cache::Cache;
use crate::error::Error;
use crate::fill::Follower;
use crate::range::Span;
use crate::relay::Passing;
use crate::sendfile::Socket;

mod reader;

use reader::{Reader, Stretch};

/// An answer, ready to be sent.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers, but for those that the body decides.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Body,
    /// What became of the request in the cache.
    pub cache: Cache,
}

/// A body.
#[derive(Debug)]
pub enum Body {
    /// None; a length may be told all the same, for `HEAD`.
    Empty(Option<u64>),
    /// Bytes in memory.
    Bytes(Bytes),
    /// Parts of content.
    Parts(Content, Vec<Part>),
    /// All of a fill whose size is not known before its end.
    Unsized(Content),
}

/// Where the parts come from.
#[derive(Debug)]
pub enum Content {
    /// An open file, complete.
    Held(Arc<Large>),
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file that is still being filled.
    Fill(Box<Follower>),
    /// Bytes passed on without being kept.
    Relay(Box<Passing>),
}

impl Content {
    /// Whether what comes next may have to be waited for.
    fn is_growing(&self) -> bool {
        matches!(self, Self::Fill(_) | Self::Relay(_))
    }
}

/// A part of content, with what stands before it in a multipart body.
#[derive(Debug)]
pub struct Part {
    /// Boundary and part headers; empty where there is only one part.
    pub head: Bytes,
    /// Which bytes.
    pub span: Span,
}

impl Body {
    /// The length, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty(told) => Some(told.unwrap_or(0)),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Parts(_, parts) => {
                Some(parts.iter().map(|p| p.head.len() as u64 + p.span.len()).sum())
            }
            Self::Unsized(_) => None,
        }
    }
}

impl Answer {
    /// An answer with a body.
    pub fn new(status: StatusCode, body: Body, cache: Cache) -> Self {
        Self { status, headers: Vec::with_capacity(12), body, cache }
    }

    /// The specification's error document.
    pub fn error(error: &Error) -> Self {
        let (code, status) = error.kind().answer();
        let document = serde_json::json!({"errors": [{"code": code, "message": error.message(), "detail": null}]});
        let mut answer = Self::new(status, Body::Bytes(document.to_string().into()), Cache::None);
        answer.header(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            answer.header(http::header::ALLOW, HeaderValue::from_static(error.allowed()));
        }
        if let Some(wait) = error.wait().or_else(|| error.kind().retry_after()) {
            answer.header(http::header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        answer
    }

    /// Adds a header.
    pub fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.push((name, value));
    }

    /// Adds a header whose value was made here; one that cannot be a value is left out.
    pub fn text(&mut self, name: HeaderName, value: impl Into<String>) {
        if let Ok(value) = HeaderValue::try_from(value.into()) {
            self.header(name, value);
        }
    }
}

/// Reads a request's body of at most `max` bytes; `None` where it is longer, breaks off, or does
/// not come in time.
pub async fn read_body(
    session: &mut ServerSession,
    max: usize,
    within: Duration,
) -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let mut body = zeroize::Zeroizing::new(Vec::new());
    let read = async {
        while let Some(piece) = session.read_request_body().await.ok()? {
            if body.len() + piece.len() > max {
                return None;
            }
            body.extend_from_slice(&piece);
        }
        Some(())
    };
    tokio::time::timeout(within, read).await.ok()??;
    Some(body)
}

/// What was sent.
#[derive(Debug, Default)]
pub struct Sent {
    /// Body bytes.
    pub bytes: u64,
    /// Why not all of it; the connection cannot be used again then.
    pub broken: Option<String>,
}

/// Sends an answer. A body that cannot be sent whole leaves `broken`, and the caller drops the
/// session: the client sees a short body, never a clean end.
pub async fn send(
    session: &mut ServerSession,
    method: &Method,
    answer: Answer,
    patience: Duration,
) -> Sent {
    let mut sent = Sent::default();
    if let Err(broken) = try_send(session, method, answer, patience, &mut sent.bytes).await {
        sent.broken = Some(broken);
    }
    sent
}

async fn try_send(
    session: &mut ServerSession,
    method: &Method,
    answer: Answer,
    patience: Duration,
    sent: &mut u64,
) -> Result<(), String> {
    session.set_write_timeout(Some(patience));
    let answer = without_chunks(session, answer).await?;
    let head = head(&answer)?;
    if *method == Method::HEAD || matches!(answer.body, Body::Empty(_)) {
        session.write_response_header(head).await.map_err(text)?;
        return session.finish_body().await.map_err(text);
    }
    match answer.body {
        Body::Empty(_) => Ok(()),
        Body::Bytes(bytes) => {
            *sent = bytes.len() as u64;
            session.write_response_header(head).await.map_err(text)?;
            session.write_response_body(bytes, true).await.map_err(text)
        }
        Body::Parts(content, parts) => match plain_socket(session)
            .filter(|_| is_one_file(&content, &parts))
        {
            Some(raw) => send_by_kernel(session, raw, head, content, &parts, patience, sent).await,
            None => copy_parts(session, head, content, parts, patience, sent).await,
        },
        Body::Unsized(content) => copy_unsized(session, head, content, sent).await,
    }
}

/// Gives the connection back for the next request. Where the answer was not sent whole, dropping the
/// session leaves the client with a short body, never a clean end.
pub async fn finish(session: ServerSession, sent: &Sent) -> Option<ReusedHttpStream> {
    if sent.broken.is_some() {
        return None;
    }
    let mut keep = HttpPersistentSettings::for_session(&session);
    keep.set_user_context(Box::new(Reused));
    let stream = session.finish().await.ok().flatten()?;
    Some(ReusedHttpStream::from_reusable_stream(stream, keep))
}

/// Marks a connection that has served a request before.
struct Reused;

/// Whether a request says two things at once about its length (RFC 9112, 6.1: the way to smuggle a
/// second one past whoever believes the other), or on HTTP/1.1 not for whom it is.
pub fn is_ambiguous(session: &ServerSession) -> bool {
    let Some(h1) = session.as_http1() else { return false };
    let head = session.req_header();
    if head.version == Version::HTTP_11 && !head.headers.contains_key(http::header::HOST) {
        return true;
    }
    // Pingora has taken the length away by now; only the bytes as they came still show it.
    head.headers.contains_key(http::header::TRANSFER_ENCODING)
        && h1
            .get_headers_raw_bytes()
            .to_ascii_lowercase()
            .windows(16)
            .any(|w| w == b"\ncontent-length:")
}

/// Refuses a head that is beyond use, and ends the connection. Cancel safe: the client may be gone.
pub async fn malformed(session: &mut ServerSession) {
    const BODY: &[u8] =
        br#"{"errors":[{"code":"UNSUPPORTED","message":"malformed request","detail":null}]}"#;
    let mut head = ServerSession::generate_error(400);
    // Without a type a browser would guess one.
    let json = HeaderValue::from_static("application/json");
    let typed = head.insert_header(http::header::CONTENT_TYPE, json);
    if typed.and_then(|()| head.set_content_length(BODY.len())).is_ok() {
        let _ = session.write_error_response(head, Bytes::from_static(BODY)).await; // as above
    }
}

/// HTTP/1.0 knows no chunks: its client waits until the size is known.
async fn without_chunks(session: &ServerSession, mut answer: Answer) -> Result<Answer, String> {
    if session.req_header().version == Version::HTTP_10
        && let Body::Unsized(Content::Fill(follower)) = &mut answer.body
    {
        let end = follower.end().await.map_err(text)?.size.unwrap_or(0);
        let Body::Unsized(content) = std::mem::replace(&mut answer.body, Body::Empty(None)) else {
            return Ok(answer);
        };
        let part = Part { head: Bytes::new(), span: Span { start: 0, end } };
        answer.body = Body::Parts(content, vec![part]);
    }
    Ok(answer)
}

fn head(answer: &Answer) -> Result<Box<ResponseHeader>, String> {
    let mut head = ResponseHeader::build_no_case(answer.status, Some(answer.headers.len() + 3))
        .map_err(text)?;
    for (name, value) in &answer.headers {
        head.append_header(name, value).map_err(text)?;
    }
    match answer.body.length() {
        _ if matches!(answer.status, StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT) => {}
        Some(length) => head.insert_header(http::header::CONTENT_LENGTH, length).map_err(text)?,
        None => head.insert_header(http::header::TRANSFER_ENCODING, "chunked").map_err(text)?,
    }
    Ok(Box::new(head))
}

/// The socket of a plain HTTP/1 session; TLS has its bytes encrypted and HTTP/2 framed, so those
/// must pass through us.
pub fn plain_socket(session: &ServerSession) -> Option<std::os::fd::RawFd> {
    let h1 = session.as_http1()?;
    if h1.digest().ssl_digest.is_some() {
        return None;
    }
    let stream = session.stream()?.as_any().downcast_ref::<Stream>()?;
    Some(stream.as_raw_fd())
}

fn is_one_file(content: &Content, parts: &[Part]) -> bool {
    !matches!(content, Content::Bytes(_)) && parts.len() == 1 && parts[0].head.is_empty()
}

/// Lets the kernel send. Pingora is told that the request was a `HEAD`: so it writes the head out,
/// expects no body of its own, and keeps its checks at the end of the request.
async fn send_by_kernel(
    session: &mut ServerSession,
    raw: std::os::fd::RawFd,
    head: Box<ResponseHeader>,
    content: Content,
    parts: &[Part],
    patience: Duration,
    sent: &mut u64,
) -> Result<(), String> {
    session.req_header_mut().set_method(Method::HEAD);
    session.write_response_header(head).await.map_err(text)?;
    let mut socket = Socket::of(raw);
    let span = parts[0].span;
    let mut reader = Reader::new(content, span);
    while let Some(stretch) = reader.next().await? {
        *sent += match stretch {
            Stretch::File(file, from, to) => {
                socket.send(&file, from, to, reader.is_fresh(), patience).await.map_err(text)?;
                to - from
            }
            Stretch::Bytes(bytes) => {
                socket.send_bytes(&bytes, patience).await.map_err(text)?;
                bytes.len() as u64
            }
        };
    }
    if reader.is_done() { Ok(()) } else { Err("the content ended early".to_owned()) }
}

async fn copy_parts(
    session: &mut ServerSession,
    head: Box<ResponseHeader>,
    content: Content,
    parts: Vec<Part>,
    patience: Duration,
    sent: &mut u64,
) -> Result<(), String> {
    session.write_response_header(head).await.map_err(text)?;
    let is_growing = content.is_growing();
    let mut reader = Reader::new(content, Span { start: 0, end: 0 });
    let last = parts.len().saturating_sub(1);
    for (index, part) in parts.into_iter().enumerate() {
        if !part.head.is_empty() {
            *sent += part.head.len() as u64;
            let end = index == last && part.span.is_empty();
            session.write_response_body(part.head, end).await.map_err(text)?;
        }
        reader.seek(part.span);
        loop {
            if is_growing {
                flush(session, patience).await?;
            }
            let Some(bytes) = reader.bytes().await? else { break };
            *sent += bytes.len() as u64;
            let end = index == last && reader.is_done();
            session.write_response_body(bytes, end).await.map_err(text)?;
        }
        if !reader.is_done() {
            return Err("the content ended early".to_owned());
        }
    }
    session.finish_body().await.map_err(text)
}

async fn copy_unsized(
    session: &mut ServerSession,
    head: Box<ResponseHeader>,
    content: Content,
    sent: &mut u64,
) -> Result<(), String> {
    session.write_response_header(head).await.map_err(text)?;
    let mut reader = Reader::new(content, Span { start: 0, end: u64::MAX });
    while let Some(bytes) = reader.bytes().await? {
        *sent += bytes.len() as u64;
        session.write_response_body(bytes, false).await.map_err(text)?; // each chunk goes at once
    }
    session.write_response_body(Bytes::new(), true).await.map_err(text)
}

/// Sends what Pingora has gathered on HTTP/1, before a wait for more. It does so by itself only at the
/// end, and before it passes an error on: this error is ours, and changes nothing else.
async fn flush(session: &mut ServerSession, patience: Duration) -> Result<(), String> {
    const OURS: ErrorType = ErrorType::Custom("flush");
    if session.as_http1().is_none() {
        return Ok(()); // HTTP/2's frames go by themselves
    }
    let tasks = vec![HttpTask::Body(None, false), HttpTask::Failed(pingora::Error::new(OURS))];
    match tokio::time::timeout(patience, session.response_duplex_vec(tasks)).await {
        Ok(Err(error)) if *error.etype() != OURS => Err(text(error)),
        Ok(_) => Ok(()),
        Err(_) => Err("the client takes nothing".to_owned()),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
