//! What is said of a request afterwards: in the log, in the metrics, and in headers of its answer.

use std::sync::Arc;
use std::time::Instant;

use http::Version;
use http::header::HeaderValue;
use pingora::protocols::http::ServerSession;

use super::{Account, Answered, CACHE_STATUS, Mirror, NAMESPACE, Request, SERVER_TIMING};
use crate::account::{Line, milliseconds};
use crate::answer;
use crate::express::About;
use crate::metrics::Metrics;
use crate::name::{Reference, Repository};
use crate::respond::{Answer, Sent};
use crate::route::{Action, Route, Target};
use crate::traces::Span;

impl Account {
    pub(super) fn line<'a>(
        &'a self,
        session: &'a ServerSession,
        request: &'a Request,
        answered: &Answered,
        sent: &'a Sent,
    ) -> Line<'a> {
        Line {
            client: session.client_addr().and_then(|a| a.as_inet()),
            user: self.user.as_deref(),
            method: &request.method,
            path: &request.path,
            upstream: self.upstream.as_deref().unwrap_or_default(),
            repository: self.repository.as_ref().map(Repository::as_str).unwrap_or_default(),
            kind: self.kind,
            status: answered.status,
            cache: answered.cache,
            received: request.received,
            upstream_took: answered.upstream,
            user_agent: &request.user_agent,
            sent,
            trace: request.trace.as_ref(),
        }
    }

    pub(super) fn about<'a>(&'a self, metrics: &'a Metrics) -> About<'a> {
        About {
            metrics,
            upstream: self.upstream.as_deref().unwrap_or_default(),
            repository: self.repository.as_ref().map(Repository::as_str).unwrap_or_default(),
            kind: self.kind,
        }
    }

    pub(super) fn take(&mut self, action: &Action, target: &Target) {
        self.upstream = Some(Arc::clone(&target.upstream));
        self.repository = Some(target.repository.clone());
        // What is hosted here can be deleted, and is gone at once then.
        self.is_immutable = !target.is_hosted()
            && matches!(action, Action::Blob(_) | Action::Manifest(Reference::Digest(_)));
    }
}

impl Mirror {
    /// The span of a request that has come, where it is traced: one look where nothing is.
    pub(super) fn trace(&self, session: &ServerSession) -> Option<Span> {
        let span = self.traces.as_ref()?.request(&session.req_header().headers)?;
        let digest = session.digest();
        let is_secure = digest.is_some_and(|digest| digest.ssl_digest.is_some());
        span.text("url.scheme", if is_secure { "https" } else { "http" });
        let version = match session.req_header().version {
            _ if session.is_http2() => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        span.text("network.protocol.version", version);
        Some(span)
    }
}

pub(super) fn kind_of(action: &Action) -> &'static str {
    match action {
        Action::Ping => "ping",
        Action::Manifest(_) => "manifest",
        Action::Blob(_) => "blob",
        Action::Tags(_) => "tags",
        Action::Referrers(..) => "referrers",
        Action::Catalog(..) => "catalog",
        Action::Push(push) => push.kind(),
    }
}

pub(super) fn echo_namespace(route: &Route, answer: &mut Answer) {
    if let Some(namespace) = &route.namespace {
        answer.text(NAMESPACE, &**namespace);
    }
}

/// Says what became of the request in the cache, and where its time went.
pub(super) fn finish_headers(answer: &mut Answer, received: Instant) -> Answered {
    let took = received.elapsed();
    let from_upstream = !matches!(answer.cache.as_str(), "none" | "hit");
    if let Some(status) = answer::cache_status(answer.cache) {
        answer.header(CACHE_STATUS, HeaderValue::from_static(status));
    }
    let place = if from_upstream { "upstream" } else { "mirror" };
    answer.text(SERVER_TIMING, format!("{place};dur={:.3}", milliseconds(took)));
    Answered {
        status: answer.status.as_u16(),
        cache: answer.cache.as_str(),
        upstream: from_upstream.then_some(took),
    }
}
