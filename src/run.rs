//! Binding, serving, stopping.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::listeners::{L4BufferSettings, ListenerConfig, Listeners, TcpSocketOptions};
use pingora::protocols::{Stream, TcpKeepalive};
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::Admin;
use crate::certificates::Certificates;
use crate::config::{self, Config};
use crate::disk::Disk;
use crate::doors::{self, Door};
use crate::keeper::Bounds;
use crate::metrics::Metrics;
use crate::server::{Front, Mirror};
use crate::steward::Steward;
use crate::store::Store;
use crate::transport::{self, Gate, Places};
use crate::upkeep;

/// A mirror that is running.
#[derive(Debug)]
pub struct Running {
    /// Where clients connect.
    pub addresses: Vec<SocketAddr>,
    /// Where it is watched.
    pub admin: SocketAddr,
    mirror: Arc<Mirror>,
    stop_pull: watch::Sender<bool>,
    stop_admin: watch::Sender<bool>,
    services: Vec<JoinHandle<()>>,
    places: Arc<Places>,
    watched: Watched,
    drain_timeout: Duration,
}

/// Starts a mirror. Every failure is one sentence.
///
/// # Errors
/// Where an address cannot be bound or the cache folder cannot be used.
pub fn start(config: &Config) -> anyhow::Result<Running> {
    let disk = Disk::open(&config.cache.path)?;
    let metrics = Arc::new(Metrics::new()?);
    let store = Arc::new(Store::new(
        disk,
        config.cache.memory.bytes(),
        bounds(&config.cache),
        Arc::clone(&metrics),
    ));
    let mirror = Arc::new(Mirror::new(config, Arc::clone(&store), Arc::clone(&metrics))?);
    // Only now: what is hosted must be known to be before anything can leave.
    upkeep::start(&store, config.cache.scrub_rate.bytes());
    let wanted: Vec<SocketAddr> = config.listen.iter().map(|l| l.address).collect();
    let pull = bind(&wanted)?;
    let admin = bind(&[config.admin.address])?;
    let addresses = local(&pull)?;
    let admin_address = local(&admin)?[0];
    let certificates = config.listen.iter().map(|l| l.tls.as_ref().map(Certificates::load));
    let certificates: Vec<Option<Arc<Certificates>>> = certificates
        .map(|one| one.transpose().map_err(anyhow::Error::msg))
        .collect::<anyhow::Result<_>>()?;
    let places = Places::new(&config.server, Arc::clone(&metrics));
    let steward = Steward::load(&config.admin, doors::random_key()?).map_err(anyhow::Error::msg)?;
    let steward = Arc::new(steward);
    let (stop_pull, pull_stopped) = watch::channel(false);
    let (stop_admin, admin_stopped) = watch::channel(false);
    let tended = Arc::clone(&mirror);
    let mut services = vec![
        tokio::spawn(async move { tended.hosting.tend().await }),
        serve(
            "admin",
            admin,
            Plain(Arc::new(Admin::new(
                Arc::clone(&mirror),
                addresses.clone(),
                Arc::clone(&steward),
                config.admin.guard_metrics,
            ))),
            admin_stopped,
        )?,
    ];
    if let Some(issuer) = mirror.doors.issuer().cloned() {
        services.push(tokio::spawn(async move { issuer.tend().await }));
    }
    for ((bound, listen), certificates) in pull.into_iter().zip(&config.listen).zip(&certificates) {
        let tls = certificates.as_ref().map(transport::acceptor).transpose();
        let gate = Gate {
            app: Arc::new(Front::new(Arc::clone(&mirror), Door::new(listen))),
            places: Arc::clone(&places),
            tls: tls.map_err(anyhow::Error::msg)?,
        };
        services.push(serve("pull", vec![bound], gate, pull_stopped.clone())?);
    }
    let certificates = certificates.into_iter().flatten().collect();
    let watched = Watched { certificates, steward, mirror: Arc::clone(&mirror) };
    services.push(tokio::spawn(watch_files(watched.clone())));
    Ok(Running {
        addresses,
        admin: admin_address,
        mirror,
        stop_pull,
        stop_admin,
        services,
        places,
        watched,
        drain_timeout: config.server.drain_timeout.get(),
    })
}

fn bounds(cache: &config::Cache) -> Bounds {
    Bounds {
        max_size: cache.max_size.bytes(),
        min_free: cache.min_free,
        max_age: cache.max_age.map(config::units::Span::get),
    }
}

impl Running {
    /// The mirror itself, for those who look at its metrics.
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }

    /// Reads the files again that change while we run: certificates, users and keys. Connections
    /// under way stay.
    pub async fn reload(&self) {
        self.watched.reload(true).await;
    }

    /// Stops: no new connections; transfers under way go on to their end or to the deadline.
    /// Returns whether all of them came to their end.
    pub async fn stop(self) -> bool {
        let deadline = Instant::now() + self.drain_timeout;
        let _ = self.stop_pull.send(true); // nobody listens any more: then it has stopped
        let drained = tokio::time::timeout_at(deadline.into(), self.places.empty()).await.is_ok();
        // What has been downloaded to its end is still to be kept; the rest is resumed some day.
        while drained && Instant::now() < deadline && self.mirror.fills.is_publishing() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The next start shall know what was used last.
        let flush = self.mirror.store.blocking(|s| {
            s.keeper().flush();
            s.disk().sync();
            Ok(())
        });
        let _ = flush.await; // only the order would suffer
        let _ = self.stop_admin.send(true);
        for service in self.services {
            service.abort();
        }
        drained
    }
}

/// Looks at the files each second, so that whoever renews a certificate need tell nobody.
async fn watch_files(watched: Watched) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        watched.reload(false).await;
    }
}

/// What is read from files of its own that may change at any time.
#[derive(Clone, Debug)]
struct Watched {
    certificates: Vec<Arc<Certificates>>,
    steward: Arc<Steward>,
    mirror: Arc<Mirror>,
}

impl Watched {
    async fn reload(&self, force: bool) {
        let doors = &self.mirror.doors;
        let (people, issuer) = (doors.people().cloned(), doors.issuer().cloned());
        let (certificates, steward) = (self.certificates.clone(), Arc::clone(&self.steward));
        let none = certificates.is_empty() && people.is_none() && issuer.is_none();
        if none && !steward.wants_token() {
            return;
        }
        let read = move || {
            let tell = |what: &str, outcome: Result<bool, String>| match outcome {
                Ok(true) => tracing::info!("new {what} are in force"),
                Ok(false) => {}
                Err(why) => tracing::error!(%why, "new {what} are refused; the old ones stay"),
            };
            for one in certificates {
                tell("certificates", one.reload(force));
            }
            tell("tokens", steward.reload(force));
            if let Some(people) = people {
                tell("users", people.reload(force));
            }
            if let Some(issuer) = issuer {
                tell("keys", issuer.reload(force));
            }
        };
        let _ = tokio::task::spawn_blocking(read).await; // a panic there is told by the runtime
    }
}

/// Binds ourselves: Pingora retries for 30 s and then panics, and never tells the port.
fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    addresses
        .iter()
        .map(|address| {
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
                // Heads are read into a buffer of the session's own, and small answers are sent by
                // one call of ours: what Pingora would hold for each idle connection is saved.
                .l4_buffer(L4BufferSettings::new(0, 2 * 1024))
                .tcp_socket_options(socket_options()),
        );
        fds.add(address, listener.into_raw_fd());
    }
    let fds: ListenFds = Arc::new(parking_lot::Mutex::new(fds));
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
