//! What is known of manifests and tags once they were changed through here.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use moka::sync::Cache;

use super::{Manifests, Wanted};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media::Manifest;
use crate::name::{Reference, Tag};
use crate::store::{Place, TagRecord};

/// How long pushes are counted: longer than any answer of an upstream is waited for.
const COUNTED_FOR: Duration = Duration::from_secs(600);

/// A count of pushes by tag, with nothing counted.
pub(super) fn pushes() -> Cache<(Place, Tag), u64> {
    Cache::builder().max_capacity(100_000).time_to_idle(COUNTED_FOR).build()
}

/// Tags that are being pushed, and how often they had been when that began.
#[derive(Debug)]
pub struct Pushing(Vec<(Tag, u64)>);

impl Pushing {
    /// The tags that nobody else has pushed or begun to push since.
    fn alone(&self, now: impl Fn(&Tag) -> u64) -> Vec<Tag> {
        self.0
            .iter()
            .filter(|(tag, count)| now(tag) == *count)
            .map(|(tag, _)| tag.clone())
            .collect()
    }
}

impl Manifests {
    /// How often this tag was pushed of late.
    pub(super) fn pushes(&self, place: &Place, tag: &Tag) -> u64 {
        self.pushes.get(&(place.clone(), tag.clone())).unwrap_or_default()
    }

    /// Keeps what an upstream has said of a tag, unless that was pushed since `before` pushes.
    pub(super) async fn settle(&self, place: &Place, tag: &Tag, record: TagRecord, before: u64) {
        if self.pushes(place, tag) != before {
            return;
        }
        self.store.set_tag(place, tag, record).await;
        if self.pushes(place, tag) != before {
            self.doubt(place, tag).await; // it was, just now: whose record is there is not known
        }
    }

    /// A push of these tags begins: what is asked for from now on may already be its doing. Returned
    /// is what tells at its end whether another one came between.
    pub fn pushing(&self, place: &Place, reference: &Reference, tags: &[Tag]) -> Pushing {
        let one = match reference {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) => None,
        };
        let tags = one.into_iter().chain(tags);
        Pushing(tags.map(|tag| (tag.clone(), self.count(place, tag))).collect())
    }

    /// Takes in that a manifest was pushed, and that the upstream has it under these tags.
    ///
    /// # Errors
    /// `ManifestInvalid` where it is not what is served here; the tags are asked for again then.
    pub async fn pushed(
        self: &Arc<Self>,
        place: &Place,
        digest: Digest,
        pushing: Pushing,
        (bytes, content_type): (Bytes, Option<&str>),
    ) -> Result<()> {
        let clear: Vec<Tag> = pushing.alone(|tag| self.pushes(place, tag));
        self.unsure(place, pushing).await;
        self.come(place, &Reference::Digest(digest));
        let counted: Vec<u64> = clear.iter().map(|tag| self.pushes(place, tag)).collect();
        let manifest = Manifest::read(&bytes, content_type)?;
        let size = bytes.len() as u64;
        let media_type: Arc<str> = manifest.media_type.into();
        self.keep_manifest(place, digest, Arc::clone(&media_type), bytes).await?;
        for (tag, before) in clear.iter().zip(counted) {
            let record = TagRecord::new(digest, media_type.to_string(), size, SystemTime::now());
            self.settle(place, tag, record, before).await;
        }
        Ok(())
    }

    /// Forgets that something was absent, whoever was told so.
    fn come(&self, place: &Place, reference: &Reference) {
        let (place, reference) = (place.clone(), reference.clone());
        let gone = move |(_, p, r): &Wanted, _: &Error| *p == place && *r == reference;
        if let Err(error) = self.absent.invalidate_entries_if(gone) {
            tracing::warn!(%error, "what was absent a moment ago may be told so for seconds");
        }
    }

    /// Takes in that nobody knows what these tags stand for now: they are asked for again, and what
    /// was known stands in only where the upstream cannot say.
    pub async fn unsure(self: &Arc<Self>, place: &Place, pushing: Pushing) {
        for (tag, _) in pushing.0 {
            self.count(place, &tag);
            self.come(place, &Reference::Tag(tag.clone()));
            self.doubt(place, &tag).await;
        }
    }

    /// Takes in that a tag, or a manifest with whatever tags it had, was deleted.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn deleted(self: &Arc<Self>, place: &Place, reference: &Reference) -> Result<()> {
        match reference {
            Reference::Tag(tag) => {
                self.count(place, tag);
                self.store.drop_tag(place, tag).await;
                Ok(())
            }
            Reference::Digest(digest) => self.forget(place, digest).await,
        }
    }

    /// Forgets that a repository has this content.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn forget(self: &Arc<Self>, place: &Place, digest: &Digest) -> Result<()> {
        let dropped = self.store.drop_link(place, digest).await.map(drop);
        dropped.map_err(|e| Error::internal("cannot forget content", e))
    }

    fn count(&self, place: &Place, tag: &Tag) -> u64 {
        let key = (place.clone(), tag.clone());
        let counted = self
            .pushes
            .entry(key)
            .and_upsert_with(|before| before.map_or(1, |before| before.into_value() + 1));
        counted.into_value()
    }

    /// Lets a tag's record stand in where the upstream fails, and no longer speak for it.
    async fn doubt(&self, place: &Place, tag: &Tag) {
        if let Some(record) = self.store.tag(place, tag).await {
            let (digest, media_type) = (record.digest, record.media_type.clone());
            let record = TagRecord::new(digest, media_type, record.size, UNIX_EPOCH);
            self.store.set_tag(place, tag, record).await;
        }
    }
}
