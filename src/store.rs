//! What is held: content by digest, in memory and on disk, and the records about repositories.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use crate::blocks::{self, Large, Sums};
use crate::digest::Digest;
use crate::disk::{self, Disk};
use crate::error::{Error, Result};
use crate::keeper::{self, Bounds, Keeper, Smalls};
use crate::limits::{OPEN_FILES_MAX, RECORDS_MAX, SMALL_BYTES_MAX};
use crate::metrics::Metrics;
use crate::name::{Repository, Tag};

mod links;

pub use links::Link;

/// How long a miss waits for the folder to be read after a start; it is not kept otherwise, since
/// nobody could tell whether there is room.
const SCAN_PATIENCE: Duration = Duration::from_secs(3);

/// A repository of an upstream: what rights and records belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The upstream's configured name.
    pub upstream: Arc<str>,
    /// The repository within it.
    pub repository: Repository,
}

impl Place {
    /// All that this upstream has shown to an anonymous caller.
    pub fn anyones(&self) -> Self {
        Self { upstream: Arc::clone(&self.upstream), repository: Repository::anyones() }
    }
}

/// Content that is held.
#[derive(Clone, Debug)]
pub enum Content {
    /// Small content, in memory.
    Small(Bytes),
    /// Large content, as an open file.
    Large(Arc<Large>),
}

impl Content {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Small(bytes) => bytes.len() as u64,
            Self::Large(large) => large.size,
        }
    }
}

/// What a tag was last said to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// When the upstream last said so, in milliseconds since 1970.
    pub asked_ms: u64,
    /// What the tag has moved to, which is not believed until its cooldown is over, and when that
    /// was first seen, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<(Digest, u64)>,
}

impl TagRecord {
    /// A record confirmed at `now`.
    pub fn new(digest: Digest, media_type: String, size: u64, now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            digest,
            media_type,
            size,
            asked_ms: u64::try_from(since.as_millis()).unwrap_or_default(),
            waiting: None,
        }
    }

    /// Since when the tag has been seen to be `digest`, which may be now.
    pub fn seen(&self, digest: &Digest, now: SystemTime) -> SystemTime {
        match &self.waiting {
            Some((waiting, ms)) if waiting == digest => UNIX_EPOCH + Duration::from_millis(*ms),
            _ => now,
        }
    }

    /// The same record, confirmed at `now` although the tag has moved to `digest`.
    pub fn staying(&self, digest: Digest, now: SystemTime) -> Self {
        let confirmed = Self::new(self.digest, self.media_type.clone(), self.size, now);
        let since = self.seen(&digest, now).duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or_default();
        Self { waiting: Some((digest, ms)), ..confirmed }
    }

    /// When the upstream last said so.
    pub fn asked(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.asked_ms)
    }
}

/// Everything that is held.
#[derive(Debug)]
pub struct Store {
    disk: Arc<Disk>,
    keeper: Arc<Keeper>,
    small: Smalls,
    large: Cache<Digest, Arc<Large>>,
    tags: Cache<(Place, Tag), Arc<TagRecord>>,
    links: Cache<(Place, Digest), Link>,
    metrics: Arc<Metrics>,
    /// Bytes a second at which held content is compared with its digests.
    scrub_rate: AtomicU64,
}

impl Store {
    /// A store over a folder, with `memory` bytes for small content.
    pub fn new(disk: Disk, memory: u64, bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        let small = Smalls::new(memory);
        let large = Cache::new(OPEN_FILES_MAX);
        let disk = Arc::new(disk);
        let keeper = Keeper::new(
            Arc::clone(&disk),
            bounds,
            small.clone(),
            large.clone(),
            Arc::clone(&metrics),
        );
        Self {
            disk,
            keeper: Arc::new(keeper),
            small,
            large,
            tags: Cache::new(RECORDS_MAX),
            links: Cache::new(RECORDS_MAX),
            metrics,
            scrub_rate: AtomicU64::new(0),
        }
    }

    /// Changes how many bytes of small content are held in memory.
    pub fn set_memory(&self, bytes: u64) {
        self.keeper.flush(); // the uses that only memory knows
        self.small.set_room(bytes);
    }

    /// Bytes a second at which held content is compared with its digests; 0: not at all.
    pub fn scrub_rate(&self) -> u64 {
        self.scrub_rate.load(Ordering::Relaxed)
    }

    /// Changes that rate.
    pub fn set_scrub_rate(&self, rate: u64) {
        self.scrub_rate.store(rate, Ordering::Relaxed);
    }

    /// The folder, for the fills. Its calls block.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// What keeps the bounds. Its calls block.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// Bytes of content in memory, nearly.
    pub fn memory_bytes(&self) -> u64 {
        self.small.bytes()
    }

    /// Content by digest; `None` where it is not held. A digest is not a permission: the caller
    /// has looked for the link first.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn find(self: &Arc<Self>, digest: Digest) -> Result<Option<Content>> {
        if let Some(content) = self.find_in_memory(&digest) {
            return Ok(Some(content));
        }
        self.blocking(move |store| store.load(&digest))
            .await
            .map_err(|e| Error::internal("cannot read held content", e))
    }

    /// Content by digest, if it needs no blocking call.
    pub fn find_in_memory(&self, digest: &Digest) -> Option<Content> {
        if let Some(small) = self.small.get(digest) {
            small.used.store(keeper::now(), Ordering::Relaxed);
            return Some(Content::Small(small.bytes.clone()));
        }
        let large = self.large.get(digest).filter(|large| !large.is_rotten())?;
        large.used.store(keeper::now(), Ordering::Relaxed);
        Some(Content::Large(large))
    }

    fn load(&self, digest: &Digest) -> io::Result<Option<Content>> {
        if self.large.get(digest).is_some_and(|large| large.is_rotten()) {
            return self.rotten(digest).map(|()| None);
        }
        let Some(mut file) = self.disk.open_blob(digest)? else {
            self.forget_if_gone(digest);
            return Ok(None);
        };
        let size = file.metadata()?.len();
        let found = if size > SMALL_BYTES_MAX {
            self.load_large(digest, file, size)
        } else {
            self.load_small(digest, &mut file, size)
        };
        match found? {
            Some(content) => {
                self.keeper.used(digest, keeper::now());
                self.keeper.recheck(digest);
                Ok(Some(content))
            }
            None => self.rotten(digest).map(|()| None),
        }
    }

    /// What the index knows has its file, so one that is looked for afterwards and is not there
    /// has gone; one that was not there before may have come since.
    fn forget_if_gone(&self, digest: &Digest) {
        if self.keeper.about(digest).is_some() && !self.disk.blob_path(digest).exists() {
            self.keeper.forget(digest);
        }
    }

    fn load_small(
        &self,
        digest: &Digest,
        file: &mut File,
        size: u64,
    ) -> io::Result<Option<Content>> {
        let content = disk::read_whole(file, size)?;
        if Digest::of(digest.algorithm(), &content) != *digest {
            return Ok(None);
        }
        Ok(Some(Content::Small(self.remember(digest, content.into()))))
    }

    fn remember(&self, digest: &Digest, bytes: Bytes) -> Bytes {
        self.small.insert(*digest, bytes.clone());
        bytes
    }

    /// Opens large content with its checksums; where they are lost, the whole of it is hashed.
    fn load_large(&self, digest: &Digest, file: File, size: u64) -> io::Result<Option<Content>> {
        let file = Arc::new(file);
        let recorded = self.disk.sums(digest)?.and_then(|text| Sums::decode(&text, size));
        let large = if let Some(sums) = recorded {
            Large::open(*digest, file, sums)?
        } else {
            let (found, sums) = blocks::hash(&file, digest.algorithm())?;
            if found != *digest {
                return Ok(None);
            }
            if let Err(error) = self.disk.put_sums(digest, &sums.encode()) {
                tracing::warn!(%error, %digest, "cannot record checksums");
            }
            Large::written(*digest, file, sums)?
        };
        Ok(Some(Content::Large(self.hold(large))))
    }

    /// Holds large content open for the next requests.
    pub fn hold(&self, large: Large) -> Arc<Large> {
        let large = Arc::new(large);
        self.large.insert(large.digest, Arc::clone(&large));
        large
    }

    /// Waits for the folder to be read, but not for long: a miss goes on without being kept then.
    ///
    /// # Errors
    /// `TimedOut`.
    pub async fn scanned(&self) -> io::Result<()> {
        tokio::time::timeout(SCAN_PATIENCE, self.keeper.scanned()).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, "the cache folder is still being read")
        })
    }

    /// Sets rotten content aside, so that it is fetched again.
    ///
    /// # Errors
    /// What the file system says.
    pub fn rotten(&self, digest: &Digest) -> io::Result<()> {
        tracing::error!(%digest, "held content does not have its digest; set aside, to be fetched again");
        self.metrics.verify_failures.inc();
        let aside = self.disk.set_aside(digest);
        self.keeper.forget(digest);
        if let Some(path) = aside? {
            let bytes = path.metadata().map(|about| about.len()).unwrap_or_default();
            self.keeper.spare(path, bytes);
        }
        Ok(())
    }

    /// Keeps content that is wholly in memory and whose digest has been checked.
    ///
    /// # Errors
    /// `Internal` where the disk fails or has no room; the content is held in memory all the same.
    pub async fn put(self: &Arc<Self>, digest: Digest, content: Bytes) -> Result<()> {
        debug_assert_eq!(Digest::of(digest.algorithm(), &content), digest);
        if content.len() as u64 <= SMALL_BYTES_MAX {
            self.remember(&digest, content.clone());
        }
        let waited = self.scanned().await;
        self.blocking(move |store| {
            waited?;
            let size = content.len() as u64;
            let lease = store.keeper.reserve(size).ok_or(io::ErrorKind::StorageFull)?;
            let written = store
                .disk
                .put_blob(&digest, &content)
                .or_else(|e| store.again(e, size, || store.disk.put_blob(&digest, &content)));
            store.keeper.wrote(written.as_ref().map_or_else(|e| Err(e.kind().into()), |()| Ok(())));
            written?;
            store.keeper.published(&digest, size, Some(lease));
            Ok(())
        })
        .await
        .map_err(|e| Error::internal("cannot keep content", e))
    }

    /// A write that failed for want of room is tried once more, with some made.
    fn again(
        &self,
        error: io::Error,
        bytes: u64,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if is_full(&error) && self.keeper.relieve(bytes) { write() } else { Err(error) }
    }

    /// What a tag was last said to be. A record that cannot be read counts as none, and is said.
    pub async fn tag(self: &Arc<Self>, place: &Place, tag: &Tag) -> Option<Arc<TagRecord>> {
        let key = (place.clone(), tag.clone());
        if let Some(record) = self.tags.get(&key) {
            return Some(record);
        }
        let (p, t) = key.clone();
        let bytes =
            self.blocking(move |store| store.disk.tag(&p.upstream, &p.repository, &t)).await;
        let record: Arc<TagRecord> = Arc::new(read_record(bytes, "tag")?);
        self.tags.insert(key, Arc::clone(&record));
        Some(record)
    }

    /// Keeps what a tag was said to be.
    pub async fn set_tag(self: &Arc<Self>, place: &Place, tag: &Tag, record: TagRecord) {
        let bytes = write_record(&record);
        self.tags.insert((place.clone(), tag.clone()), Arc::new(record));
        let (p, t) = (place.clone(), tag.clone());
        let kept = self
            .blocking(move |store| store.disk.put_tag(&p.upstream, &p.repository, &t, &bytes))
            .await;
        warn_of(kept, "cannot keep a tag's record");
    }

    /// Forgets a tag.
    pub async fn drop_tag(self: &Arc<Self>, place: &Place, tag: &Tag) {
        self.tags.invalidate(&(place.clone(), tag.clone()));
        let (p, t) = (place.clone(), tag.clone());
        let dropped =
            self.blocking(move |store| store.disk.drop_tag(&p.upstream, &p.repository, &t)).await;
        warn_of(dropped, "cannot remove a tag's record");
    }

    /// Runs disk work where it stops nobody.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let store = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(io::Error::other)?
    }
}

/// A record as it lies on disk: JSON for people who look, and a checksum on a line of its own, since
/// a flipped bit can turn a digest or a type into another one.
pub(crate) fn write_record(record: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(record).unwrap_or_default();
    let sum = crc32fast::hash(&text);
    text.extend(format!("\n{sum:08x}\n").into_bytes());
    text
}

pub(crate) fn read_record<T: serde::de::DeserializeOwned>(
    bytes: io::Result<Option<Vec<u8>>>,
    what: &str,
) -> Option<T> {
    let refused = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, what, "a record cannot be read; it is asked for again");
    };
    match bytes {
        Ok(None) => None,
        Ok(Some(bytes)) => check_record(&bytes).inspect_err(|e| refused(e)).ok(),
        Err(error) => {
            refused(&error);
            None
        }
    }
}

pub(crate) fn check_record<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let (json, sum) = text.trim_end().rsplit_once('\n').ok_or("it has no checksum")?;
    if u32::from_str_radix(sum, 16) != Ok(crc32fast::hash(json.as_bytes())) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(json).map_err(|e| e.to_string())
}

/// Whether a write failed because there is no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn warn_of(result: io::Result<()>, what: &str) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests look into files; they serve nobody meanwhile")]
mod tests {
    use super::*;
    use crate::config::units::Free;
    use crate::digest::Algorithm;

    fn digest_of(content: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, content)
    }

    fn store(folder: &tempfile::TempDir) -> Arc<Store> {
        let disk = Disk::open(folder.path()).unwrap();
        let bounds = Bounds { max_size: 1 << 30, min_free: Free::percent(0), max_age: None };
        let store = Arc::new(Store::new(disk, 1 << 20, bounds, Arc::new(Metrics::new().unwrap())));
        store.keeper.scan();
        store
    }

    fn place() -> Place {
        Place { upstream: "docker.io".into(), repository: Repository::parse("a/b").unwrap() }
    }

    #[tokio::test]
    async fn content_and_records_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (digest, tag) = (digest_of(b"hello"), Tag::parse("v1").unwrap());
        let record = TagRecord::new(digest, "t".into(), 5, SystemTime::now());
        {
            let store = store(&folder);
            store.put(digest, Bytes::from_static(b"hello")).await.unwrap();
            store.set_tag(&place(), &tag, record.clone()).await;
            store.set_link(&place(), &digest, Link { media_type: Some("t".into()) }).await;
            store.set_link(&place(), &digest, Link::default()).await;
        }
        let store = store(&folder);
        assert!(store.find_in_memory(&digest).is_none());
        assert_eq!(store.find(digest).await.unwrap().unwrap().size(), 5);
        assert_eq!(*store.tag(&place(), &tag).await.unwrap(), record);
        assert_eq!(store.link(&place(), &digest).await.unwrap().media_type.as_deref(), Some("t"));
    }

    #[tokio::test]
    async fn rotten_content_and_records_count_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let (digest, tag) = (digest_of(b"hello"), Tag::parse("v1").unwrap());
        {
            let store = store(&folder);
            store.put(digest, Bytes::from_static(b"hello")).await.unwrap();
            store
                .blocking(move |s| {
                    s.disk.put_tag(
                        "docker.io",
                        &place().repository,
                        &Tag::parse("v1").unwrap(),
                        b"{rot",
                    )
                })
                .await
                .unwrap();
            std::fs::write(store.disk.blob_path(&digest), b"hellp").unwrap();
        }
        let store = store(&folder);
        assert!(store.find(digest).await.unwrap().is_none());
        assert!(store.tag(&place(), &tag).await.is_none());
        assert_eq!(store.metrics.verify_failures.get(), 1);
    }
}
