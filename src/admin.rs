//! The admin address: health and metrics, on a port of its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use crate::cache::Cache;
use crate::respond::{self, Answer, Body};
use crate::server::Mirror;

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
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
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

    /// Ready means: not stopping. A disk that takes no more is said and does not count, since held
    /// content is served and the rest is passed on; neither do the upstreams.
    async fn ready(&self, stopping: bool) -> Answer {
        if stopping {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        match self.mirror.store.blocking(|s| s.disk().probe()).await {
            Ok(()) if self.mirror.store.keeper().is_in_trouble() => text(
                StatusCode::OK,
                "ready; the disk took no more when last asked: content is passed on without being kept\n",
            ),
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(e) => text(
                StatusCode::OK,
                &format!(
                    "ready; the cache folder cannot be written to: {e}; content is passed on without being kept\n"
                ),
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
        let answer = self.answer(&method, &path, stopping).await;
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
