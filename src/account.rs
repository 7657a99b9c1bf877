//! The one place where a request's end is told: one log line, one call of the metrics, one span.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Method;

use crate::metrics::{Metrics, Served};
use crate::respond::Sent;
use crate::telemetry::ACCESS;
use crate::traces::Span;

mod traced;

/// What is told of a request.
#[derive(Debug)]
pub struct Line<'a> {
    /// Where the client is.
    pub client: Option<&'a SocketAddr>,
    /// The user by his name here; none for whoever has not logged in, or has at an upstream alone.
    pub user: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// The path as it came.
    pub path: &'a str,
    /// The upstream's name, empty where none was concerned.
    pub upstream: &'a str,
    /// The repository, likewise.
    pub repository: &'a str,
    /// `manifest`, `blob`, `upload`, `tags`, `referrers`, `catalog`, `token`, `ping` or `none`.
    pub kind: &'static str,
    /// The status that was sent.
    pub status: u16,
    /// The cache word.
    pub cache: &'static str,
    /// When the request was read.
    pub received: Instant,
    /// How long the upstream took to let the answer begin, where it was asked.
    pub upstream_took: Option<Duration>,
    /// The client's name of itself.
    pub user_agent: &'a str,
    /// What was sent.
    pub sent: &'a Sent,
    /// Its span, where it is traced.
    pub trace: Option<&'a Span>,
}

impl Line<'_> {
    /// Counts the request.
    pub fn count(&self, metrics: &Metrics) {
        metrics.served(&Served {
            upstream: self.upstream,
            kind: self.kind,
            method: method_word(self.method),
            status: self.status,
            cache: self.cache,
            bytes: self.sent.bytes,
            took: self.received.elapsed(),
        });
    }

    /// Writes the request into the access log.
    pub fn log(&self) {
        let trace_id = self.trace.map(Span::trace_id);
        tracing::info!(
            target: ACCESS,
            client = self.client.map(tracing::field::display),
            user = self.user.unwrap_or("-"),
            method = self.method.as_str(),
            path = self.path,
            upstream = self.upstream,
            repository = self.repository,
            kind = self.kind,
            status = self.status,
            cache = self.cache,
            bytes = self.sent.bytes,
            duration_ms = milliseconds(self.received.elapsed()),
            upstream_ms = self.upstream_took.map(milliseconds),
            user_agent = self.user_agent,
            broken = self.sent.broken.as_deref(),
            trace_id = trace_id.as_deref(),
        );
    }
}

/// Milliseconds to the microsecond.
pub fn milliseconds(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// The methods by name; others are one, so that no client makes new series.
fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}
