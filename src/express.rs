//! The short way: a request that a ready answer fits, not understood again; on plain HTTP/1 answered by
//! one system call.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, StatusCode, header};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;

use crate::account::Line;
use crate::cache::Cache;
use crate::hot::{self, Key, Prepared};
use crate::metrics::Metrics;
use crate::respond::{self, Answer, Sent};
use crate::sendfile::{self, Socket};
use crate::traces::Span;

/// A request that may be answered the short way.
#[derive(Debug)]
pub struct Express {
    /// Where the socket is ours to write to; through TLS and HTTP/2 it is not.
    socket: Option<RawFd>,
    head_only: bool,
}

impl Express {
    /// Whether nothing but path, query and host decide on the answer. A request with a body is left
    /// to Pingora, which drains it (CVE-2025-4366).
    pub fn of(session: &mut ServerSession) -> Option<Self> {
        let socket = respond::plain_socket(session);
        let head = session.req_header();
        let head_only = head.method == Method::HEAD;
        let plain = (head_only || head.method == Method::GET)
            && [
                header::RANGE,
                header::IF_NONE_MATCH,
                header::IF_RANGE,
                header::AUTHORIZATION,
                header::EXPECT,
            ]
            .iter()
            .all(|name| !head.headers.contains_key(name));
        (plain && session.is_body_empty()).then_some(Self { socket, head_only })
    }

    /// Sends a ready answer, and counts it.
    pub async fn send(
        &self,
        session: &mut ServerSession,
        prepared: &Prepared,
        received: Instant,
        patience: Duration,
    ) -> Sent {
        let sent = if let Some(socket) = self.socket {
            self.send_plain(socket, session, prepared, patience).await
        } else {
            let method = if self.head_only { Method::HEAD } else { Method::GET };
            // On the heap: a connection that waits for its next request holds none of it.
            Box::pin(respond::send(session, &method, answer(prepared), patience)).await
        };
        prepared.served(self.head_only, sent.bytes, received.elapsed());
        sent
    }

    async fn send_plain(
        &self,
        socket: RawFd,
        session: &ServerSession,
        prepared: &Prepared,
        patience: Duration,
    ) -> Sent {
        thread_local!(static WIRE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        let keep_alive = session.as_http1().is_some_and(HttpSession::will_keepalive);
        let rest = WIRE.with_borrow_mut(|wire| {
            wire.clear();
            prepared.write(wire, self.head_only, keep_alive);
            sendfile::send_now(socket, wire).map(|sent| wire[sent..].to_vec())
        });
        let outcome = match rest {
            Ok(rest) if rest.is_empty() => Ok(()),
            Ok(rest) => Socket::of(socket).send_bytes(&rest, patience).await,
            Err(error) => Err(error),
        };
        let bytes = if self.head_only { 0 } else { prepared.length() };
        Sent { bytes, broken: outcome.err().map(|e| e.to_string()) }
    }
}

/// The answer, for where Pingora writes it.
fn answer(prepared: &Prepared) -> Answer {
    Answer {
        status: StatusCode::OK,
        headers: prepared.headers.clone(),
        body: respond::Body::Bytes(prepared.body.clone()),
        cache: Cache::Hit,
    }
}

/// What is told of a request that a ready answer fitted.
pub fn line<'a>(
    session: &'a ServerSession,
    prepared: &'a Prepared,
    received: Instant,
    sent: &'a Sent,
    trace: Option<&'a Span>,
) -> Line<'a> {
    let head = session.req_header();
    let agent = head.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
    Line {
        client: session.client_addr().and_then(|a| a.as_inet()),
        user: None, // what is guarded has no ready answer
        method: &head.method,
        path: head.uri.path(),
        upstream: &prepared.upstream,
        repository: &prepared.repository,
        kind: prepared.kind,
        status: StatusCode::OK.as_u16(),
        cache: Cache::Hit.as_str(),
        received,
        upstream_took: None,
        user_agent: agent.unwrap_or_default(),
        sent,
        trace,
    }
}

/// What decides on a ready answer.
pub fn key(session: &ServerSession, mirror: u64) -> Key<'_> {
    let head = session.req_header();
    // As the request's own host is read; HTTP/2 names it in the target.
    let named = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = named.or_else(|| head.uri.authority().map(Authority::as_str)).unwrap_or_default();
    Key { mirror, host: host.as_bytes(), target: head.raw_path() }
}

/// Keeps an answer ready, if it is of the kind that does not change: content by digest, small, a hit.
pub fn remember(key: &Key<'_>, answer: &Answer, about: About<'_>, now: Instant) {
    let fits = answer.status == StatusCode::OK && answer.cache == Cache::Hit;
    let Some(body) = whole(answer).filter(|b| fits && b.len() <= hot::BODY_BYTES_MAX) else {
        return;
    };
    let counted = ["GET", "HEAD"]
        .map(|m| about.metrics.counted(about.upstream, about.kind, m, 200, Cache::Hit.as_str()));
    let prepared = Prepared::new(
        &answer.headers,
        body,
        counted,
        about.upstream.into(),
        about.repository.into(),
        about.kind,
    );
    hot::put(key, prepared, now);
}

/// What is said of a ready answer in log and metrics.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Where it is counted.
    pub metrics: &'a Metrics,
    /// The upstream's name.
    pub upstream: &'a str,
    /// The repository.
    pub repository: &'a str,
    /// `manifest` or `blob`.
    pub kind: &'static str,
}

fn whole(answer: &Answer) -> Option<Bytes> {
    match &answer.body {
        respond::Body::Bytes(bytes) => Some(bytes.clone()),
        respond::Body::Parts(respond::Content::Bytes(bytes), parts) => {
            let one = parts.len() == 1
                && parts[0].head.is_empty()
                && parts[0].span.len() == bytes.len() as u64;
            one.then(|| bytes.clone())
        }
        _ => None,
    }
}
