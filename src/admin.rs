//! The admin address: health, metrics and orders, on a port of its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use serde::Deserialize;

use crate::cache::Cache;
use crate::config::units::Span;
use crate::error::{Error, Kind, Result};
use crate::receive::Incoming;
use crate::respond::{self, Answer, Body};
use crate::server::Mirror;

/// An order is a few words.
const ORDER_BYTES_MAX: usize = 64 * 1024;

/// The order to collect garbage.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Collect {
    /// Whether to tell only what would go.
    #[serde(default)]
    dry_run: bool,
    /// How long nobody must have had a use for it, instead of what is configured.
    #[serde(default)]
    grace: Option<Span>,
}

/// Answers on the admin address.
#[derive(Debug)]
pub struct Admin {
    mirror: Arc<Mirror>,
}

impl Admin {
    /// For one mirror.
    pub fn new(mirror: Arc<Mirror>) -> Self {
        Self { mirror }
    }

    async fn answer(&self, method: &Method, path: &str, stopping: bool) -> Answer {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and POST\n");
        }
        match path {
            // Alive means that this line is reached.
            "/healthz" | "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(stopping).await,
            "/metrics" => self.metrics(),
            "/" => text(StatusCode::OK, "Pierhead's admin address: /healthz /readyz /metrics\n"),
            _ => text(StatusCode::NOT_FOUND, "not here: /healthz, /readyz and /metrics are\n"),
        }
    }

    /// What changes something. A web page that somebody happens to look at can make a browser post
    /// here, but not as JSON.
    async fn order(&self, path: &str, body: &mut Incoming<'_>) -> Answer {
        let media_type = body.header(&header::CONTENT_TYPE);
        if media_type.is_none_or(|t| t.split(';').next() != Some("application/json")) {
            let body = "orders come as application/json\n";
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, body);
        }
        let done = match (path, body.whole(ORDER_BYTES_MAX).await) {
            ("/gc", Ok(order)) => self.collect(&order).await,
            (_, Ok(_)) => return text(StatusCode::NOT_FOUND, "not here: POST /gc is\n"),
            (_, Err(error)) => Err(error),
        };
        done.unwrap_or_else(|error| Answer::error(&error))
    }

    async fn collect(&self, order: &[u8]) -> Result<Answer> {
        let order: Collect = serde_json::from_slice(order).map_err(|e| {
            Error::new(Kind::BadRequest, format!("not an order to collect garbage: {e}"))
        })?;
        let grace = order.grace.unwrap_or(self.mirror.hosting.hosted.settings().gc_grace);
        let report = self.mirror.hosting.collect(grace.get(), order.dry_run).await?;
        let report =
            serde_json::to_vec(&report).map_err(|e| Error::internal("cannot write a report", e))?;
        let mut answer = Answer::new(StatusCode::OK, Body::Bytes(report.into()), Cache::None);
        answer.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(answer)
    }

    /// Ready means: not stopping, and the cache folder can be written to. The upstreams do not
    /// count: held content is served without them.
    async fn ready(&self, stopping: bool) -> Answer {
        if stopping {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        match self.mirror.store.blocking(|s| s.disk().probe()).await {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(e) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                &format!("the cache folder cannot be written to: {e}\n"),
            ),
        }
    }

    fn metrics(&self) -> Answer {
        let bytes = i64::try_from(self.mirror.store.memory_bytes()).unwrap_or(i64::MAX);
        self.mirror.metrics.memory_bytes.set(bytes);
        let mut answer = text(StatusCode::OK, &self.mirror.metrics.render());
        answer.headers.clear();
        answer.header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        answer
    }
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer =
        Answer::new(status, Body::Bytes(Bytes::copy_from_slice(body.as_bytes())), Cache::None);
    answer.header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        stop: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let wait = Duration::from_secs(30);
        match tokio::time::timeout(wait, session.read_request()).await {
            Ok(Ok(true)) => {}
            _ => return None,
        }
        let stopping = *stop.borrow();
        if stopping {
            session.set_keepalive(None);
        }
        let method = session.req_header().method.clone();
        let path = session.req_header().uri.path().to_owned();
        let answer = if method == Method::POST {
            self.order(&path, &mut Incoming::new(&mut session, wait)).await
        } else {
            self.answer(&method, &path, stopping).await
        };
        let sent = respond::send(&mut session, &method, answer, wait).await;
        if sent.broken.is_some() {
            return None;
        }
        let keep = HttpPersistentSettings::for_session(&session);
        session
            .finish()
            .await
            .ok()
            .flatten()
            .map(|s| ReusedHttpStream::from_reusable_stream(s, keep))
    }
}
