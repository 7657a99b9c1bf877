//! A request as it came: what of its head is looked at, before it is understood.

use std::time::Instant;

use http::Method;
use http::header::{self, HeaderName};
use pingora::protocols::http::ServerSession;

use crate::answer::Conditions;
use crate::doors::Knock;
use crate::traces::Span;

/// A request, as far as it is read before it is understood.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) knock: Knock,
    pub(crate) user_agent: String,
    pub(crate) conditions: Conditions,
    pub(crate) received: Instant,
    /// Its span, where it is traced.
    pub(crate) trace: Option<Span>,
}

impl Request {
    /// What a session has read.
    pub(crate) fn take(session: &ServerSession, received: Instant) -> Self {
        let head = session.req_header();
        let text = |name: HeaderName| {
            head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let authority = head.uri.authority().map(|a| a.as_str().to_owned());
        Self {
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            knock: Knock {
                host: text(header::HOST).or(authority),
                authorization: text(header::AUTHORIZATION).map(Into::into),
                address: session
                    .client_addr()
                    .and_then(|a| a.as_inet())
                    .map(std::net::SocketAddr::ip),
                certificate: super::door::certificate(session),
            },
            user_agent: text(header::USER_AGENT).unwrap_or_default(),
            conditions: Conditions {
                head: head.method == Method::HEAD,
                range: text(header::RANGE),
                if_range: text(header::IF_RANGE),
                if_none_match: text(header::IF_NONE_MATCH),
            },
            received,
            trace: None,
        }
    }
}
