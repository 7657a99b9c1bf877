//! The spine: one readable function from request to answer, and the account of it afterwards.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::header::HeaderName;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;

use crate::begun::Begun;
use crate::blobs::Blobs;
use crate::config::{self, Auth, Config};
use crate::doors::{self, Door, Doors};
use crate::error::{Error, Fault, Result};
use crate::express::{self, Express};
use crate::fill::Fills;
use crate::hosting::Hosting;
use crate::hot;
use crate::manifests::{Manifests, Terms};
use crate::metrics::Metrics;
use crate::name::Repository;
use crate::patterns::Patterns;
use crate::prefetch::Prefetch;
use crate::receive::{self, Incoming};
use crate::respond::{self, Answer, Sent};
use crate::rights::{self, Rights};
use crate::route::{Action, Table};
use crate::store::{Place, Store};
use crate::through::Through;
use crate::upstream::Upstream;

mod accounting;
mod door;
mod finding;
mod pushing;
pub(crate) mod request;

use self::accounting::{echo_namespace, finish_headers, kind_of};
use self::request::Request;

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
    /// Whether pushes are passed on to it.
    push: bool,
    /// Where callers are answered by their own rights.
    rights: Option<Rights>,
}

/// Tells the addresses of one process apart, for the ready answers of a thread.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// The mirror: everything that a request is answered from.
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
    through: Through,
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
    /// Who it was found to be.
    user: Option<Arc<str>>,
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
            if settings.push {
                table.let_push(name);
            }
            let upstream = Arc::new(Upstream::new(name, settings, Arc::clone(&metrics))?);
            if let Some(every) = settings.probe {
                upstream.watch(every.get());
            }
            let origin = Origin {
                terms: Arc::new(Terms {
                    tag_ttl: settings.tag_ttl.get(),
                    cooldown: settings.cooldown.get(),
                    pins: settings.pins(),
                }),
                allowed: Patterns::new(&settings.allow, &settings.deny),
                prefetch: settings.prefetch,
                push: settings.push,
                rights: match &settings.auth {
                    Auth::Passthrough(how) => Some(Rights::new(how.clone(), doors::random_key()?)),
                    _ => None,
                },
                upstream: Arc::clone(&upstream),
            };
            origins.insert(Arc::clone(upstream.name()), origin);
        }
        table.host(&config.hosted.repositories);
        let hosting = Hosting::new(&store, &config.hosted);
        let fills = Arc::new(Fills::new(Arc::clone(&store), Arc::clone(&metrics)));
        let prefetch = Arc::new(Prefetch::new(
            Arc::clone(&store),
            Arc::clone(&fills),
            config.cache.max_size.bytes(),
        ));
        let manifests = Arc::new(Manifests::new(Arc::clone(&store), Arc::clone(&prefetch)));
        let blobs = Arc::new(Blobs::new(Arc::clone(&store), Arc::clone(&fills)));
        let through =
            Through::new(Arc::clone(&store), Arc::clone(&manifests), Arc::clone(&hosting.uploads));
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
            prefetch,
            hosting,
            through,
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
        account.user.clone_from(&caller.actor.user);
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
            let mut body = Incoming::new(session, self.settings.send_timeout.get());
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
        let origin = self.admit(door, &caller, target, act)?;
        // By whose right it was answered matters to nobody else's ready answer.
        account.is_immutable &=
            origin.rights.is_none() && !self.doors.guard(door, request.knock.host.as_deref());
        let place =
            Place { upstream: Arc::clone(&target.upstream), repository: target.repository.clone() };
        if let Action::Push(push) = &route.action {
            let (what, who) = ((push, &route, target), (origin, &caller));
            let mut answer = self.pushed_through(what, who, &place, request, session).await?;
            echo_namespace(&route, &mut answer);
            return Ok(answer);
        }
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

    /// Reads a request's head, within its deadline. `None`: there is none, or it is beyond use.
    async fn read(&self, session: &mut ServerSession, stop: &ShutdownWatch) -> Option<Instant> {
        let reused = session.take_connection_user_context().is_some();
        let idle = if reused { self.settings.idle_timeout.get() } else { Duration::ZERO };
        let mut stop = stop.clone();
        let read = tokio::select! {
            read = tokio::time::timeout(idle + self.settings.header_timeout.get(), session.read_request()) => read,
            () = stopped(&mut stop, reused) => return None,
        };
        match read {
            Ok(Ok(true)) if !respond::is_ambiguous(session) => Some(Instant::now()),
            Ok(answer)
                if !session.is_http2()
                    && answer.as_ref().map_or_else(|e| is_malformed(e), |read| *read) =>
            {
                let body = r#"{"errors":[{"code":"UNSUPPORTED","message":"malformed request","detail":null}]}"#;
                let _ = session.respond_error_with_body(400, body.into()).await; // the client may be gone
                None
            }
            Ok(_) | Err(_) => None,
        }
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
    mirror: Arc<Mirror>,
    door: Door,
    /// Ready answers of one address are none of another's.
    id: u64,
}

impl Front {
    /// The mirror behind this door.
    pub fn new(mirror: Arc<Mirror>, door: Door) -> Self {
        Self { mirror, door, id: NEXT_ID.fetch_add(1, Ordering::Relaxed) }
    }
}

#[async_trait]
impl HttpServerApp for Front {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        stop: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.mirror.serve(&self.door, self.id, session, stop).await
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
        id: u64,
        mut session: ServerSession,
        stop: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let received = self.read(&mut session, stop).await?;
        self.set_keepalive(&mut session, stop);
        let express = Express::of(&mut session);
        if let Some(express) = &express
            && let Some(prepared) = hot::get(&express::key(&session, id), received)
        {
            let patience = self.settings.send_timeout.get();
            let sent = express.send(&session, &prepared, received, patience).await;
            if self.access_log {
                express::line(&session, &prepared, received, &sent).log();
            }
            return finish(session, &sent).await;
        }
        let request = Request::take(&session, received);
        let mut account = Account { kind: "none", ..Account::default() };
        let mut answer = self.reply(door, &mut session, &request, &mut account).await;
        let answered = finish_headers(&mut answer, request.received);
        if express.is_some() && account.is_immutable {
            let about = account.about(&self.metrics);
            express::remember(&express::key(&session, id), &answer, about, received);
        }
        let patience = self.settings.send_timeout.get();
        let sent = respond::send(&mut session, &request.method, answer, patience).await;
        let line = account.line(&session, &request, &answered, &sent);
        line.count(&self.metrics);
        if self.access_log {
            line.log();
        }
        receive::linger(&mut session).await;
        finish(session, &sent).await
    }
}

/// Gives the connection back for the next request. Where the answer was not sent whole, dropping the
/// session leaves the client with a short body, never a clean end.
async fn finish(session: ServerSession, sent: &Sent) -> Option<ReusedHttpStream> {
    if sent.broken.is_some() {
        return None;
    }
    let mut keep = HttpPersistentSettings::for_session(&session);
    keep.set_user_context(Box::new(Reused));
    let stream = session.finish().await.ok().flatten()?;
    Some(ReusedHttpStream::from_reusable_stream(stream, keep))
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

/// Resolves once the server stops; a connection that is still to send its first request is heard.
async fn stopped(stop: &mut ShutdownWatch, reused: bool) {
    if stop.wait_for(|stopping| *stopping).await.is_ok() && !reused {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn is_malformed(error: &pingora::Error) -> bool {
    matches!(error.etype(), pingora::ErrorType::InvalidHTTPHeader)
}

/// A client's mistakes are in the access log; what somebody else has to mend is said here.
fn log_failure(request: &Request, error: &Error) {
    match error.kind().fault() {
        Fault::Client => tracing::debug!(path = %request.path, ?error, "request refused"),
        Fault::Upstream => tracing::warn!(path = %request.path, ?error, "upstream failed"),
        Fault::Mirror => tracing::error!(path = %request.path, ?error, "request failed"),
    }
}
