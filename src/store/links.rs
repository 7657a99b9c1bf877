//! Links: which repository was shown to contain which digest, and as what. A record for each pair, in
//! memory as far as there is room, and in a file.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Place, Store, read_record, warn_of, write_record};
use crate::digest::Digest;

/// The record that a repository was shown to contain a digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The type it is served with as a manifest; `None` where it was only seen as a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<Arc<str>>,
}

impl Link {
    /// Whether another has nothing to add to this one: what is known as a manifest stays so.
    fn says(&self, other: &Self) -> bool {
        self == other || other.media_type.is_none()
    }
}

impl Store {
    /// Whether a repository was shown to contain a digest, and as what.
    pub async fn link(self: &Arc<Self>, place: &Place, digest: &Digest) -> Option<Link> {
        if let Some(link) = self.links.get(&(place.clone(), *digest)) {
            return Some(link);
        }
        let (place, digest) = (place.clone(), *digest);
        self.blocking(move |store| Ok(store.read_link(&place, &digest))).await.ok().flatten()
    }

    /// Keeps that a repository was shown to contain a digest. What is known as a manifest stays so.
    pub async fn set_link(self: &Arc<Self>, place: &Place, digest: &Digest, link: Link) {
        self.set_links(vec![place.clone()], digest, link).await;
    }

    /// Does what [`Self::set_link`] does for several places, on one thread in one go: a fill's first
    /// byte waits for it.
    pub async fn set_links(self: &Arc<Self>, mut places: Vec<Place>, digest: &Digest, link: Link) {
        let digest = *digest;
        let is_news = |place: &Place| {
            let known = self.links.get(&(place.clone(), digest));
            !known.is_some_and(|known| known.says(&link))
        };
        places.retain(is_news);
        if places.is_empty() {
            return;
        }
        let kept = self.blocking(move |store| {
            places
                .iter()
                .map(|place| store.put_link(place, &digest, &link))
                .fold(Ok(()), Result::and)
        });
        warn_of(kept.await, "cannot keep a link's record");
    }

    /// What a link's file says. Blocks the thread.
    fn read_link(&self, place: &Place, digest: &Digest) -> Option<Link> {
        let bytes = self.disk.link(&place.upstream, &place.repository, digest);
        let link: Link = read_record(bytes, "link")?;
        self.links.insert((place.clone(), *digest), link.clone());
        Some(link)
    }

    /// Writes a link's file, where it says anything new. Blocks the thread.
    fn put_link(&self, place: &Place, digest: &Digest, link: &Link) -> io::Result<()> {
        let key = (place.clone(), *digest);
        let before = self.links.get(&key).or_else(|| self.read_link(place, digest));
        if before.is_some_and(|before| before.says(link)) {
            return Ok(());
        }
        self.links.insert(key, link.clone());
        self.disk.put_link(&place.upstream, &place.repository, digest, &write_record(link))
    }

    /// Forgets that a repository was shown to contain a digest. Whether that was known.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn drop_link(self: &Arc<Self>, place: &Place, digest: &Digest) -> io::Result<bool> {
        self.links.invalidate(&(place.clone(), *digest));
        let (p, d) = (place.clone(), *digest);
        self.blocking(move |store| {
            let path = store.disk.link_path(&p.upstream, &p.repository, &d);
            store.disk.remove(&path)
        })
        .await
    }
}
