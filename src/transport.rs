//! Between the socket and HTTP: places for connections, in all and by address, and TLS.
//!
//! The handshake is made here and not by Pingora's listener, so that it takes a place and keeps our
//! deadline: there it may take a minute and counts nowhere.

use std::any::Any;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::{
    HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp,
};
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::tls::TlsRef;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use tokio::sync::{Notify, Semaphore};

use crate::certificates::{Authorities, Certificates, common_name};
use crate::config;
use crate::metrics::Metrics;
use crate::pacing::Pacing;

/// Connections that wait for a place; more are closed, since each costs a descriptor.
const WAITING_MAX: usize = 1024;

/// How long a client's first bytes are waited for once the server stops.
const STOPPED_WITHIN: Duration = Duration::from_secs(3);

/// How long Pingora keeps a connection until the mirror has said for how long.
const KEPT_SECONDS: u64 = 60;

/// What a client's certificate says. Kept with the connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The common name of its subject.
    pub user: Option<Arc<str>>,
}

/// The places for connections, shared by all addresses.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    bounds: Mutex<Bounds>,
    waiting: Semaphore,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    by_address_max: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Places {
    /// As configured.
    pub fn new(server: &config::Server, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(server.max_connections)),
            bounds: Mutex::new(Bounds::of(server)),
            waiting: Semaphore::new(WAITING_MAX),
            by_address: Mutex::default(),
            by_address_max: AtomicUsize::new(server.max_connections_per_address),
            metrics,
        })
    }

    /// Changes how many there are. Places too many are taken away as they are given back; nobody
    /// is sent off.
    pub fn set(&self, server: &config::Server) {
        let mut bounds = self.bounds.lock();
        let (before, now) = (bounds.count, server.max_connections);
        *bounds = Bounds::of(server);
        self.by_address_max.store(server.max_connections_per_address, Ordering::Relaxed);
        if now >= before {
            self.all.add_permits(now - before);
            return;
        }
        let all = Arc::clone(&self.all);
        tokio::spawn(async move {
            for _ in now..before {
                // In turn with the connections that wait. Nobody closes the semaphore.
                let Ok(place) = all.acquire().await else { return };
                place.forget();
            }
        });
    }

    /// How long a handshake may take, and a connection may wait for its place.
    fn patience(&self) -> Duration {
        self.bounds.lock().handshake
    }

    /// Waits until all places are free.
    pub async fn empty(&self) {
        let all = u32::try_from(self.bounds.lock().count).unwrap_or(u32::MAX);
        // Nobody closes the semaphore; if somebody did, nothing would be left to wait for.
        let _ = self.all.acquire_many(all).await;
    }

    /// A seat among those from one address; `None` where they have all that are theirs.
    fn seat(&self, address: IpAddr) -> Option<Seat<'_>> {
        let mut by_address = self.by_address.lock();
        let taken = by_address.entry(address).or_default();
        if *taken >= self.by_address_max.load(Ordering::Relaxed) {
            return None;
        }
        *taken += 1;
        self.metrics.connections.inc();
        Some(Seat { places: self, address })
    }
}

struct Seat<'a> {
    places: &'a Places,
    address: IpAddr,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.places.metrics.connections.dec();
        let mut by_address = self.places.by_address.lock();
        if let Some(taken) = by_address.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// The bounds, as configured.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    count: usize,
    handshake: Duration,
}

impl Bounds {
    fn of(server: &config::Server) -> Self {
        Self { count: server.max_connections, handshake: server.header_timeout.get() }
    }
}

/// What the connections of one address come through: its TLS, and what serves them.
pub struct Passage<A> {
    /// What serves.
    pub app: Arc<A>,
    /// `None` for plain HTTP.
    pub tls: Option<Secured>,
}

/// TLS over certificates that may be swapped.
#[derive(Clone)]
pub struct Secured {
    /// The certificates.
    pub certificates: Arc<Certificates>,
    acceptor: Arc<Acceptor>,
}

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secured({:?})", self.certificates.settings())
    }
}

impl<A> std::fmt::Debug for Passage<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Passage(tls: {})", self.tls.is_some())
    }
}

/// One address. A reload may give it another passage; connections go on through theirs.
#[derive(Debug)]
pub struct Gate<A> {
    /// For connections that come from now on.
    pub passage: Arc<ArcSwap<Passage<A>>>,
    /// Shared by all addresses.
    pub places: Arc<Places>,
    /// The listener's own.
    pub pacing: Pacing,
}

impl<A: HttpServerApp + Send + Sync + 'static> Gate<A> {
    /// One connection from its first byte to its last. What is big is on the heap while it is needed:
    /// idle connections are many.
    async fn connection(&self, stream: Stream, stop: ShutdownWatch) -> Option<()> {
        let address = self.arrive(&stream);
        let places = &self.places;
        let _seat = places.seat(address)?;
        let _place = if let Ok(place) = places.all.try_acquire() {
            place
        } else {
            let _waiting = places.waiting.try_acquire().ok()?;
            tokio::time::timeout(places.patience(), places.all.acquire()).await.ok()?.ok()?
        };
        let passage = Guard::into_inner(self.passage.load());
        let stream = match &passage.tls {
            Some(tls) => Box::pin(self.enter(tls, stream)).await?,
            None => stream,
        };
        let app = Arc::clone(&passage.app);
        drop(passage);
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            self.many_at_once(app, stream, &stop).await;
        } else {
            one_by_one(&app, stream, &stop).await;
        }
        Some(())
    }

    /// From which address a connection comes; it is sent to as is right for one from there.
    fn arrive(&self, stream: &Stream) -> IpAddr {
        let ends = stream.get_socket_digest();
        let ip = |end: Option<&SocketAddr>| Some(end?.as_inet()?.ip().to_canonical());
        let peer = ends.as_ref().and_then(|ends| ip(ends.peer_addr()));
        let peer = peer.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        if let Some(socket) = stream.as_any().downcast_ref::<Socket>() {
            let local = || ends.as_ref().and_then(|ends| ip(ends.local_addr()));
            self.pacing.settle(socket.as_raw_fd(), peer, local);
        }
        peer
    }

    /// The requests of an HTTP/2 connection, by Pingora, which waits for ever for the client's first
    /// bytes: not here, and not once the server stops.
    async fn many_at_once(&self, app: Arc<A>, stream: Stream, stop: &ShutdownWatch) {
        let app = Arc::new(Prefaced { app, is_next: AtomicBool::new(false), came: Notify::new() });
        let mut serve = ServerApp::process_new(&app, stream, stop);
        let mut stopping = stop.clone();
        let came = tokio::select! {
            _ = &mut serve => return,
            came = tokio::time::timeout(self.places.patience(), app.came.notified()) => came.is_ok(),
            () = async {
                // Whoever has just connected is heard.
                let _ = stopping.wait_for(|stopping| *stopping).await;
                tokio::time::sleep(STOPPED_WITHIN).await;
            } => false,
        };
        if came {
            serve.await;
        }
    }

    /// Makes the handshake, within the deadline.
    async fn enter(&self, tls: &Secured, stream: Stream) -> Option<Stream> {
        let tls = &tls.acceptor;
        let socket = stream.into_any().downcast::<Socket>().ok()?;
        match tokio::time::timeout(self.places.patience(), tls.tls_handshake(*socket)).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => None,
        }
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ServerApp for Gate<A> {
    /// Goes on in a task of its own. Pingora's has room for a handshake and for HTTP/2 for as long as
    /// it lives: 20 KB for each connection, three quarters of all that an idle one took.
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let (gate, stop) = (Arc::clone(self), shutdown.clone());
        tokio::spawn(async move { gate.connection(stream, stop).await });
        None
    }
}

/// An application that hears when a client's HTTP/2 preface has come: Pingora asks for its options for
/// HTTP/2 before, and for those of the server once more after that.
struct Prefaced<A> {
    app: Arc<A>,
    is_next: AtomicBool,
    came: Notify,
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> HttpServerApp for Prefaced<A> {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.app.process_new_http(session, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.is_next.store(true, Ordering::Relaxed);
        self.app.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        if self.is_next.load(Ordering::Relaxed) {
            self.came.notify_one();
        }
        self.app.server_options()
    }
}

/// The requests of an HTTP/1 connection, as Pingora's own loop has them.
async fn one_by_one<A>(app: &Arc<A>, stream: Stream, stop: &ShutdownWatch)
where
    A: HttpServerApp + Send + Sync + 'static,
{
    // Not a part of the loop's own future, which lives as long as the connection.
    let ask = |stream: Stream, kept: Option<HttpPersistentSettings>| {
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive((!*stop.borrow()).then_some(KEPT_SECONDS));
        if let Some(kept) = kept {
            kept.apply_to_session(&mut session);
        }
        app.process_new_http(session, stop)
    };
    let mut next = ask(stream, None).await;
    while let Some((stream, kept)) = next.map(ReusedHttpStream::consume) {
        next = ask(stream, kept).await;
    }
}

/// TLS 1.2 and 1.3 with HTTP/2 by ALPN, over certificates that may be swapped.
///
/// # Errors
/// One sentence, where the settings are refused.
pub fn secured(certificates: &Arc<Certificates>) -> Result<Secured, String> {
    let mut settings =
        TlsSettings::with_callbacks(Box::new(Introduce)).map_err(|e| e.to_string())?;
    settings.set_cert_resolver(Arc::clone(certificates) as _);
    if certificates.asks_clients() {
        settings.set_client_cert_verifier(Arc::new(Authorities(Arc::clone(certificates))));
    }
    settings.enable_h2();
    // Panics on a bad pair, but only on one that it loads itself.
    let acceptor = Arc::new(settings.build());
    Ok(Secured { certificates: Arc::clone(certificates), acceptor })
}

/// Notes who the client's certificate says it is.
struct Introduce;

#[async_trait]
impl TlsAccept for Introduce {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let user = common_name(tls.peer_certificate_der()?);
        Some(Arc::new(Peer { user }))
    }
}
