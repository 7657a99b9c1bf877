//! What the admin API tells and does: status, downloads, lists, purge, pins, verify. JSON in, JSON out; who may
//! ask is decided by `admin`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::catalog;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::metrics::Tally;
use crate::name::{Reference, Tag};
use crate::pins;
use crate::purge::{self, What};
use crate::route::Target;
use crate::server::{Current, Mirror};
use crate::store::{Place, Store};
use crate::upkeep::{self, Scrubbed};

/// The most entries of one page.
const PAGE_MAX: usize = 1000;

/// Entries of a page where nobody says how many.
const PAGE_DEFAULT: usize = 100;

/// Objects looked at under one lock.
const BATCH: usize = 1024;

/// What may be asked of a mirror by those who run it.
#[derive(Debug)]
pub struct Ops {
    current: Arc<Current>,
    store: Arc<Store>,
    addresses: Vec<SocketAddr>,
    began: Instant,
    verify: Arc<Mutex<Verify>>,
}

/// How far `verify` has come.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Verify {
    running: bool,
    objects_total: usize,
    bytes_total: u64,
    #[serde(flatten)]
    so_far: Scrubbed,
}

/// One object of a list.
#[derive(Clone, Copy, Debug, Serialize)]
struct Object {
    digest: Digest,
    bytes: u64,
    used: u32,
    pinned: bool,
}

/// What stands in the body of a request that changes something.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Order {
    /// An image, by tag or digest.
    pub image: Option<String>,
    /// A repository.
    pub repository: Option<String>,
    /// An upstream.
    pub upstream: Option<String>,
    /// A digest.
    pub digest: Option<String>,
}

impl Ops {
    /// For one mirror, which clients reach at `addresses`.
    pub fn new(current: Arc<Current>, addresses: Vec<SocketAddr>) -> Self {
        let store = Arc::clone(&current.load().store);
        Self { current, store, addresses, began: Instant::now(), verify: Arc::default() }
    }

    fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn mirror(&self) -> Arc<Mirror> {
        self.current.load_full()
    }

    /// Sizes, bounds, hit ratios, the oldest and the biggest.
    ///
    /// # Errors
    /// Never, so far.
    pub async fn status(&self) -> Result<Value> {
        let keeper = self.store().keeper();
        let (objects, bytes) = keeper.totals();
        let bounds = keeper.bounds();
        let space = self.store().blocking(|store| store.disk().space()).await.ok();
        let biggest = self.objects("biggest", Some(1)).await;
        let oldest = self.objects("oldest", Some(1)).await;
        let tallies = self.mirror().metrics.tallies();
        let requests = tallies.values().copied().fold(Tally::default(), Tally::and);
        let upstreams: BTreeMap<_, _> = tallies
            .iter()
            .filter(|(name, _)| !name.is_empty())
            .map(|(n, t)| (n, t.json()))
            .collect();
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.began.elapsed().as_secs(),
            "listen": self.addresses,
            "cache": {
                "path": self.store().disk().root(),
                "ready": keeper.is_scanned(),
                "writable": !keeper.is_in_trouble(),
                "objects": objects,
                "bytes": bytes,
                "max_bytes": bounds.max_size,
                "pinned_bytes": keeper.pinned_bytes(),
                "leftover_bytes": keeper.spare_bytes(),
                "memory_bytes": self.store().memory_bytes(),
                "disk_free_bytes": space.map(|(free, _)| free),
                "disk_total_bytes": space.map(|(_, total)| total),
                "min_free_bytes": space.map(|(_, total)| bounds.min_free.of(total)),
                "biggest": biggest.first(),
                "oldest": oldest.first(),
            },
            "fills": self.mirror().fills.count(),
            "requests": requests.json(),
            "upstreams": upstreams,
        }))
    }

    /// The downloads under way, the oldest first: what comes from where, how far it is, who waits.
    ///
    /// # Errors
    /// `BadRequest` for a number that is none.
    pub fn fills(&self, query: &BTreeMap<String, String>) -> Result<Value> {
        let n = number(query)?.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        let (fills, count) = self.mirror().fills.seen(n);
        Ok(json!({"fills": fills, "count": count}))
    }

    /// The objects that come first in an order: `biggest`, `oldest` or `newest`.
    async fn objects(&self, order: &str, n: Option<usize>) -> Vec<Object> {
        let n = n.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
        let order = order.to_owned();
        let found = self.store().blocking(move |store| {
            let key = |o: &Object| match order.as_str() {
                "biggest" => u64::MAX - o.bytes,
                "newest" => u64::from(u32::MAX - o.used),
                _ => u64::from(o.used),
            };
            let (mut best, mut from) = (Vec::new(), 0);
            loop {
                let (batch, next) = store.keeper().walk(from, BATCH);
                if batch.is_empty() {
                    break;
                }
                from = next;
                best.extend(batch.into_iter().map(|(digest, bytes, used)| Object {
                    digest,
                    bytes,
                    used,
                    pinned: false,
                }));
                best.sort_by_key(key);
                best.truncate(n);
            }
            for object in &mut best {
                object.pinned = store.keeper().is_pinned(&object.digest);
            }
            Ok(best)
        });
        found.await.unwrap_or_default()
    }

    /// A list of objects, with the order and the number asked for.
    ///
    /// # Errors
    /// `BadRequest` for an order that is not known.
    pub async fn list_objects(&self, query: &BTreeMap<String, String>) -> Result<Value> {
        let order = query.get("sort").map_or("biggest", String::as_str);
        if !["biggest", "oldest", "newest"].contains(&order) {
            return Err(bad("sort is biggest, oldest or newest"));
        }
        Ok(json!({"objects": self.objects(order, number(query)?).await}))
    }

    /// A page of repositories, each with its tags, and with the objects and bytes held for it.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn list_repositories(&self, query: &BTreeMap<String, String>) -> Result<Value> {
        let n = number(query)?.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
        let (upstream, after) = (query.get("upstream").cloned(), query.get("after").cloned());
        let page = self.store().blocking(move |store| {
            let (mut rows, mut more, mut passed) = (Vec::new(), None, after.is_none());
            catalog::each_place(store.disk(), upstream.as_deref(), &mut |place| {
                let name = format!("{}/{}", place.upstream, place.repository);
                if !passed {
                    passed = after.as_ref() == Some(&name);
                    return Ok(ControlFlow::Continue(()));
                }
                if rows.len() == n {
                    more = rows.last().and_then(|row: &Value| row["name"].as_str().map(str::to_owned));
                    return Ok(ControlFlow::Break(()));
                }
                let held = catalog::links(store.disk(), &place)?;
                let held: Vec<u64> =
                    held.iter().filter_map(|d| store.keeper().about(d)).map(|(bytes, _)| bytes).collect();
                rows.push(json!({
                    "name": name, "upstream": &*place.upstream, "repository": place.repository.as_str(),
                    "tags": catalog::tags(store.disk(), &place)?.len(),
                    "objects": held.len(), "bytes": held.iter().sum::<u64>(),
                }));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(json!({"repositories": rows, "next": more}))
        });
        page.await.map_err(|e| Error::internal("the records cannot be read", e))
    }

    /// The tags of one repository, with what is held of each.
    ///
    /// # Errors
    /// `BadRequest` without a repository, `Internal` where the disk fails.
    pub async fn list_tags(&self, query: &BTreeMap<String, String>) -> Result<Value> {
        let name = query.get("repository").ok_or_else(|| bad("name a repository"))?;
        let place = place(self.mirror().table.repository(name)?);
        let n = number(query)?.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
        let p = place.clone();
        let found = self.store().blocking(move |store| catalog::tags(store.disk(), &p)).await;
        let mut tags = found.map_err(|e| Error::internal("the records cannot be read", e))?;
        if let Some(after) = query.get("after") {
            tags.retain(|tag| tag.as_str() > after.as_str());
        }
        let more = tags.len() > n;
        tags.truncate(n);
        let mut rows = Vec::new();
        for tag in &tags {
            let Some(record) = self.store().tag(&place, tag).await else { continue };
            let all = catalog::closure(self.store(), record.digest).await;
            let keeper = self.store().keeper();
            let held: Vec<u64> = all.iter().filter_map(|d| Some(keeper.about(d)?.0)).collect();
            rows.push(json!({
                "tag": tag.as_str(), "digest": record.digest, "asked_ms": record.asked_ms,
                "held": keeper.about(&record.digest).is_some(),
                "objects": all.len(), "objects_held": held.len(), "bytes_held": held.iter().sum::<u64>(),
                "pinned": keeper.is_pinned(&record.digest),
            }));
        }
        let next = tags.last().filter(|_| more).map(Tag::as_str);
        Ok(json!({
            "upstream": &*place.upstream, "repository": place.repository.as_str(), "tags": rows, "next": next,
        }))
    }

    /// What an image's name means here: upstream, repository, reference, and the path to pull it.
    ///
    /// # Errors
    /// Those of the name.
    pub fn image(&self, query: &BTreeMap<String, String>) -> Result<Value> {
        let name = query.get("image").ok_or_else(|| bad("name an image"))?;
        let (target, reference) = self.mirror().table.image(name)?;
        Ok(json!({
            "upstream": &*target.upstream, "repository": target.repository.as_str(),
            "reference": reference.to_string(),
            "path": format!("/v2/{}/{}", target.upstream, target.repository),
        }))
    }

    /// Has something leave.
    ///
    /// # Errors
    /// `BadRequest` where not exactly one thing is named, else those of its name and the disk's.
    pub async fn purge(&self, order: &Order) -> Result<Value> {
        let mirror = self.mirror();
        let table = &mirror.table;
        let what = match (&order.image, &order.repository, &order.upstream, &order.digest) {
            (Some(image), None, None, None) => {
                let (target, reference) = table.image(image)?;
                What::Image(cached(target)?, reference)
            }
            (None, Some(name), None, None) => What::Repository(cached(table.repository(name)?)?),
            // One that is no longer configured may still have content.
            (None, None, Some(name), None) => What::Upstream(
                table.upstream(name).cloned().unwrap_or_else(|| name.as_str().into()),
            ),
            (None, None, None, Some(digest)) => What::Digest(Digest::parse(digest)?),
            _ => return Err(bad("name one of image, repository, upstream or digest")),
        };
        tracing::info!(?what, "purging");
        let purged = purge::purge(self.store(), what).await;
        purged.map(|p| json!(p)).map_err(|e| Error::internal("the purge broke off", e))
    }

    /// Removes the records of content that has left.
    ///
    /// # Errors
    /// The disk's.
    pub async fn collect(&self) -> Result<Value> {
        let records = purge::collect(self.store()).await;
        let records = records.map_err(|e| Error::internal("the records cannot be removed", e))?;
        Ok(json!({"records": records, "leftover_bytes": self.store().keeper().spare_bytes()}))
    }

    /// All pins.
    pub async fn pins(&self) -> Value {
        json!({"pins": pins::all(self.store()).await, "bytes": self.store().keeper().pinned_bytes()})
    }

    /// Pins an image.
    ///
    /// # Errors
    /// See `pins::add`.
    pub async fn pin(&self, order: &Order) -> Result<Value> {
        let (place, reference) = self.image_of(order)?;
        let pin = pins::add(self.store(), &place, &reference).await?;
        let all = catalog::closure(self.store(), pin.digest).await;
        let held = all.iter().filter(|d| self.store().keeper().about(d).is_some()).count();
        let bytes = self.store().keeper().pinned_bytes();
        let bound = self.store().keeper().bounds().max_size;
        if bytes > bound / 2 {
            tracing::warn!(
                bytes,
                max_size = bound,
                "pinned content takes more than half of the cache"
            );
        }
        Ok(json!({"pin": pin, "objects": all.len(), "objects_held": held, "pinned_bytes": bytes}))
    }

    /// Takes a pin away.
    ///
    /// # Errors
    /// `ManifestUnknown` where there is none, else the disk's.
    pub async fn unpin(&self, order: &Order) -> Result<Value> {
        let (place, reference) = self.image_of(order)?;
        if pins::remove(self.store(), &place, &reference).await? {
            return Ok(json!({"pinned_bytes": self.store().keeper().pinned_bytes()}));
        }
        let text = format!("{reference} of {} is not pinned; see 'pierhead pin'", place.repository);
        Err(Error::new(Kind::ManifestUnknown, text))
    }

    fn image_of(&self, order: &Order) -> Result<(Place, Reference)> {
        let image = order.image.as_deref().ok_or_else(|| bad("name an image"))?;
        let (target, reference) = self.mirror().table.image(image)?;
        Ok((cached(target)?, reference))
    }

    /// Starts to read everything and compare it with its digest; joins where that is under way.
    pub fn verify(&self) -> Value {
        let mut state = self.verify.lock();
        if !state.running {
            let (objects_total, bytes_total) = self.store().keeper().totals();
            *state = Verify { running: true, objects_total, bytes_total, ..Verify::default() };
            let (weak, shared) = (Arc::downgrade(self.store()), Arc::clone(&self.verify));
            tokio::spawn(async move {
                let _ended = Ended(Arc::clone(&shared));
                upkeep::scrub(&weak, Some(0), |so_far| shared.lock().so_far = *so_far).await;
            });
        }
        json!(*state)
    }

    /// How far that has come.
    pub fn verified(&self) -> Value {
        json!(*self.verify.lock())
    }
}

/// Notes the end of a run, however it ends.
struct Ended(Arc<Mutex<Verify>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().running = false;
    }
}

/// The place of what is cached; what is hosted has other ways to leave and to stay.
fn cached(target: Target) -> Result<Place> {
    if target.is_hosted() {
        let text = format!(
            "{} is hosted here: delete its tags and manifests, then `pierhead gc`",
            target.repository
        );
        return Err(Error::new(Kind::Unsupported, text));
    }
    Ok(place(target))
}

fn place(target: Target) -> Place {
    Place { upstream: target.upstream, repository: target.repository }
}

fn number(query: &BTreeMap<String, String>) -> Result<Option<usize>> {
    query.get("n").map(|n| n.parse().map_err(|_| bad("n is a number"))).transpose()
}

fn bad(text: &str) -> Error {
    Error::new(Kind::BadRequest, text)
}
