//! From a configuration to a mirror, and from a mirror to the one that takes its place.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Mirror, Origin};
use crate::begun::Begun;
use crate::blobs::Blobs;
use crate::config::{self, Auth, Config};
use crate::doors::{self, Door, Doors};
use crate::error::Result;
use crate::fill::Fills;
use crate::hosting::Hosting;
use crate::keeper::Bounds;
use crate::manifests::{Manifests, Terms};
use crate::metrics::Metrics;
use crate::patterns::Patterns;
use crate::prefetch::Prefetch;
use crate::rights::Rights;
use crate::route::Table;
use crate::store::Store;
use crate::through::Through;
use crate::traces::Traces;
use crate::upstream::Upstream;
use crate::watched;

/// Tells the addresses of one process apart, for the ready answers of a thread: those of a mirror that
/// has been replaced are none of its successor's.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// What is configured, built and not in force yet.
struct Configured {
    table: Table,
    doors: Doors,
    origins: HashMap<Arc<str>, Origin>,
    addresses: Vec<Door>,
    first_id: u64,
}

impl Configured {
    /// Everything that may fail.
    fn build(config: &Config, metrics: &Arc<Metrics>, before: Option<&Mirror>) -> Result<Self> {
        let mut table = Table::new(config.default_upstream.as_deref());
        let mut origins = HashMap::new();
        for (name, settings) in &config.upstreams {
            table.add(name, &settings.aliases, &settings.hosts);
            if settings.push {
                table.let_push(name);
            }
            let known = before.and_then(|mirror| {
                let origin = mirror.origins.get(name.as_str())?;
                Some((origin, mirror.config.upstreams.get(name)?))
            });
            let origin = Origin::build(name, settings, metrics, known)?;
            origins.insert(Arc::clone(origin.upstream.name()), origin);
        }
        table.host(&config.hosted.repositories);
        let doors = Doors::renewed(config, before.map(|mirror| (&mirror.doors, &mirror.config)))?;
        let addresses: Vec<Door> = config.listen.iter().map(Door::new).collect();
        let first_id = NEXT_ID.fetch_add(addresses.len() as u64, Ordering::Relaxed);
        Ok(Self { table, doors, origins, addresses, first_id })
    }
}

impl Mirror {
    /// Puts the parts together; nothing is dialled and nothing listens.
    ///
    /// # Errors
    /// Where an upstream's client cannot be built.
    pub fn new(config: &Config, store: Arc<Store>, metrics: Arc<Metrics>) -> Result<Self> {
        let Configured { table, doors, origins, addresses, first_id } =
            Configured::build(config, &metrics, None)?;
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
        Ok(Self {
            table,
            doors,
            origins,
            manifests,
            blobs,
            begun: Begun::new(config.server.max_fills_per_caller),
            prefetch,
            hosting,
            through: Arc::new(through),
            fills,
            store,
            metrics,
            traces: Traces::start(&config.traces)?,
            config: config.clone(),
            addresses,
            first_id,
        })
    }

    /// The mirror that takes this one's place. What is held, under way and learnt is shared, and so
    /// is each upstream whose connection to it has not changed. Nothing has changed until `commit`.
    ///
    /// # Errors
    /// Where an upstream's client cannot be built or a file cannot be read. Blocks.
    pub fn renewed(&self, config: &Config) -> Result<Self> {
        let Configured { table, doors, origins, addresses, first_id } =
            Configured::build(config, &self.metrics, Some(self))?;
        Ok(Self {
            table,
            doors,
            origins,
            manifests: Arc::clone(&self.manifests),
            blobs: Arc::clone(&self.blobs),
            begun: Arc::clone(&self.begun),
            prefetch: Arc::clone(&self.prefetch),
            hosting: self.hosting.clone(),
            through: Arc::clone(&self.through),
            fills: Arc::clone(&self.fills),
            store: Arc::clone(&self.store),
            metrics: Arc::clone(&self.metrics),
            traces: self.traces.clone(),
            config: config.clone(),
            addresses,
            first_id,
        })
    }

    /// Has what is shared with the mirror before go by this one's configuration. Cannot fail.
    pub fn commit(&self) {
        let room = self.config.cache.max_size.bytes();
        self.store.keeper().set_bounds(bounds(&self.config.cache));
        self.store.set_memory(self.config.cache.memory.bytes());
        self.store.set_scrub_rate(self.config.cache.scrub_rate.bytes());
        self.prefetch.set_room(room);
        self.begun.set_most(self.config.server.max_fills_per_caller);
        self.hosting.set_settings(&self.config.hosted);
    }

    /// What it is configured by.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// The bounds of the cache, as configured.
pub fn bounds(cache: &config::Cache) -> Bounds {
    Bounds {
        max_size: cache.max_size.bytes(),
        min_free: cache.min_free,
        max_age: cache.max_age.map(config::units::Span::get),
    }
}

impl Origin {
    /// An upstream as configured; the one that is known already, where it would be reached the same
    /// way: its health, its limit and its connections are kept then.
    fn build(
        name: &str,
        settings: &config::Upstream,
        metrics: &Arc<Metrics>,
        known: Option<(&Self, &config::Upstream)>,
    ) -> Result<Self> {
        // They are read once, as an upstream is set up.
        let files =
            watched::times([&settings.ca, &settings.cert, &settings.key].into_iter().flatten());
        let same = known.filter(|(origin, before)| {
            origin.files == files && reached(before) == reached(settings)
        });
        let (upstream, rights) = if let Some((origin, _)) = same {
            (Arc::clone(&origin.upstream), origin.rights.clone())
        } else {
            let upstream = Arc::new(Upstream::new(name, settings, Arc::clone(metrics))?);
            if let Some(every) = settings.probe {
                upstream.watch(every.get());
            }
            let rights = match &settings.auth {
                Auth::Passthrough(how) => {
                    Some(Arc::new(Rights::new(how.clone(), doors::random_key()?)))
                }
                _ => None,
            };
            (upstream, rights)
        };
        Ok(Self {
            terms: Arc::new(Terms {
                tag_ttl: settings.tag_ttl.get(),
                cooldown: settings.cooldown.get(),
                pins: settings.pins(),
            }),
            allowed: Patterns::new(&settings.allow, &settings.deny),
            prefetch: settings.prefetch,
            push: settings.push,
            rights,
            upstream,
            files,
        })
    }
}

/// What decides on how an upstream is reached, without what is decided here about its answers.
fn reached(settings: &config::Upstream) -> config::Upstream {
    let none = config::Upstream::default();
    config::Upstream {
        aliases: none.aliases,
        hosts: none.hosts,
        tag_ttl: none.tag_ttl,
        cooldown: none.cooldown,
        pins: none.pins,
        allow: none.allow,
        deny: none.deny,
        prefetch: none.prefetch,
        push: none.push,
        ..settings.clone()
    }
}
