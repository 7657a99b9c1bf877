//! One address: its connections, and each request on them by the configuration that is in force when
//! its head has come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;

use super::{Account, Mirror, Request, finish_headers};
use crate::express::{self, Express};
use crate::keeper::Company;
use crate::receive;
use crate::respond;
use crate::traces::Span;
use crate::{config, hot};

/// How long a connection may still send a request once the server stops. A client that is about to
/// send its next one is not met with a closed connection.
const HEARD_FOR: Duration = Duration::from_secs(1);

/// The same where another process has taken over: nobody waits for the end of this one.
const HEARD_BEHIND_FOR: Duration = Duration::from_secs(3);

/// The mirror as it is configured now. A reload puts another one in its place.
pub type Current = ArcSwap<Mirror>;

/// The mirror behind one of its addresses.
#[derive(Debug)]
pub struct Front {
    current: Arc<Current>,
    /// Which of the addresses.
    index: usize,
    options: HttpServerOptions,
}

impl Front {
    /// The mirror behind its `index`th address, for connections that begin from now on.
    pub fn new(current: Arc<Current>, index: usize, server: &config::Server) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(server.idle_timeout.get() * 2);
        Self { current, index, options }
    }

    /// Reads a request's head, within its deadline. `None`: there is none, or it is beyond use.
    async fn read(&self, session: &mut ServerSession, stop: &ShutdownWatch) -> Option<Instant> {
        let reused = session.take_connection_user_context().is_some();
        let patience = {
            // Not held while the connection is idle: whatever a reload replaces is let go.
            let mirror = self.current.load();
            let server = &mirror.config.server;
            let idle = if reused { server.idle_timeout.get() } else { Duration::ZERO };
            idle + server.header_timeout.get()
        };
        let mut stop = stop.clone();
        let read = tokio::select! {
            read = tokio::time::timeout(patience, session.read_request()) => read,
            () = self.stopped(&mut stop) => return None,
        };
        match read {
            Ok(Ok(true)) if !respond::is_ambiguous(session) => Some(Instant::now()),
            Ok(answer)
                if !session.is_http2()
                    && answer.as_ref().map_or_else(|e| is_malformed(e), |read| *read) =>
            {
                respond::malformed(session).await;
                None
            }
            Ok(_) | Err(_) => None,
        }
    }
}

impl Front {
    /// Resolves once the server stops, and a moment later, so that who is about to ask is heard.
    async fn stopped(&self, stop: &mut ShutdownWatch) {
        if stop.wait_for(|stopping| *stopping).await.is_ok() {
            let company = self.current.load().store.keeper().company();
            let behind = company == Company::Behind;
            tokio::time::sleep(if behind { HEARD_BEHIND_FOR } else { HEARD_FOR }).await;
        }
    }
}

#[async_trait]
impl HttpServerApp for Front {
    /// One request, from its head to the last byte of its answer.
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        stop: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let received = self.read(&mut session, stop).await?;
        // Only now, so that a right that has been taken away is gone for the next request.
        let mirror = self.current.load();
        let server = &mirror.config.server;
        let trace = mirror.trace(&session);
        set_keepalive(&mut session, stop, server);
        let express = Express::of(&mut session);
        let id = mirror.ready_id(self.index);
        if let Some(express) = &express
            && let Some(prepared) = hot::get(&express::key(&session, id), received)
        {
            let patience = server.send_timeout.get();
            let sent = express.send(&mut session, &prepared, received, patience).await;
            let line = express::line(&session, &prepared, received, &sent, trace.as_ref());
            if mirror.config.log.access {
                line.log();
            }
            line.trace();
            return respond::finish(session, &sent).await;
        }
        let mirror = Guard::into_inner(mirror);
        // On the heap, and only now: a connection that waits for its next request holds none of it.
        Box::pin(mirror.serve(self.index, session, (received, trace), express.is_some())).await
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
        Some(&self.options)
    }
}

impl Mirror {
    /// By what ready answers of the `index`th address go: what was made ready before something was
    /// withdrawn is none any more.
    fn ready_id(&self, index: usize) -> u64 {
        (self.first_id + index as u64) ^ (self.store.keeper().withdrawn() << 32)
    }

    /// Answers a request to the `index`th address, to its end by this configuration.
    async fn serve(
        &self,
        index: usize,
        mut session: ServerSession,
        (received, trace): (Instant, Option<Span>),
        is_express: bool,
    ) -> Option<ReusedHttpStream> {
        let (door, id) = (self.addresses.get(index)?, self.ready_id(index));
        let request = Request { trace, ..Request::take(&session, received) };
        let mut account = Account { kind: "none", ..Account::default() };
        let mut answer = self.reply(door, &mut session, &request, &mut account).await;
        let answered = finish_headers(&mut answer, request.received);
        if is_express && account.is_immutable {
            let about = account.about(&self.metrics);
            express::remember(&express::key(&session, id), &answer, about, received);
        }
        let patience = self.config.server.send_timeout.get();
        let sent = respond::send(&mut session, &request.method, answer, patience).await;
        let line = account.line(&session, &request, &answered, &sent);
        line.count(&self.metrics);
        if self.config.log.access {
            line.log();
        }
        line.trace();
        receive::linger(&mut session).await;
        respond::finish(session, &sent).await
    }
}

/// Pingora has read from the request whether the connection may stay; only how long is ours.
/// Setting it where it is off would undo a defence against request smuggling.
fn set_keepalive(session: &mut ServerSession, stop: &ShutdownWatch, server: &config::Server) {
    session.set_total_drain_timeout(Some(Duration::from_secs(2)));
    if *stop.borrow() {
        session.set_keepalive(None);
    } else if session.get_keepalive().is_some() {
        session.set_keepalive(Some(server.idle_timeout.get().as_secs().max(1)));
    }
}

fn is_malformed(error: &pingora::Error) -> bool {
    matches!(error.etype(), pingora::ErrorType::InvalidHTTPHeader)
}
