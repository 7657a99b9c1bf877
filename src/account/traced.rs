//! What the span of a request says: what the access log does, by OpenTelemetry's names where it has some.

use super::{Line, method_word, milliseconds};
use crate::traces::Span;

impl Line<'_> {
    /// Has the span say what became of the request, and ends it.
    pub fn trace(&self) {
        let Some(span) = self.trace else { return };
        let method = match method_word(self.method) {
            "OTHER" => "_OTHER",
            known => known,
        };
        if let Some(route) = route(self.kind) {
            span.name(format!("{method} {route}"));
            span.text("http.route", route);
        } else {
            span.name(method.to_owned());
        }
        span.text("http.request.method", method);
        span.text("url.path", self.path);
        span.number("http.response.status_code", self.status.into());
        span.number("http.response.body.size", self.sent.bytes);
        span.text("user_agent.original", self.user_agent);
        self.tell_client(span);
        self.tell_ours(span);
        if let Some(why) = &self.sent.broken {
            span.failed("broken", why);
        } else if self.status >= 500 {
            span.failed(&self.status.to_string(), "");
        }
        span.end();
    }

    fn tell_client(&self, span: &Span) {
        if let Some(client) = self.client {
            span.text("client.address", &client.ip().to_string());
            span.number("client.port", client.port().into());
        }
        span.text("user.name", self.user.unwrap_or_default());
    }

    /// What OpenTelemetry has no names for.
    fn tell_ours(&self, span: &Span) {
        span.text("pierhead.upstream", self.upstream);
        span.text("pierhead.repository", self.repository);
        span.text("pierhead.kind", self.kind);
        span.text("pierhead.cache", self.cache);
        if let Some(took) = self.upstream_took {
            span.decimal("pierhead.upstream_ms", milliseconds(took));
        }
    }
}

/// What a request's path is of, with what differs between requests left open.
fn route(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "ping" => "/v2/",
        "manifest" => "/v2/{name}/manifests/{reference}",
        "blob" => "/v2/{name}/blobs/{digest}",
        "upload" => "/v2/{name}/blobs/uploads/{session}",
        "tags" => "/v2/{name}/tags/list",
        "referrers" => "/v2/{name}/referrers/{digest}",
        "catalog" => "/v2/_catalog",
        "token" => "/token",
        _ => return None,
    })
}
