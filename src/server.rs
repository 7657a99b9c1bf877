//! The spine: one readable function from request to answer, and the account of it afterwards.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::Method;
use http::header::{self, HeaderName, HeaderValue};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;

use crate::answer::{self, Conditions};
use crate::begun::Begun;
use crate::blobs::Blobs;
use crate::config::{self, Act, Auth, Config};
use crate::doors::{self, Caller, Door, Doors, Knock};
use crate::error::{Error, Fault, Result};
use crate::fill::Fills;
use crate::manifests::{Found, Manifests};
use crate::metrics::{Metrics, Served};
use crate::name::{Reference, Repository, Tag};
use crate::pages::{self, Referrers};
use crate::patterns::Patterns;
use crate::respond::{self, Answer, Sent};
use crate::rights::{self, Rights};
use crate::route::{Action, Route, Table, Target};
use crate::store::{Place, Store};
use crate::upstream::Upstream;

mod door;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// An upstream with what the server decides about it.
#[derive(Debug)]
struct Origin {
    upstream: Arc<Upstream>,
    tag_ttl: Duration,
    allowed: Patterns,
    /// Where callers are answered by their own rights.
    rights: Option<Rights>,
}

/// The mirror: everything that a request is answered from.
#[derive(Debug)]
pub struct Mirror {
    table: Table,
    /// Who may come in.
    pub doors: Doors,
    origins: HashMap<Arc<str>, Origin>,
    manifests: Arc<Manifests>,
    blobs: Arc<Blobs>,
    begun: Arc<Begun>,
    /// The downloads under way.
    pub fills: Arc<Fills>,
    /// What is held.
    pub store: Arc<Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    settings: config::Server,
    options: HttpServerOptions,
    access_log: bool,
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
    user: Option<Arc<str>>,
    /// What a token would have to be for.
    scope: Option<String>,
}

impl Mirror {
    /// Puts the parts together; nothing is dialled and nothing listens.
    ///
    /// # Errors
    /// Where an upstream's client cannot be built.
    pub fn new(config: &Config, store: Arc<Store>, metrics: Arc<Metrics>) -> Result<Self> {
        let mut table = Table::new(config.default_upstream.as_deref());
        let mut origins = HashMap::new();
        for (name, settings) in &config.upstreams {
            table.add(name, &settings.aliases, &settings.hosts);
            let upstream = Arc::new(Upstream::new(name, settings, Arc::clone(&metrics))?);
            let origin = Origin {
                tag_ttl: settings.tag_ttl.get(),
                allowed: Patterns::new(&settings.allow, &settings.deny),
                rights: match &settings.auth {
                    Auth::Passthrough(how) => Some(Rights::new(how.clone(), doors::random_key()?)),
                    _ => None,
                },
                upstream: Arc::clone(&upstream),
            };
            origins.insert(Arc::clone(upstream.name()), origin);
        }
        let fills = Arc::new(Fills::new(Arc::clone(&store), Arc::clone(&metrics)));
        let manifests = Arc::new(Manifests::new(Arc::clone(&store)));
        let blobs = Arc::new(Blobs::new(Arc::clone(&store), Arc::clone(&fills)));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(config.server.idle_timeout.get() * 2);
        let settings = config.server.clone();
        Ok(Self {
            doors: Doors::new(config)?,
            table,
            origins,
            manifests,
            blobs,
            begun: Begun::new(config.server.max_fills_per_caller),
            fills,
            store,
            metrics,
            settings,
            options,
            access_log: config.log.access,
        })
    }

    /// From a request to its answer. This is the life of a pull: understood, allowed, found or
    /// fetched, answered.
    async fn answer(
        &self,
        door: &Door,
        request: &Request,
        account: &mut Account,
    ) -> Result<Answer> {
        let route = self.table.route(
            &request.method,
            &request.path,
            request.query.as_deref(),
            request.knock.host.as_deref(),
        )?;
        account.take(&route);
        let caller = self.doors.enter(door, &request.knock).await?;
        account.user.clone_from(&caller.actor.user);
        let Some(target) = &route.target else {
            self.doors.ping(door, &request.knock, &caller)?;
            return self.ping(&caller).await;
        };
        let origin = self.admit(door, &caller, target)?;
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

    /// What is asked for, by the rights of whoever asks.
    async fn found(
        &self,
        request: &Request,
        route: &Route,
        target: &Target,
        (origin, caller): (&Origin, &Caller),
        place: &Place,
    ) -> Result<Answer> {
        let upstream = &origin.for_caller(caller, place, &route.action).await?;
        let head = request.conditions.head;
        Ok(match &route.action {
            Action::Ping => answer::ping(),
            Action::Manifest(reference) => {
                let found = self.manifest(origin, upstream, place, reference, head).await?;
                answer::manifest(found, &request.conditions)
            }
            Action::Blob(digest) => {
                let begin = || self.begun.begin(&caller.beginner(&request.knock));
                let blob = self.blobs.get(upstream, place, *digest, head, begin).await?;
                answer::blob(blob, digest, &request.conditions).await?
            }
            Action::Tags(page) => {
                answer::tags(pages::tags(upstream, target, page, route.namespace.as_deref()).await?)
            }
            Action::Referrers(subject, types) => {
                self.referrers((origin, caller), upstream, place, subject, types).await?
            }
        })
    }

    async fn manifest(
        &self,
        origin: &Origin,
        upstream: &Arc<Upstream>,
        place: &Place,
        reference: &Reference,
        head: bool,
    ) -> Result<Found> {
        self.manifests.get(upstream, origin.tag_ttl, place, reference, head).await
    }

    /// What is attached to a manifest; from the fallback tag where the upstream lacks the API.
    async fn referrers(
        &self,
        (origin, caller): (&Origin, &Caller),
        upstream: &Arc<Upstream>,
        place: &Place,
        subject: &crate::digest::Digest,
        types: &[String],
    ) -> Result<Answer> {
        let found = match pages::referrers(upstream, &place.repository, subject).await? {
            Referrers::Listed(found) => found,
            Referrers::Unsupported => {
                let tag = Reference::Tag(Tag::of_referrers(subject));
                // The tag may be held, so here the right to it has to be proven.
                let found = match origin.for_caller(caller, place, &rights::by_tag(&tag)).await {
                    Ok(upstream) => self.manifest(origin, &upstream, place, &tag, false).await,
                    Err(e) => Err(e),
                };
                match found {
                    Ok(found) => {
                        found.bytes().await.and_then(|b| pages::descriptors(&b)).unwrap_or_default()
                    }
                    Err(e) if e.is_absence() => Vec::new(),
                    Err(e) => return Err(e),
                }
            }
        };
        Ok(answer::referrers(pages::referrers_index(found, types), !types.is_empty()))
    }

    /// Reads a request's head, within its deadline. `None`: there is none, or it is beyond use.
    async fn read(&self, session: &mut ServerSession, stop: &ShutdownWatch) -> Option<Request> {
        let reused = session.take_connection_user_context().is_some();
        let idle = if reused { self.settings.idle_timeout.get() } else { Duration::ZERO };
        let mut stop = stop.clone();
        let read = tokio::select! {
            read = tokio::time::timeout(idle + self.settings.header_timeout.get(), session.read_request()) => read,
            () = stopped(&mut stop, reused) => return None,
        };
        match read {
            Ok(Ok(true)) => Some(Request::take(session)),
            Ok(Err(error)) if !session.is_http2() && is_malformed(&error) => {
                let body = r#"{"errors":[{"code":"UNSUPPORTED","message":"malformed request","detail":null}]}"#;
                let _ = session.respond_error_with_body(400, body.into()).await; // the client may be gone
                None
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// The one place where a request's end is told: one log line, one call of the metrics.
    fn account(
        &self,
        request: &Request,
        account: &Account,
        answered: &Answered,
        sent: &Sent,
        client: Option<&str>,
    ) {
        let took = request.received.elapsed();
        self.metrics.served(&Served {
            upstream: account.upstream.as_deref().unwrap_or_default(),
            kind: account.kind,
            method: method_word(&request.method),
            status: answered.status,
            cache: answered.cache,
            bytes: sent.bytes,
            took,
        });
        if !self.access_log {
            return;
        }
        tracing::info!(
            target: "access",
            client = client.unwrap_or_default(),
            user = account.user.as_deref().unwrap_or_default(),
            method = %request.method,
            path = %request.path,
            upstream = account.upstream.as_deref().unwrap_or_default(),
            repository = account.repository.as_ref().map(Repository::as_str).unwrap_or_default(),
            kind = account.kind,
            status = answered.status,
            cache = answered.cache,
            bytes = sent.bytes,
            duration_ms = milliseconds(took),
            upstream_ms = answered.upstream.map(milliseconds).unwrap_or_default(),
            user_agent = %request.user_agent,
            broken = sent.broken.as_deref().unwrap_or_default(),
        );
    }
}

/// What an answer was, kept for the account after it is sent.
#[derive(Debug)]
struct Answered {
    status: u16,
    cache: &'static str,
    upstream: Option<Duration>,
}

/// The mirror behind one of its addresses.
#[derive(Debug)]
pub struct Front {
    /// What answers.
    pub mirror: Arc<Mirror>,
    /// Where the request came in.
    pub door: Door,
}

#[async_trait]
impl HttpServerApp for Front {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        stop: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.mirror.serve(&self.door, session, stop).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = default_h2_options();
        options
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_send_buffer_size(1 << 20);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.mirror.options)
    }
}

impl Mirror {
    /// One request, from its head to the last byte of its answer.
    async fn serve(
        &self,
        door: &Door,
        mut session: ServerSession,
        stop: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let request = self.read(&mut session, stop).await?;
        self.set_keepalive(&mut session, stop);
        let mut account = Account { kind: "none", ..Account::default() };
        let mut answer = self.reply(door, &mut session, &request, &mut account).await;
        let answered = finish_headers(&mut answer, request.received);
        let sent =
            respond::send(&mut session, &request.method, answer, self.settings.send_timeout.get())
                .await;
        let client = session.client_addr().map(ToString::to_string);
        self.account(&request, &account, &answered, &sent, client.as_deref());
        if sent.broken.is_some() {
            return None; // dropping the session leaves the client with a short body, never a clean end
        }
        let mut keep = HttpPersistentSettings::for_session(&session);
        keep.set_user_context(Box::new(Reused));
        session
            .finish()
            .await
            .ok()
            .flatten()
            .map(|stream| ReusedHttpStream::from_reusable_stream(stream, keep))
    }
}

/// Marks a connection that has served a request before.
struct Reused;

impl Mirror {
    /// Pingora has read from the request whether the connection may stay; only how long is ours.
    /// Setting it where it is off would undo a defence against request smuggling.
    fn set_keepalive(&self, session: &mut ServerSession, stop: &ShutdownWatch) {
        session.set_total_drain_timeout(Some(Duration::from_secs(2)));
        if *stop.borrow() {
            session.set_keepalive(None);
        } else if session.get_keepalive().is_some() {
            session.set_keepalive(Some(self.settings.idle_timeout.get().as_secs().max(1)));
        }
    }
}

impl Request {
    fn take(session: &ServerSession) -> Self {
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
            received: Instant::now(),
        }
    }
}

impl Account {
    fn take(&mut self, route: &Route) {
        self.kind = match &route.action {
            Action::Ping => "ping",
            Action::Manifest(_) => "manifest",
            Action::Blob(_) => "blob",
            Action::Tags(_) => "tags",
            Action::Referrers(..) => "referrers",
        };
        let Some(target) = &route.target else { return };
        self.scope = Some(doors::scope(target, Act::Pull));
        self.upstream = Some(Arc::clone(&target.upstream));
        self.repository = Some(target.repository.clone());
    }
}

/// Resolves once the server stops; a connection that is still to send its first request is heard.
async fn stopped(stop: &mut ShutdownWatch, reused: bool) {
    if stop.wait_for(|stopping| *stopping).await.is_ok() && !reused {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn is_malformed(error: &pingora::Error) -> bool {
    matches!(error.etype(), pingora::ErrorType::InvalidHTTPHeader)
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

fn milliseconds(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

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

/// A client's mistakes are in the access log; what somebody else has to mend is said here.
fn log_failure(request: &Request, error: &Error) {
    match error.kind().fault() {
        Fault::Client => tracing::debug!(path = %request.path, ?error, "request refused"),
        Fault::Upstream => tracing::warn!(path = %request.path, ?error, "upstream failed"),
        Fault::Mirror => tracing::error!(path = %request.path, ?error, "request failed"),
    }
}
