//! What is held: content by digest, in memory and on disk, and the records about repositories.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Digest};
use crate::disk::{self, Disk};
use crate::error::{Error, Result};
use crate::limits::{OPEN_FILES_MAX, RECORDS_MAX, SMALL_BYTES_MAX};
use crate::metrics::Metrics;
use crate::name::{Repository, Tag};

/// A repository of an upstream: what rights and records belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The upstream's configured name.
    pub upstream: Arc<str>,
    /// The repository within it.
    pub repository: Repository,
}

/// Content that is held.
#[derive(Clone, Debug)]
pub enum Content {
    /// Small content, in memory.
    Small(Bytes),
    /// Large content, as an open file.
    Large(Arc<Large>),
}

/// Held content that is too large for memory.
#[derive(Debug)]
pub struct Large {
    /// Positioned reads only: many transfers share it.
    pub file: Arc<File>,
    /// Its size in bytes.
    pub size: u64,
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
        }
    }

    /// When the upstream last said so.
    pub fn asked(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.asked_ms)
    }
}

/// The record that a repository was shown to contain a digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The type it is served with as a manifest; `None` where it was only seen as a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<Arc<str>>,
}

/// Everything that is held.
#[derive(Debug)]
pub struct Store {
    disk: Disk,
    small: Cache<Digest, Bytes>,
    large: Cache<Digest, Arc<Large>>,
    tags: Cache<(Place, Tag), Arc<TagRecord>>,
    links: Cache<(Place, Digest), Link>,
    metrics: Arc<Metrics>,
}

impl Store {
    /// A store over a folder, with `memory` bytes for small content.
    pub fn new(disk: Disk, memory: u64, metrics: Arc<Metrics>) -> Self {
        let weigh =
            |_: &Digest, content: &Bytes| u32::try_from(content.len() + 256).unwrap_or(u32::MAX);
        Self {
            disk,
            small: Cache::builder().max_capacity(memory).weigher(weigh).build(),
            large: Cache::new(OPEN_FILES_MAX),
            tags: Cache::new(RECORDS_MAX),
            links: Cache::new(RECORDS_MAX),
            metrics,
        }
    }

    /// The folder, for the fills. Its calls block.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Bytes of content in memory, nearly.
    pub fn memory_bytes(&self) -> u64 {
        self.small.weighted_size()
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

    /// Content by digest, if no disk needs to be touched for it.
    pub fn find_in_memory(&self, digest: &Digest) -> Option<Content> {
        self.small
            .get(digest)
            .map(Content::Small)
            .or_else(|| self.large.get(digest).map(Content::Large))
    }

    fn load(&self, digest: &Digest) -> io::Result<Option<Content>> {
        let Some(mut file) = self.disk.open_blob(digest)? else { return Ok(None) };
        let size = file.metadata()?.len();
        if size > SMALL_BYTES_MAX {
            let large = Arc::new(Large { file: Arc::new(file), size });
            self.large.insert(*digest, Arc::clone(&large));
            return Ok(Some(Content::Large(large)));
        }
        let content = disk::read_whole(&mut file, size)?;
        if Digest::of(digest.algorithm(), &content) != *digest {
            tracing::error!(%digest, "held content does not have its digest; set aside");
            self.metrics.verify_failures.inc();
            self.disk.set_aside(digest)?;
            return Ok(None);
        }
        let content = Bytes::from(content);
        self.small.insert(*digest, content.clone());
        Ok(Some(Content::Small(content)))
    }

    /// Keeps content that is wholly in memory and whose digest has been checked.
    ///
    /// # Errors
    /// `Internal` where the disk fails; the content is held in memory all the same.
    pub async fn put(self: &Arc<Self>, digest: Digest, content: Bytes) -> Result<()> {
        debug_assert_eq!(Digest::of(digest.algorithm(), &content), digest);
        if content.len() as u64 <= SMALL_BYTES_MAX {
            self.small.insert(digest, content.clone());
        }
        self.blocking(move |store| store.disk.put_blob(&digest, &content))
            .await
            .map_err(|e| Error::internal("cannot keep content", e))
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
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
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

    /// Whether a repository was shown to contain a digest, and as what.
    pub async fn link(self: &Arc<Self>, place: &Place, digest: &Digest) -> Option<Link> {
        let key = (place.clone(), *digest);
        if let Some(link) = self.links.get(&key) {
            return Some(link);
        }
        let p = place.clone();
        let d = *digest;
        let bytes =
            self.blocking(move |store| store.disk.link(&p.upstream, &p.repository, &d)).await;
        let link: Link = read_record(bytes, "link")?;
        self.links.insert(key, link.clone());
        Some(link)
    }

    /// Keeps that a repository was shown to contain a digest. What is known as a manifest stays so.
    pub async fn set_link(self: &Arc<Self>, place: &Place, digest: &Digest, link: Link) {
        let before = self.link(place, digest).await;
        let same = before.as_ref().is_some_and(|b| *b == link || link.media_type.is_none());
        if same {
            return;
        }
        let bytes = serde_json::to_vec(&link).unwrap_or_default();
        self.links.insert((place.clone(), *digest), link);
        let (p, d) = (place.clone(), *digest);
        let kept = self
            .blocking(move |store| store.disk.put_link(&p.upstream, &p.repository, &d, &bytes))
            .await;
        warn_of(kept, "cannot keep a link's record");
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

fn read_record<T: serde::de::DeserializeOwned>(
    bytes: io::Result<Option<Vec<u8>>>,
    what: &str,
) -> Option<T> {
    match bytes {
        Ok(None) => None,
        Ok(Some(bytes)) => serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(%error, what, "a record cannot be read; it is asked for again"))
            .ok(),
        Err(error) => {
            tracing::warn!(%error, what, "a record cannot be read; it is asked for again");
            None
        }
    }
}

fn warn_of(result: io::Result<()>, what: &str) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}

/// The digest of content that comes without one.
pub fn digest_of(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &tempfile::TempDir) -> Arc<Store> {
        let disk = Disk::open(folder.path()).unwrap();
        Arc::new(Store::new(disk, 1 << 20, Arc::new(Metrics::new().unwrap())))
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
