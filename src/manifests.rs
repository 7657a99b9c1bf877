//! Manifests, by tag and by digest: held, or fetched once for all who want them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method};

use self::ahead::Platforms;
use crate::cache::Cache;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind, Result};
use crate::flight::{Flights, Who};
use crate::freshness::{self, Freshness};
use crate::limits::{ABSENT_ATTACHED_FOR, ABSENT_FOR, MANIFEST_BYTES_MAX};
use crate::media::{self, Manifest};
use crate::name::{Reference, Tag};
use crate::prefetch::Prefetch;
use crate::sendfile;
use crate::store::{Content, Link, Place, Store, TagRecord};
use crate::upstream::ask::Ask;
use crate::upstream::{Patience, Upstream};

mod ahead;
pub mod changed;

/// A manifest that can be answered.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub digest: Digest,
    /// Its type.
    pub media_type: Arc<str>,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes; `None` where only `HEAD` was asked and they are not held.
    pub content: Option<Content>,
    /// How it was come by.
    pub cache: Cache,
}

impl Found {
    /// The manifest's bytes, wherever they are.
    pub async fn bytes(&self) -> Option<Bytes> {
        match self.content.as_ref()? {
            Content::Small(bytes) => Some(bytes.clone()),
            Content::Large(large) => {
                sendfile::read(&large.file, 0, usize::try_from(large.size).ok()?).await.ok()
            }
        }
    }
}

/// What an upstream's tags are taken for.
#[derive(Debug, Default)]
pub struct Terms {
    /// How long a tag's answer is believed without asking.
    pub tag_ttl: Duration,
    /// How long a tag that has moved keeps its previous digest.
    pub cooldown: Duration,
    /// Tags that stand for one digest, whatever the upstream says, by `repository:tag`.
    pub pins: HashMap<String, Digest>,
}

impl Terms {
    fn pin(&self, place: &Place, tag: &Tag) -> Option<Digest> {
        if self.pins.is_empty() {
            return None;
        }
        self.pins.get(&format!("{}:{tag}", place.repository)).copied()
    }
}

/// What somebody wants: that it is not there may be said to him alone.
type Wanted = (Who, Place, Reference);

/// A tag that is being resolved: whether by `HEAD`, and after how many pushes.
type Resolving = (Place, Tag, bool, u64);

/// How long absences are believed.
struct Absence;

impl moka::Expiry<Wanted, Error> for Absence {
    fn expire_after_create(
        &self,
        (_, _, reference): &Wanted,
        _: &Error,
        _: std::time::Instant,
    ) -> Option<Duration> {
        match reference {
            Reference::Tag(tag) if tag.is_attached() => Some(ABSENT_ATTACHED_FOR),
            _ => Some(ABSENT_FOR),
        }
    }
}

/// Finds and fetches manifests.
#[derive(Debug)]
pub struct Manifests {
    store: Arc<Store>,
    prefetch: Arc<Prefetch>,
    platforms: Platforms,
    fetches: Flights<(Place, Digest), (Who, Result<Found>)>,
    tags: Flights<Resolving, (Who, Result<Found>)>,
    absent: moka::sync::Cache<Wanted, Error>,
    /// How often a tag was pushed through here of late: an answer that was asked for before a push
    /// says nothing of what the tag is after it.
    pushes: moka::sync::Cache<(Place, Tag), u64>,
}

impl Manifests {
    /// Manifests over a store.
    pub fn new(store: Arc<Store>, prefetch: Arc<Prefetch>) -> Self {
        let absent = moka::sync::Cache::builder()
            .max_capacity(10_000)
            .expire_after(Absence)
            .support_invalidation_closures()
            .build();
        let pushes = changed::pushes();
        let (platforms, fetches, tags) = (Platforms::new(), Flights::new(), Flights::new());
        Self { store, prefetch, platforms, fetches, tags, absent, pushes }
    }

    /// A manifest by tag or digest; with `head` its bytes need not be held.
    ///
    /// # Errors
    /// The upstream's, where nothing that is held may stand in.
    pub async fn get(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        terms: &Arc<Terms>,
        place: &Place,
        reference: &Reference,
        head: bool,
    ) -> Result<Found> {
        let key = (upstream.who(), place.clone(), reference.clone());
        if let Some(error) = self.absent.get(&key) {
            return Err(error);
        }
        let found = match reference {
            Reference::Digest(digest) => self.by_digest(upstream, place, *digest).await,
            Reference::Tag(tag) => match terms.pin(place, tag) {
                Some(digest) => self.by_digest(upstream, place, digest).await,
                None => self.by_tag(upstream, terms, place, tag, head).await,
            },
        };
        if let Err(error) = &found
            && error.is_absence()
        {
            self.absent.insert(key, error.clone());
        }
        found
    }

    /// A manifest by digest: held and known to be this repository's, or fetched.
    async fn by_digest(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
    ) -> Result<Found> {
        if let Some(found) = self.held(place, digest).await {
            return Ok(found);
        }
        let make = || {
            let (me, up, p) = (Arc::clone(self), Arc::clone(upstream), place.clone());
            async move {
                let ask = Ask::manifest(Method::GET, &p.repository, &Reference::Digest(digest));
                me.fetch_manifest(&up, &p, ask, Patience::Full, Some(digest)).await
            }
        };
        let key = (place.clone(), digest);
        let (found, joined) = self.fetches.run_as(upstream.who(), key, make).await;
        mark(found, joined)
    }

    /// A manifest that is held and that this repository was shown to contain. A disk that fails
    /// counts as a miss, and is said.
    async fn held(self: &Arc<Self>, place: &Place, digest: Digest) -> Option<Found> {
        let media_type = self.store.link(place, &digest).await?.media_type?;
        let content = self.store.find(digest).await
            .inspect_err(|error| tracing::warn!(?error, %digest, "held content cannot be read; it is fetched again"))
            .ok()??;
        Some(Found {
            digest,
            media_type,
            size: content.size(),
            content: Some(content),
            cache: Cache::Hit,
        })
    }

    async fn by_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        terms: &Arc<Terms>,
        place: &Place,
        tag: &Tag,
        head: bool,
    ) -> Result<Found> {
        let before = self.pushes(place, tag);
        let record = self.store.tag(place, tag).await;
        if let Some(record) = &record
            && freshness::judge(record.asked(), terms.tag_ttl, SystemTime::now())
                == Freshness::Fresh
            && let Some(found) = self.by_record(upstream, place, record, head).await
        {
            return Ok(found);
        }
        let cooldown = terms.cooldown;
        let make = || {
            let (me, up, p) = (Arc::clone(self), Arc::clone(upstream), place.clone());
            let (t, record) = (tag.clone(), record.clone());
            async move { me.resolve(&up, &p, &t, (record, before), cooldown, head).await }
        };
        let key = (place.clone(), tag.clone(), head, before);
        let (found, joined) = self.tags.run_as(upstream.who(), key, make).await;
        mark(found, joined)
    }

    /// What a tag's record says, where that is enough for the answer.
    async fn by_record(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        record: &TagRecord,
        head: bool,
    ) -> Option<Found> {
        if let Some(found) = self.held(place, record.digest).await {
            return Some(found);
        }
        if head {
            let media_type = record.media_type.as_str().into();
            return Some(Found {
                digest: record.digest,
                media_type,
                size: record.size,
                content: None,
                cache: Cache::Hit,
            });
        }
        self.by_digest(upstream, place, record.digest).await.ok()
    }

    /// Asks the upstream what a tag is: by `HEAD` where a record may be confirmed, since a `GET`
    /// counts against its limit; by `GET` where nothing is known.
    async fn resolve(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        tag: &Tag,
        (record, before): (Option<Arc<TagRecord>>, u64),
        cooldown: Duration,
        head: bool,
    ) -> Result<Found> {
        let held = match &record {
            Some(record) => self.held(place, record.digest).await,
            None => None,
        };
        let patience = if held.is_some() { Patience::Brief } else { Patience::Full };
        let fresh = if record.is_some() || head {
            self.confirm(upstream, place, tag, patience, head).await
        } else {
            let ask = Ask::manifest(Method::GET, &place.repository, &Reference::Tag(tag.clone()));
            self.fetch_manifest(upstream, place, ask, patience, None).await
        };
        match fresh {
            Ok(found) => {
                if let Some(record) = &record
                    && let Some(previous) =
                        self.cooling(upstream, place, record, &found, cooldown, head).await
                {
                    let record = record.staying(found.digest, SystemTime::now());
                    self.settle(place, tag, record, before).await;
                    return Ok(previous);
                }
                let record = TagRecord::new(
                    found.digest,
                    found.media_type.to_string(),
                    found.size,
                    SystemTime::now(),
                );
                self.settle(place, tag, record, before).await;
                Ok(found)
            }
            Err(error) if freshness::may_stand_in(&error) && held.is_some() => {
                tracing::warn!(?place, %tag, ?error, "tag served stale");
                held.map(|found| Found { cache: Cache::Stale, ..found }).ok_or(error)
            }
            Err(error) => {
                if error.is_absence() && before == self.pushes(place, tag) {
                    self.store.drop_tag(place, tag).await;
                }
                Err(error)
            }
        }
    }

    /// The previous digest of a tag that has moved too lately to be believed, where it can be had.
    async fn cooling(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        record: &TagRecord,
        found: &Found,
        cooldown: Duration,
        head: bool,
    ) -> Option<Found> {
        let now = SystemTime::now();
        if found.digest == record.digest
            || freshness::may_move(record.seen(&found.digest, now), cooldown, now)
        {
            return None;
        }
        let previous = self.by_record(upstream, place, record, head).await?;
        Some(Found { cache: Cache::Revalidated, ..previous })
    }

    /// A `HEAD`, and the manifest by its digest where that is new.
    async fn confirm(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        tag: &Tag,
        patience: Patience,
        head: bool,
    ) -> Result<Found> {
        let reference = Reference::Tag(tag.clone());
        let ask = Ask::manifest(Method::HEAD, &place.repository, &reference);
        let told = match upstream.ask(&ask, patience).await {
            Ok(answer) => Told::read(answer.headers()),
            Err(error) if error.kind() == Kind::BadUpstream => None,
            Err(error) => return Err(error),
        };
        let Some(told) = told else {
            // No digest in the answer, or no HEAD at all: only the bytes can tell.
            let ask = Ask::manifest(Method::GET, &place.repository, &reference);
            return self.fetch_manifest(upstream, place, ask, patience, None).await;
        };
        if let Some(found) = self.held(place, told.digest).await {
            return Ok(Found { cache: Cache::Revalidated, ..found });
        }
        match (head, told.media_type, told.size) {
            (true, Some(media_type), Some(size)) => Ok(Found {
                digest: told.digest,
                media_type: media_type.into(),
                size,
                content: None,
                cache: Cache::Bypass,
            }),
            _ => self.by_digest(upstream, place, told.digest).await,
        }
    }

    /// Fetches a manifest whole, checks it, keeps it.
    async fn fetch_manifest(
        self: &Arc<Self>,
        upstream: &Upstream,
        place: &Place,
        ask: Ask,
        patience: Patience,
        wanted: Option<Digest>,
    ) -> Result<Found> {
        let answer = upstream.ask(&ask, patience).await?;
        let told = Told::read(answer.headers());
        let content_type = header(answer.headers(), &CONTENT_TYPE).map(str::to_owned);
        let bytes = answer.whole(MANIFEST_BYTES_MAX).await?;
        let bad = |e: Error| {
            Error::new(
                Kind::BadUpstream,
                format!(
                    "{} sent a manifest of {} that is not served: {e}",
                    upstream.name(),
                    place.repository
                ),
            )
            .because(e)
        };
        let expected = wanted.or(told.map(|t| t.digest));
        let digest = Digest::of(expected.map_or(Algorithm::Sha256, |d| d.algorithm()), &bytes);
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(bad(Error::new(
                Kind::DigestInvalid,
                format!("its digest is {digest}, not {expected}"),
            )));
        }
        let manifest = Manifest::read(&bytes, content_type.as_deref()).map_err(bad)?;
        self.prefetch.note(place, &manifest);
        self.platforms.note(place, digest, &manifest);
        self.keep_manifest(place, digest, manifest.media_type.into(), bytes).await
    }

    async fn keep_manifest(
        self: &Arc<Self>,
        place: &Place,
        digest: Digest,
        media_type: Arc<str>,
        bytes: Bytes,
    ) -> Result<Found> {
        // A disk that fails costs the next request a fetch, not this one its answer.
        let kept = self.store.put(digest, bytes.clone()).await;
        if let Err(error) = &kept {
            tracing::error!(?error, "a manifest is served without being kept");
        }
        let cache = if kept.is_ok() { Cache::Miss } else { Cache::Passed };
        self.store
            .set_link(place, &digest, Link { media_type: Some(Arc::clone(&media_type)) })
            .await;
        Ok(Found {
            digest,
            media_type,
            size: bytes.len() as u64,
            content: Some(Content::Small(bytes)),
            cache,
        })
    }
}

/// What the head of a manifest's answer says of it.
struct Told {
    digest: Digest,
    media_type: Option<String>,
    size: Option<u64>,
}

impl Told {
    /// `None` where it names no digest that could be checked.
    fn read(headers: &HeaderMap) -> Option<Self> {
        let digest = Digest::parse(headers.get("docker-content-digest")?.to_str().ok()?).ok()?;
        let media_type = header(headers, &CONTENT_TYPE)
            .map(|t| t.split(';').next().unwrap_or(t).trim())
            .filter(|t| media::is_manifest(t))
            .map(str::to_owned);
        let size = header(headers, &CONTENT_LENGTH).and_then(|v| v.parse().ok()).filter(|s| *s > 0);
        Some(Self { digest, media_type, size })
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Marks what was fetched for another request at the same time.
fn mark(found: Option<Result<Found>>, joined: bool) -> Result<Found> {
    let found = found
        .unwrap_or_else(|| Err(Error::new(Kind::Internal, "a request upstream was dropped")))?;
    let cache = if joined && found.cache == Cache::Miss { Cache::Collapsed } else { found.cache };
    Ok(Found { cache, ..found })
}
