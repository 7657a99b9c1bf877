//! The spine: one readable function from request to answer, and the account of it afterwards.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use pingora::protocols::http::ServerSession;

use crate::begun::Begun;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::doors::{self, Door, Doors};
use crate::error::{Error, Fault, Result};
use crate::fill::Fills;
use crate::hosting::Hosting;
use crate::manifests::{Manifests, Terms};
use crate::metrics::Metrics;
use crate::name::Repository;
use crate::patterns::Patterns;
use crate::prefetch::Prefetch;
use crate::receive::Incoming;
use crate::respond::Answer;
use crate::rights::{self, Rights};
use crate::route::{Action, Table};
use crate::store::{Place, Store};
use crate::through::Through;
use crate::traces::Traces;
use crate::upstream::Upstream;
use crate::watched::Times;

mod accounting;
mod build;
mod door;
mod finding;
mod front;
mod pushing;
pub(crate) mod request;

use self::accounting::{echo_namespace, finish_headers, kind_of};
pub use self::build::bounds;
pub use self::front::{Current, Front};
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
    rights: Option<Arc<Rights>>,
    /// When the files were changed that its connection rests on.
    files: Times,
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
    through: Arc<Through>,
    /// The downloads under way.
    pub fills: Arc<Fills>,
    /// What is held.
    pub store: Arc<Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where requests are traced.
    pub traces: Option<Traces>,
    config: Config,
    /// The addresses that clients connect to, in the order of the configuration.
    addresses: Vec<Door>,
    /// The first of the numbers that its addresses have among all of this process.
    first_id: u64,
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
}

/// What an answer was, kept for the account after it is sent.
#[derive(Debug)]
struct Answered {
    status: u16,
    cache: &'static str,
    upstream: Option<Duration>,
}

/// A client's mistakes are in the access log; what somebody else has to mend is said here.
fn log_failure(request: &Request, error: &Error) {
    match error.kind().fault() {
        Fault::Client => tracing::debug!(path = %request.path, ?error, "request refused"),
        Fault::Upstream => tracing::warn!(path = %request.path, ?error, "upstream failed"),
        Fault::Mirror => tracing::error!(path = %request.path, ?error, "request failed"),
    }
}
