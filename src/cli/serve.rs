//! `serve`: runs the mirror until it is told to stop, and tells a person at a terminal what next.

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{File, OverrideArgs, failed, load, runtime};
use crate::config::{self, Changes, Config, Overrides};
use crate::handover::{self, Inherited, Successor};
use crate::{client, run, telemetry};

pub(super) fn serve(file: &File, overrides: OverrideArgs) -> ExitCode {
    let overrides =
        Overrides { listen: overrides.listen, admin: overrides.admin, cache: overrides.cache };
    let loaded = match load(file, &overrides) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    telemetry::start(&loaded.config.log);
    let mut loaded = loaded;
    let files = raise_file_limit();
    fit_connections(&mut loaded.config, files);
    let runtime = match runtime(loaded.config.server.threads) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let outcome = runtime.block_on(async {
        let reader = Reader { path: file.config.clone(), overrides, files };
        serve_until_told(&loaded.config, &reader).await
    });
    telemetry::flush();
    // Fills that nobody waits for end here; what they have is resumed by the next start.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Each connection and each open blob takes a descriptor; the usual soft limit of 1024 is for
/// programs that use select(2).
fn raise_file_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const ENOUGH: u64 = 4096;
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) if limit < ENOUGH => {
            tracing::warn!(
                limit,
                "few open files are allowed; raise the hard limit (LimitNOFILE, ulimit -n)"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
    raised.unwrap_or(1024)
}

/// A connection takes a descriptor, and one more while its client is slow; the rest is for content,
/// upstreams and the log. A connection too many waits, one without a descriptor is cut off.
fn fit_connections(config: &mut Config, files: u64) {
    const FEW: usize = 2048;
    let fit = usize::try_from(files / 5 * 4).unwrap_or(usize::MAX).max(16);
    if config.server.max_connections > fit {
        if fit < FEW {
            tracing::warn!(
                fit,
                files,
                "fewer connections than server.max_connections: few open files are allowed"
            );
        }
        config.server.max_connections = fit;
    }
}

/// Reads the configuration again, as it was read at the start.
struct Reader {
    path: Option<PathBuf>,
    overrides: Overrides,
    /// Files that may be open.
    files: u64,
}

impl Reader {
    /// Puts the configuration into force as it is now, or tells why not: every fault where it stands,
    /// as `check` does. The one before stays in force then.
    async fn reload(&self, running: &run::Running) {
        let loaded = Config::load(self.path.as_deref(), config::environment(), &self.overrides);
        let mut loaded = match loaded {
            Ok(loaded) => loaded,
            Err(faults) => {
                running.not_reloaded();
                for fault in &faults {
                    tracing::error!(%fault, "the new configuration is faulty; the old one stays");
                }
                return;
            }
        };
        if self.path.is_some() && loaded.says_nothing {
            running.not_reloaded();
            tracing::error!(file = %loaded.source, "the new configuration is empty; the old one stays, since a file that was cut would open what is closed");
            return;
        }
        for warning in &loaded.warnings {
            tracing::warn!(%warning, "the new configuration works, but is hardly meant so");
        }
        fit_connections(&mut loaded.config, self.files);
        match running.reload(loaded.config).await {
            Ok(changes) => tell(&changes),
            Err(error) => {
                running.not_reloaded();
                let error = format!("{error:#}");
                tracing::error!(error, "the new configuration cannot be used; the old one stays");
            }
        }
    }
}

/// Says what a reload has changed, and what it could not.
fn tell(changes: &Changes) {
    if changes.taken.is_empty() {
        tracing::info!("configuration reloaded: nothing has changed in it");
    } else {
        tracing::info!(changed = changes.taken.join(" "), "configuration reloaded");
    }
    if !changes.waiting.is_empty() {
        let keys = changes.waiting.join(" ");
        tracing::warn!(keys, "these changes take a restart or an upgrade (SIGUSR2)");
    }
}

async fn serve_until_told(config: &Config, reader: &Reader) -> anyhow::Result<()> {
    let mut stop_told = StopSignals::listen()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut upgrade_told = signal(SignalKind::user_defined2())?;
    let program = handover::own_program()?;
    let inherited =
        Inherited::take().context("what another process was to hand over has not come")?;
    let is_successor = inherited.before.is_some();
    let running = run::start_with(config, inherited)?;
    say!("{}", banner(config, &running));
    tracing::info!(addresses = ?running.addresses, admin = %running.admin, cache = %config.cache.path.display(), "serving");
    if !is_successor {
        tell_systemd(&[NotifyState::Ready]); // else the process before tells of us
    }
    let mut upgrade = pin!(None);
    loop {
        let upgrading = async {
            match upgrade.as_mut().as_pin_mut() {
                Some(upgrade) => upgrade.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop_told.told() => break,
            _ = hangup.recv() => {
                if let Ok(now) = NotifyState::monotonic_usec_now() {
                    tell_systemd(&[NotifyState::Reloading, now]);
                }
                reader.reload(&running).await;
                tell_systemd(&[NotifyState::Ready]);
            }
            _ = upgrade_told.recv() => {
                if upgrade.is_some() {
                    tracing::error!("an upgrade is under way; this one is refused");
                } else {
                    upgrade.set(Some(running.upgrade(&program)));
                }
            }
            outcome = upgrading => {
                upgrade.set(None);
                match outcome {
                    Ok(successor) => {
                        hand_over(&running, successor, &mut stop_told).await;
                        return Ok(());
                    }
                    Err(why) => tracing::error!(why, "upgrade failed; this process goes on"),
                }
            }
        }
    }
    upgrade.set(None); // a new process that has not taken over is ended
    stop(&running).await;
    Ok(())
}

async fn stop(running: &run::Running) {
    tell_systemd(&[NotifyState::Stopping]);
    let drain_timeout = running.mirror().config().server.drain_timeout;
    tracing::info!(%drain_timeout, "stopping: transfers under way go on to their end");
    if !running.stop().await {
        tracing::warn!("drain_timeout is over: transfers were cut off");
    }
}

/// Lets the new process take over, and finishes what is under way here.
async fn hand_over(running: &run::Running, successor: Successor, stop_told: &mut StopSignals) {
    let pid = successor.id();
    tell_systemd(&[NotifyState::MainPid(pid)]);
    tracing::info!(
        pid,
        "upgrade: the new process serves; transfers under way go on here to their end"
    );
    tokio::select! {
        () = running.hand_over(successor) => {
            tracing::info!("upgrade: everything that was under way has come to its end");
        }
        () = stop_told.told() => {
            if !running.stop().await {
                tracing::warn!("drain_timeout is over: transfers were cut off");
            }
        }
    }
}

/// What ends the process.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits until it is told to stop. Cancel safe.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Tells a `Type=notify` unit where we are; elsewhere there is nobody to tell.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// What a person at a terminal needs next.
fn banner(config: &Config, running: &run::Running) -> String {
    use std::fmt::Write;
    let mut text = format!("pierhead {}\n", env!("CARGO_PKG_VERSION"));
    for (address, listen) in running.addresses.iter().zip(&config.listen) {
        let scheme = if listen.tls.is_some() { "https" } else { "http" };
        let _ = writeln!(text, "  mirror   {scheme}://{address}"); // a String takes all
    }
    let _ = writeln!(text, "  admin    http://{}", running.admin);
    let _ = writeln!(
        text,
        "  cache    {} (at most {})",
        config.cache.path.display(),
        config.cache.max_size
    );
    let names: Vec<&str> = config.upstreams.keys().map(String::as_str).collect();
    let _ = writeln!(text, "  mirrors  {}", names.join(" "));
    let mirror = client::Mirror::new(config, running.addresses.first().copied());
    let _ = write!(text, "\nDocker, in /etc/docker/daemon.json:\n{}", mirror.docker());
    if let Some(name) = config.default_upstream.as_deref().or(names.first().copied()) {
        let _ = write!(
            text,
            "\ncontainerd, in /etc/containerd/certs.d/{name}/hosts.toml:\n{}",
            mirror.containerd(name)
        );
        let _ = writeln!(
            text,
            "\nAll registries: pierhead client containerd --write /etc/containerd/certs.d"
        );
    }
    text
}
