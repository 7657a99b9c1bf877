//! The spine: one readable function from request to answer, and the account of it afterwards.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::Method;
use http::header::{self, HeaderName, HeaderValue};
use pingora::protocols::http::ServerSession;

use crate::account::{Line, milliseconds};
use crate::answer::{self, Conditions};
use crate::begun::Begun;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::doors::{self, Door, Doors, Knock};
use crate::error::{Error, Fault, Result};
use crate::express::About;
use crate::fill::Fills;
use crate::hosting::Hosting;
use crate::manifests::{Manifests, Terms};
use crate::metrics::Metrics;
use crate::name::{Reference, Repository};
use crate::patterns::Patterns;
use crate::prefetch::Prefetch;
use crate::receive::Incoming;
use crate::respond::{Answer, Sent};
use crate::rights::{self, Rights};
use crate::route::{Action, Route, Table, Target};
use crate::store::{Place, Store};
use crate::upstream::Upstream;

mod build;
mod door;
mod finding;
mod front;

pub use build::bounds;
pub use front::{Current, Front};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// An upstream with what the server decides about it.
#[derive(Debug)]
struct Origin {
    upstream: Arc<Upstream>,
    terms: Arc<Terms>,
    allowed: Patterns,
    prefetch: bool,
    /// Where callers are answered by their own rights.
    rights: Option<Arc<Rights>>,
    /// When the files were changed that its connection rests on.
    files: Vec<Option<SystemTime>>,
}

/// The mirror: everything that a request is answered from, as it is configured. A reload makes another
/// one, which shares what outlives it.
#[derive(Debug)]
pub struct Mirror {
    /// By which names the upstreams are known.
    pub table: Table,
    /// Who may come in.
    pub doors: Doors,
    origins: HashMap<Arc<str>, Origin>,
    manifests: Arc<Manifests>,
    blobs: Arc<Blobs>,
    begun: Arc<Begun>,
    prefetch: Arc<Prefetch>,
    /// The repositories that live here.
    pub hosting: Hosting,
    /// The downloads under way.
    pub fills: Arc<Fills>,
    /// What is held.
    pub store: Arc<Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    config: Config,
    /// The addresses that clients connect to, in the order of the configuration.
    addresses: Vec<Door>,
    /// The first of the numbers that its addresses have among all of this process.
    first_id: u64,
}

/// A request, as far as it is read before it is understood.
#[derive(Debug)]
struct Request {
    method: Method,
    path: String,
    query: Option<String>,
    knock: Knock,
    user_agent: String,
    conditions: Conditions,
    received: Instant,
}

/// What is said of a request in log and metrics.
#[derive(Debug, Default)]
struct Account {
    upstream: Option<Arc<str>>,
    repository: Option<Repository>,
    kind: &'static str,
    /// Whether the answer to this very request will never change.
    is_immutable: bool,
    /// What a token would have to be for.
    scope: Option<String>,
}

impl Mirror {
    /// From a request to its answer. This is the life of a pull: understood, allowed, found or
    /// fetched, answered.
    async fn answer(
        &self,
        door: &Door,
        request: &Request,
        session: &mut ServerSession,
        account: &mut Account,
    ) -> Result<Answer> {
        let route = self.table.route(
            &request.method,
            &request.path,
            request.query.as_deref(),
            request.knock.host.as_deref(),
        )?;
        account.kind = kind_of(&route.action);
        let act = door::act_of(&route.action);
        account.scope = route.target.as_ref().map(|target| doors::scope(target, act));
        let caller = self.doors.enter(door, &request.knock).await?;
        let Some(target) = &route.target else {
            self.doors.ping(door, &request.knock, &caller)?;
            return match route.action {
                Action::Catalog(n, last) => {
                    self.doors.list(&caller)?;
                    self.hosting.catalog(n, last).await
                }
                _ => self.ping(&caller).await,
            };
        };
        account.take(&route.action, target);
        if target.is_hosted() {
            self.admit_hosted(door, &caller, target, &route.action)?;
            let mut body = Incoming::new(session, self.config.server.send_timeout.get());
            body.set_user(caller.actor.user.clone());
            return self
                .hosting
                .answer(
                    &self.doors.lawful(&caller, &route.action),
                    target,
                    &request.conditions,
                    &mut body,
                )
                .await;
        }
        let origin = self.admit(door, &caller, target)?;
        // By whose right it was answered matters to nobody else's ready answer.
        account.is_immutable &=
            origin.rights.is_none() && !self.doors.guard(door, request.knock.host.as_deref());
        let place =
            Place { upstream: Arc::clone(&target.upstream), repository: target.repository.clone() };
        let found = self.found(request, &route, target, (origin, &caller), &place).await;
        let mut answer = match (&origin.rights, found) {
            (Some(_), Err(e)) => {
                return Err(rights::told(&place, caller.asker(&target.upstream), e));
            }
            (_, found) => found?,
        };
        echo_namespace(&route, &mut answer);
        Ok(answer)
    }
}

/// What an answer was, kept for the account after it is sent.
#[derive(Debug)]
struct Answered {
    status: u16,
    cache: &'static str,
    upstream: Option<Duration>,
}

impl Request {
    fn take(session: &ServerSession, received: Instant) -> Self {
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
                certificate: door::certificate(session),
            },
            user_agent: text(header::USER_AGENT).unwrap_or_default(),
            conditions: Conditions {
                head: head.method == Method::HEAD,
                range: text(header::RANGE),
                if_range: text(header::IF_RANGE),
                if_none_match: text(header::IF_NONE_MATCH),
            },
            received,
        }
    }
}

impl Account {
    fn line<'a>(
        &'a self,
        session: &'a ServerSession,
        request: &'a Request,
        answered: &Answered,
        sent: &'a Sent,
    ) -> Line<'a> {
        Line {
            client: session.client_addr().and_then(|a| a.as_inet()),
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
        }
    }

    fn about<'a>(&'a self, metrics: &'a Metrics) -> About<'a> {
        About {
            metrics,
            upstream: self.upstream.as_deref().unwrap_or_default(),
            repository: self.repository.as_ref().map(Repository::as_str).unwrap_or_default(),
            kind: self.kind,
        }
    }

    fn take(&mut self, action: &Action, target: &Target) {
        self.upstream = Some(Arc::clone(&target.upstream));
        self.repository = Some(target.repository.clone());
        // What is hosted here can be deleted, and is gone at once then.
        self.is_immutable = !target.is_hosted()
            && matches!(action, Action::Blob(_) | Action::Manifest(Reference::Digest(_)));
    }
}

fn kind_of(action: &Action) -> &'static str {
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

fn echo_namespace(route: &Route, answer: &mut Answer) {
    if let Some(namespace) = &route.namespace {
        answer.text(NAMESPACE, &**namespace);
    }
}

/// Says what became of the request in the cache, and where its time went.
fn finish_headers(answer: &mut Answer, received: Instant) -> Answered {
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

/// A client's mistakes are in the access log; what somebody else has to mend is said here.
fn log_failure(request: &Request, error: &Error) {
    match error.kind().fault() {
        Fault::Client => tracing::debug!(path = %request.path, ?error, "request refused"),
        Fault::Upstream => tracing::warn!(path = %request.path, ?error, "upstream failed"),
        Fault::Mirror => tracing::error!(path = %request.path, ?error, "request failed"),
    }
}
