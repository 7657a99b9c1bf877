//! Another configuration for a mirror that runs: everything is built first, and put into force when
//! nothing can fail any more.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Configured;
use crate::certificates::{Certificates, Fresh};
use crate::config::{Changes, Config, Listen};
use crate::server::{Current, Front};
use crate::steward::Steward;
use crate::telemetry;
use crate::transport::{Passage, Places, Secured, secured};

/// A passage that is built, and new certificates for one that it shares with the old passage.
struct Prepared {
    passage: Passage<Front>,
    fresh: Option<Fresh>,
}

impl Configured {
    /// As configured at the start.
    pub(super) fn new(
        config: &Config,
        current: Arc<Current>,
        places: Arc<Places>,
        steward: Arc<Steward>,
    ) -> anyhow::Result<Self> {
        let passage = |(index, listen)| {
            let prepared = prepare(&current, config, index, listen, None)?;
            Ok(Arc::new(ArcSwap::from_pointee(prepared.passage)))
        };
        let passages = config.listen.iter().enumerate().map(passage);
        let passages = passages.collect::<anyhow::Result<_>>()?;
        Ok(Self { current, passages, places, steward, turn: Mutex::default() })
    }

    /// See `Running::reload`. Blocks.
    pub(super) fn reload(&self, config: &Config) -> anyhow::Result<Changes> {
        let _turn = self.turn.lock();
        let before = self.current.load_full();
        let (config, changes) = before.config().renewed(config);
        let mirror = Arc::new(before.renewed(&config)?);
        let known = self.passages.iter().zip(&config.listen).enumerate();
        let prepared = known.map(|(index, (passage, listen))| {
            let tls = passage.load().tls.clone();
            prepare(&self.current, &config, index, listen, tls)
        });
        let prepared: Vec<Prepared> = prepared.collect::<anyhow::Result<_>>()?;

        // From here on nothing can fail.
        self.current.store(Arc::clone(&mirror));
        for (passage, Prepared { passage: new, fresh }) in self.passages.iter().zip(prepared) {
            if let (Some(fresh), Some(tls)) = (fresh, &new.tls) {
                tls.certificates.take(fresh);
            }
            passage.store(Arc::new(new));
        }
        self.places.set(&config.server);
        telemetry::set_level(&config.log);
        mirror.commit();
        mirror.metrics.configured(Some(unix_seconds()));
        tokio::task::spawn_blocking(move || mirror.store.keeper().make_room());
        Ok(changes)
    }

    /// Reads the files again that may change at any time: certificates, users and keys. Blocks.
    pub(super) fn look_at_files(&self) {
        let tell = |what: &str, outcome: Result<bool, String>| match outcome {
            Ok(true) => tracing::info!("new {what} are in force"),
            Ok(false) => {}
            Err(why) => tracing::error!(%why, "new {what} are refused; the old ones stay"),
        };
        for passage in &self.passages {
            if let Some(tls) = &passage.load().tls {
                tell("certificates", tls.certificates.reload(false));
            }
        }
        tell("tokens", self.steward.reload(false));
        let mirror = self.current.load();
        if let Some(people) = mirror.doors.people() {
            tell("users", people.reload(false));
        }
        if let Some(issuer) = mirror.doors.issuer() {
            tell("keys", issuer.reload(false));
        }
    }
}

/// Builds what connections to an address come through. Certificates of the same files keep their
/// sessions, and are read again.
fn prepare(
    current: &Arc<Current>,
    config: &Config,
    index: usize,
    listen: &Listen,
    known: Option<Secured>,
) -> anyhow::Result<Prepared> {
    let app = Arc::new(Front::new(Arc::clone(current), index, &config.server));
    let Some(settings) = &listen.tls else {
        return Ok(Prepared { passage: Passage { app, tls: None }, fresh: None });
    };
    let failed = anyhow::Error::msg;
    let known = known.filter(|tls| tls.certificates.settings() == settings);
    let (tls, fresh) = if let Some(tls) = known {
        let fresh = tls.certificates.read().map_err(failed)?;
        (tls, Some(fresh))
    } else {
        let certificates = Certificates::load(settings).map_err(failed)?;
        (secured(&certificates).map_err(failed)?, None)
    };
    Ok(Prepared { passage: Passage { app, tls: Some(tls) }, fresh })
}

/// The time, for people and alerts.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
