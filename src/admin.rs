//! The admin address: health, metrics and the admin API, on a port of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::cache::Cache;
use crate::config::units::Span;
use crate::doors::Knock;
use crate::error::{Error, Kind, Result};
use crate::ops::{Ops, Order};
use crate::receive::Incoming;
use crate::respond::{self, Answer, Body};
use crate::scope;
use crate::server::{Current, Mirror};
use crate::steward::Steward;

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
    current: Arc<Current>,
    ops: Ops,
    steward: Arc<Steward>,
    guard_metrics: bool,
}

/// A request, read as far as it is allowed to be long.
#[derive(Debug)]
struct Request {
    method: Method,
    path: String,
    query: BTreeMap<String, String>,
    content_type: String,
    host: String,
    knock: Knock,
    origin: Option<String>,
    site: Option<String>,
    body: Bytes,
}

impl Admin {
    /// For one mirror, which clients reach at `addresses`.
    pub fn new(
        current: Arc<Current>,
        addresses: Vec<SocketAddr>,
        steward: Arc<Steward>,
        guard_metrics: bool,
    ) -> Self {
        let ops = Ops::new(Arc::clone(&current), addresses);
        Self { current, ops, steward, guard_metrics }
    }

    /// Whether everybody may ask this: it changes nothing, and tells nothing of what is held.
    fn is_open(&self, request: &Request) -> bool {
        request.is_reading()
            && !request.path.starts_with("/api/")
            && !(request.path == "/metrics" && self.guard_metrics)
    }

    /// Whether this sender may use the API: by the token, as a user whom a rule lets administer, or
    /// where there is no token by being on this machine.
    async fn admit(&self, request: &Request) -> Result<()> {
        let knock = &request.knock;
        if request.secret().is_some_and(|secret| self.steward.knows(&secret)) {
            return Ok(());
        }
        let mirror = self.mirror();
        if knock.authorization.is_some() && mirror.doors.know_users() {
            return mirror.doors.administers(knock).await;
        }
        by_place(self.steward.wants_token(), knock.address)?;
        // A page that has its own name lead here (DNS rebinding) comes from this machine, too.
        if request.is_by_address() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Denied,
            "without a token, ask by an address or localhost, not by a name",
        ))
    }

    fn mirror(&self) -> Arc<Mirror> {
        self.current.load_full()
    }

    async fn answer(&self, request: &Request, stopping: bool) -> Answer {
        if !self.is_open(request)
            && let Err(error) = self.admit(request).await
        {
            tracing::warn!(path = request.path, from = ?request.knock.address, %error, "admin request refused");
            let body = serde_json::json!({"error": error.message()});
            let mut answer = json(error.kind().answer().1, &body);
            if error.kind() == Kind::Unauthorized {
                let challenge = HeaderValue::from_static("Basic realm=\"pierhead admin\"");
                answer.header(header::WWW_AUTHENTICATE, challenge);
            }
            return answer;
        }
        if let Some(path) = request.path.strip_prefix("/api/") {
            return match self.api(path, request).await {
                Ok(value) => json(StatusCode::OK, &value),
                Err(error) => {
                    tracing::debug!(path, ?error, "admin request refused");
                    let body = serde_json::json!({"error": error.message()});
                    json(error.kind().answer().1, &body)
                }
            };
        }
        if request.method == Method::POST {
            return self.order(request).await;
        }
        if !request.is_reading() {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and POST\n");
        }
        match request.path.as_str() {
            // Alive means that this line is reached.
            "/healthz" | "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(stopping).await,
            "/metrics" => self.metrics(),
            "/" => text(
                StatusCode::OK,
                "Pierhead's admin address: /healthz /readyz /metrics /api/status\n",
            ),
            _ => text(
                StatusCode::NOT_FOUND,
                "not here: /healthz, /readyz, /metrics and /api/status are\n",
            ),
        }
    }

    /// The API: reading by GET; what changes something by POST, from our own clients only.
    async fn api(&self, path: &str, request: &Request) -> Result<Value> {
        let (ops, query) = (&self.ops, &request.query);
        if request.is_reading() {
            return match path {
                "status" => ops.status().await,
                "fills" => ops.fills(query),
                "repositories" => ops.list_repositories(query).await,
                "tags" => ops.list_tags(query).await,
                "objects" => ops.list_objects(query).await,
                "image" => ops.image(query),
                "pins" => Ok(ops.pins().await),
                "verify" => Ok(ops.verified()),
                _ => Err(Error::new(Kind::PathUnknown, format!("there is no /api/{path}"))),
            };
        }
        let order = request.order()?;
        match path {
            "purge" => ops.purge(&order).await,
            "collect" => ops.collect().await,
            "pin" => ops.pin(&order).await,
            "unpin" => ops.unpin(&order).await,
            "verify" => Ok(ops.verify()),
            _ => Err(Error::new(Kind::PathUnknown, format!("POST /api/{path} does nothing"))),
        }
    }

    /// Orders about hosted repositories.
    async fn order(&self, request: &Request) -> Answer {
        if !request.is_json() {
            let body = "orders come as application/json\n";
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, body);
        }
        let done = match (request.path.as_str(), request.is_ours()) {
            (_, Err(error)) => Err(error),
            ("/gc", Ok(())) => self.collect(&request.body).await,
            (_, Ok(())) => return text(StatusCode::NOT_FOUND, "not here: POST /gc is\n"),
        };
        done.unwrap_or_else(|error| Answer::error(&error))
    }

    async fn collect(&self, order: &[u8]) -> Result<Answer> {
        let order: Collect = serde_json::from_slice(order).map_err(|e| {
            Error::new(Kind::BadRequest, format!("not an order to collect garbage: {e}"))
        })?;
        let mirror = self.mirror();
        let grace = order.grace.unwrap_or(mirror.hosting.hosted.settings().gc_grace);
        let report = mirror.hosting.collect(grace.get(), order.dry_run).await?;
        let report =
            serde_json::to_vec(&report).map_err(|e| Error::internal("cannot write a report", e))?;
        let mut answer = Answer::new(StatusCode::OK, Body::Bytes(report.into()), Cache::None);
        answer.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(answer)
    }

    /// Ready means: not stopping. A disk that takes no more is said and does not count, since held
    /// content is served and the rest is passed on; neither do the upstreams.
    async fn ready(&self, stopping: bool) -> Answer {
        if stopping {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        let store = Arc::clone(&self.mirror().store);
        match store.blocking(|s| s.disk().probe()).await {
            Ok(()) if store.keeper().is_in_trouble() => text(
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
        let mirror = self.mirror();
        let bytes = i64::try_from(mirror.store.memory_bytes()).unwrap_or(i64::MAX);
        mirror.metrics.memory_bytes.set(bytes);
        let mut answer = text(StatusCode::OK, &mirror.metrics.render());
        answer.headers.clear();
        answer.header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        answer
    }
}

impl Request {
    /// Reads a request with its body; what could be read comes with the error too.
    async fn read(
        session: &mut ServerSession,
        patience: Duration,
    ) -> std::result::Result<Self, (Self, Error)> {
        let head = session.req_header();
        let text = |name: HeaderName| {
            head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let query = head.uri.query().unwrap_or_default();
        let mut request = Self {
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            content_type: text(header::CONTENT_TYPE).unwrap_or_default(),
            host: text(header::HOST).unwrap_or_default(),
            knock: Knock {
                host: None,
                authorization: text(header::AUTHORIZATION).map(Into::into),
                address: session
                    .client_addr()
                    .and_then(|address| address.as_inet())
                    .map(SocketAddr::ip),
                certificate: None,
            },
            origin: text(header::ORIGIN),
            site: text(HeaderName::from_static("sec-fetch-site")),
            body: Bytes::new(),
        };
        match Incoming::new(session, patience).whole(ORDER_BYTES_MAX).await {
            Ok(body) => request.body = body,
            Err(error) => return Err((request, error)),
        }
        Ok(request)
    }

    /// What may be the token: of Bearer, or the password of Basic whatever the user's name.
    fn secret(&self) -> Option<Zeroizing<String>> {
        let (scheme, rest) = self.knock.authorization.as_ref()?.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("basic") {
            return scope::basic(rest).map(|(_, password)| password);
        }
        let bearer = scheme.eq_ignore_ascii_case("bearer");
        bearer.then(|| Zeroizing::new(rest.trim().to_owned()))
    }

    fn is_reading(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    fn is_json(&self) -> bool {
        self.content_type.split(';').next() == Some("application/json")
    }

    /// Whether it comes from a client of ours. A page of another site may make a browser that
    /// reaches us send a form, but not JSON without asking us first, which we do not answer; nor may
    /// a page that has its own name lead here (DNS rebinding) order anything.
    fn is_ours(&self) -> Result<()> {
        let denied = |why: &str| Err(Error::new(Kind::Denied, why));
        if !self.is_json() {
            return denied("what changes something is sent with Content-Type: application/json");
        }
        if self.site.as_deref().is_some_and(|site| !matches!(site, "same-origin" | "none")) {
            return denied("a page of another site may change nothing");
        }
        let Some(origin) = &self.origin else { return Ok(()) };
        if !self.is_by_address() || *origin != format!("http://{}", self.host) {
            return denied("a browser may change something only at an address, from its own page");
        }
        Ok(())
    }

    /// Whether the request names us by no name that somebody else could have lead here.
    fn is_by_address(&self) -> bool {
        let port = |(_, port): &(&str, &str)| port.bytes().all(|b| b.is_ascii_digit());
        let name = self.host.rsplit_once(':').filter(port).map_or(&*self.host, |(name, _)| name);
        let name = name.trim_matches(['[', ']']);
        name.is_empty() || name == "localhost" || name.parse::<IpAddr>().is_ok()
    }

    /// What is ordered.
    fn order(&self) -> Result<Order> {
        if self.method != Method::POST {
            return Err(Error::new(Kind::Unsupported, "what changes something is sent by POST"));
        }
        self.is_ours()?;
        if self.body.is_empty() {
            return Ok(Order::default());
        }
        serde_json::from_slice(&self.body)
            .map_err(|e| Error::new(Kind::BadRequest, format!("the order is not understood: {e}")))
    }
}

/// Whether whoever shows nothing may use the API: without a token, from this machine.
fn by_place(wants_token: bool, address: Option<IpAddr>) -> Result<()> {
    if wants_token {
        return Err(Error::new(
            Kind::Unauthorized,
            "this is for whoever has the admin address's token; give it with --token-file, or as Authorization: Bearer",
        ));
    }
    if address.is_some_and(|address| address.to_canonical().is_loopback()) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Denied,
        "from elsewhere than its own machine this mirror takes orders and tells what it holds only to those who log in: give its `admin` a `token_file`, or ask from that machine",
    ))
}

fn json(status: StatusCode, value: &Value) -> Answer {
    let mut answer = Answer::new(status, Body::Bytes(format!("{value}\n").into()), Cache::None);
    answer.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
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
        let (request, answer) = match Request::read(&mut session, wait).await {
            Ok(request) => {
                let answer = self.answer(&request, stopping).await;
                (request, answer)
            }
            Err((request, error)) => (request, Answer::error(&error)),
        };
        let sent = respond::send(&mut session, &request.method, answer, wait).await;
        respond::finish(session, &sent).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_somebody_is_counts_only_without_a_token() {
        let from = |text: &str| Some(text.parse().unwrap());
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(by_place(false, from(here)).is_ok(), "{here}");
            let refused = by_place(true, from(here)).unwrap_err();
            assert_eq!(refused.kind(), Kind::Unauthorized, "{here}");
        }
        for elsewhere in ["10.0.0.1", "192.168.0.1", "169.254.1.1", "fd00::1", "::ffff:10.0.0.1"] {
            let refused = by_place(false, from(elsewhere)).unwrap_err();
            assert_eq!(refused.kind(), Kind::Denied, "{elsewhere}");
        }
        assert!(by_place(false, None).is_err());
    }
}
