//! Binding, serving, stopping.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::listeners::{L4BufferSettings, ListenerConfig, Listeners, TcpSocketOptions};
use pingora::protocols::{Stream, TcpKeepalive};
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::Admin;
use crate::config::{Changes, Config};
use crate::disk::Disk;
use crate::doors;
use crate::handover::{Inherited, Listening};
use crate::keeper::Company;
use crate::metrics::Metrics;
use crate::pacing::Pacing;
use crate::server::{Current, Front, Mirror, bounds};
use crate::steward::Steward;
use crate::store::Store;
use crate::transport::{Gate, Passage, Places};
use crate::upkeep;

mod reload;
mod upgrade;

use reload::unix_seconds;

/// How long a connection that has been taken may be without its place.
const SEATED_WITHIN: Duration = Duration::from_millis(100);

/// What Pingora gathers of an answer before it is sent. Each connection holds it, idle or not; on
/// plain HTTP/1 small answers are sent by one call of ours.
const WRITE_BUFFER_BYTES: usize = 1024;

/// The same over TLS, where head and body are records of their own: most manifests fit with theirs.
const WRITE_BUFFER_TLS_BYTES: usize = 4096;

/// A mirror that is running.
#[derive(Debug)]
pub struct Running {
    /// Where clients connect.
    pub addresses: Vec<SocketAddr>,
    /// Where it is watched.
    pub admin: SocketAddr,
    configured: Arc<Configured>,
    stop_pull: watch::Sender<bool>,
    stop_admin: watch::Sender<bool>,
    services: Vec<JoinHandle<()>>,
    /// What accepts the clients' connections.
    pulls: Vec<JoinHandle<()>>,
    /// The sockets, to be handed over: the admin address comes last.
    listening: Vec<Listening>,
}

/// What a reload may change.
#[derive(Debug)]
struct Configured {
    current: Arc<Current>,
    passages: Vec<Arc<ArcSwap<Passage<Front>>>>,
    places: Arc<Places>,
    steward: Arc<Steward>,
    /// One reload at a time.
    turn: Mutex<()>,
}

/// Starts a mirror. Every failure is one sentence.
///
/// # Errors
/// Where an address cannot be bound or the cache folder cannot be used.
pub fn start(config: &Config) -> anyhow::Result<Running> {
    start_with(config, Inherited::default())
}

/// Starts a mirror with what another process has opened for it, and tells that process once this one
/// serves.
///
/// # Errors
/// As `start`.
pub fn start_with(config: &Config, mut inherited: Inherited) -> anyhow::Result<Running> {
    doors::inherit_secret(&inherited.secret);
    let disk = Disk::open_with(&config.cache.path, inherited.lock.take())?;
    let shared = disk.is_handed();
    let metrics = Arc::new(Metrics::new()?);
    let store = Arc::new(Store::new(
        disk,
        config.cache.memory.bytes(),
        bounds(&config.cache),
        Arc::clone(&metrics),
    ));
    if shared {
        store.keeper().set_company(Company::Before);
    }
    store.set_scrub_rate(config.cache.scrub_rate.bytes());
    let mirror = Arc::new(Mirror::new(config, Arc::clone(&store), Arc::clone(&metrics))?);
    // Only now: what is hosted must be known to be before anything can leave.
    upkeep::start(&store);
    let wanted: Vec<SocketAddr> = config.listen.iter().map(|l| l.address).collect();
    let pull = bind(&wanted, &mut inherited)?;
    let admin = bind(&[config.admin.address], &mut inherited)?;
    for address in inherited.close_rest() {
        tracing::warn!(%address, "a socket that was handed to this process is in nobody's configuration; it is closed");
    }
    let (addresses, admin_address) = (local(&pull)?, local(&admin)?[0]);
    let configured_as = wanted.iter().copied().chain([config.admin.address]);
    let listening = pull.iter().chain(&admin).zip(configured_as).map(|(listener, configured)| {
        let (local, fd) = (listener.local_addr()?, listener.as_raw_fd());
        Ok(Listening { configured, local, fd })
    });
    let listening = listening.collect::<anyhow::Result<_>>()?;
    let tended = mirror.hosting.clone();
    let unknown = shared && (inherited.hosting || !config.hosted.repositories.is_empty());
    let current = Arc::new(Current::new(mirror));
    let steward = Steward::load(&config.admin, doors::random_key()?).map_err(anyhow::Error::msg)?;
    let steward = Arc::new(steward);
    let places = Places::new(&config.server, metrics.clone());
    let configured = Configured::new(config, current, places, Arc::clone(&steward))?;
    let configured = Arc::new(configured);
    let (stop_pull, pull_stopped) = watch::channel(false);
    let (stop_admin, admin_stopped) = watch::channel(false);
    let admin_app = Admin::new(
        Arc::clone(&configured.current),
        addresses.clone(),
        steward,
        config.admin.guard_metrics,
    );
    let mut services = vec![
        tokio::spawn(async move { tended.tend(unknown).await }),
        serve("admin", admin, WRITE_BUFFER_BYTES, Plain(Arc::new(admin_app)), admin_stopped)?,
    ];
    let pulls = open_gates(pull, &configured, &pull_stopped)?;
    services.push(tokio::spawn(watch_files(Arc::clone(&configured))));
    metrics.configured(Some(unix_seconds()));
    if let Some(before) = inherited.before {
        upgrade::take_over(before, configured.current.load_full(), shared);
    }
    Ok(Running {
        addresses,
        admin: admin_address,
        configured,
        stop_pull,
        stop_admin,
        services,
        pulls,
        listening,
    })
}

impl Running {
    /// The mirror itself, for those who look at its metrics.
    pub fn mirror(&self) -> Arc<Mirror> {
        self.configured.current.load_full()
    }

    /// Puts another configuration into force, all of it that needs no restart or nothing at all.
    /// Requests under way go on by the one they began with.
    ///
    /// # Errors
    /// One sentence, where something of it cannot be used; the one before stays in force then.
    pub async fn reload(&self, config: Config) -> anyhow::Result<Changes> {
        let configured = Arc::clone(&self.configured);
        tokio::task::spawn_blocking(move || configured.reload(&config)).await?
    }

    /// Notes that a configuration could not be read.
    pub fn not_reloaded(&self) {
        self.mirror().metrics.configured(None);
    }

    /// Stops: no new connections; transfers under way go on to their end or to the deadline.
    /// Returns whether all of them came to their end.
    pub async fn stop(&self) -> bool {
        let mirror = self.mirror();
        let deadline = Instant::now() + mirror.config().server.drain_timeout.get();
        self.stop_accepting(SEATED_WITHIN).await;
        let empty = self.configured.places.empty();
        let drained = tokio::time::timeout_at(deadline.into(), empty).await.is_ok();
        // What has been downloaded to its end is still to be kept; the rest is resumed some day.
        while drained && Instant::now() < deadline && mirror.fills.is_publishing() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.flush().await;
        drained
    }

    /// Takes no more connections. Those that have just been taken get their places within `moment`:
    /// until then nobody knows of them, and the end of the process would reset them.
    async fn stop_accepting(&self, moment: Duration) {
        let _ = self.stop_pull.send(true); // nobody listens any more: then it has stopped
        while !self.pulls.iter().all(JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(moment).await;
    }

    /// Ends everything, so that the next start knows what was used last.
    async fn flush(&self) {
        let mirror = self.mirror();
        let flush = mirror.store.blocking(|s| {
            s.keeper().flush();
            s.disk().sync();
            Ok(())
        });
        let _ = flush.await; // only the order would suffer
        if let Some(traces) = &mirror.traces {
            traces.flush().await;
        }
        let _ = self.stop_admin.send(true);
        for service in &self.services {
            service.abort();
        }
    }
}

/// Lets clients in, each address by its passage.
fn open_gates(
    bound: Vec<TcpListener>,
    configured: &Configured,
    stopped: &ShutdownWatch,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let open = |(listener, passage): (TcpListener, &Arc<ArcSwap<Passage<Front>>>)| {
        // For good: a reload may begin or end TLS here, and then only this is not made for it.
        let is_secured = passage.load().tls.is_some();
        let write_buffer = if is_secured { WRITE_BUFFER_TLS_BYTES } else { WRITE_BUFFER_BYTES };
        let gate = Gate {
            passage: Arc::clone(passage),
            places: Arc::clone(&configured.places),
            pacing: Pacing::lift(&listener),
        };
        serve("pull", vec![listener], write_buffer, gate, stopped.clone())
    };
    bound.into_iter().zip(&configured.passages).map(open).collect()
}

/// Looks at the files each second, so that whoever renews a certificate need tell nobody.
async fn watch_files(configured: Arc<Configured>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let configured = Arc::clone(&configured);
        // A panic there is told by the runtime.
        let _ = tokio::task::spawn_blocking(move || configured.look_at_files()).await;
    }
}

/// Binds ourselves: Pingora retries for 30 s and then panics, and never tells the port.
fn bind(addresses: &[SocketAddr], inherited: &mut Inherited) -> anyhow::Result<Vec<TcpListener>> {
    addresses
        .iter()
        .map(|address| {
            if let Some(listener) = inherited.listener(*address) {
                return Ok(listener);
            }
            let listener = TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}; stop what listens there, or choose another address (`listen`, `admin`, or --listen, --admin)"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .collect()
}

fn local(listeners: &[TcpListener]) -> anyhow::Result<Vec<SocketAddr>> {
    listeners.iter().map(|l| Ok(l.local_addr()?)).collect()
}

fn serve<A>(
    name: &str,
    bound: Vec<TcpListener>,
    write_buffer: usize,
    app: A,
    stopped: ShutdownWatch,
) -> anyhow::Result<JoinHandle<()>>
where
    A: ServerApp + Send + Sync + 'static,
{
    let mut listeners = Listeners::new();
    let mut fds = Fds::new();
    for listener in bound {
        let address = listener.local_addr()?.to_string();
        listeners.add_listener(
            ListenerConfig::tcp(&address)
                // Heads are read into a buffer of the session's own: none here.
                .l4_buffer(L4BufferSettings::new(0, write_buffer))
                .tcp_socket_options(socket_options()),
        );
        fds.add(address, listener.into_raw_fd());
    }
    let fds: ListenFds = Arc::new(Mutex::new(fds));
    let mut service = Service::with_listeners(name.to_owned(), listeners, app);
    Ok(tokio::spawn(async move { service.start_service(Some(fds), stopped, 1).await }))
}

/// Pullers that vanish without a word are found after a minute and a half.
fn socket_options() -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(10),
        count: 3,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    });
    options
}

struct Plain(Arc<Admin>);

#[async_trait]
impl ServerApp for Plain {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        ServerApp::process_new(&self.0, stream, shutdown).await
    }
}
