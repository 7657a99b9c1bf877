//! Manifests that will be asked for next: of an index that has just come, those for the machines that
//! clients of the same upstream have pulled for before.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache as Moka;

use super::{Found, Manifests};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::media::{Descriptor, Manifest, Platform};
use crate::store::Place;
use crate::upstream::Upstream;

/// How long after an index its children are known as such.
const REMEMBERED_FOR: Duration = Duration::from_secs(120);

/// Children of one index that are remembered; real ones have under thirty.
const CHILDREN_MAX: usize = 64;

/// The longest word that a platform may have to be remembered.
const WORD_BYTES_MAX: usize = 32;

/// Indexes that are remembered.
const INDEXES_MAX: u64 = 1000;

/// For how long an upstream's clients are expected to want a platform again.
const WANTED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Children of one index that are fetched ahead; a site has machines of one kind or two.
const AHEAD_MAX: usize = 4;

/// Manifests and for which machine each is.
type Children = Arc<[(Digest, Platform)]>;

/// For which machines clients pull.
#[derive(Debug)]
pub(super) struct Platforms {
    /// The children of each index that has come lately.
    indexes: Moka<(Place, Digest), Children>,
    /// For which machine each of them is.
    children: Moka<(Place, Digest), Platform>,
    /// By upstream, what clients came for.
    wanted: Moka<(Arc<str>, Platform), ()>,
}

impl Platforms {
    pub(super) fn new() -> Self {
        Self {
            indexes: Moka::builder().max_capacity(INDEXES_MAX).time_to_live(REMEMBERED_FOR).build(),
            children: Moka::builder()
                .max_capacity(10 * INDEXES_MAX)
                .time_to_live(REMEMBERED_FOR)
                .build(),
            wanted: Moka::builder().max_capacity(INDEXES_MAX).time_to_live(WANTED_FOR).build(),
        }
    }

    /// Notes what an index that has just come from upstream is made of.
    pub(super) fn note(&self, place: &Place, index: Digest, manifest: &Manifest) {
        let of = |child: &Descriptor| Some((child.digest, child.platform.clone()?));
        let is_short = |(_, platform): &(Digest, Platform)| is_short(platform);
        let children = manifest.manifests.iter().filter_map(of).filter(is_short);
        let children: Children = children.take(CHILDREN_MAX).collect();
        for (child, platform) in children.iter() {
            self.children.insert((place.clone(), *child), platform.clone());
        }
        if !children.is_empty() {
            self.indexes.insert((place.clone(), index), children);
        }
    }

    /// Notes that a client came for a manifest.
    fn came_for(&self, place: &Place, digest: Digest) {
        if let Some(platform) = self.children.get(&(place.clone(), digest)) {
            self.wanted.insert((Arc::clone(&place.upstream), platform), ());
        }
    }

    /// The children of an index that clients are expected to ask for.
    fn expected(&self, place: &Place, index: Digest) -> Vec<Digest> {
        let children = self.indexes.get(&(place.clone(), index));
        let is_wanted = |platform: &Platform| {
            self.wanted.contains_key(&(Arc::clone(&place.upstream), platform.clone()))
        };
        let children = children.iter().flat_map(|children| children.iter());
        let expected = children.filter(|(_, platform)| is_wanted(platform));
        expected.map(|(child, _)| *child).take(AHEAD_MAX).collect()
    }
}

fn is_short(Platform { architecture, os, variant }: &Platform) -> bool {
    let words = [Some(architecture), Some(os), variant.as_ref()];
    words.into_iter().flatten().all(|word| word.len() <= WORD_BYTES_MAX)
}

impl Manifests {
    /// Notes that a client was given a manifest. Where it is an index that came for this client, what
    /// he will ask for next is fetched; his own request then joins that. Nothing is asked for ahead
    /// while the upstream's limit is nearly used up.
    pub fn given(self: &Arc<Self>, upstream: &Arc<Upstream>, place: &Place, found: &Found) {
        self.platforms.came_for(place, found.digest);
        if found.cache != Cache::Miss || upstream.is_low() {
            return;
        }
        for child in self.platforms.expected(place, found.digest) {
            let (me, upstream, place) = (Arc::clone(self), Arc::clone(upstream), place.clone());
            // A failure is the upstream's to tell, to whoever asks.
            tokio::spawn(async move { me.by_digest(&upstream, &place, child).await.map(drop) });
        }
    }
}
