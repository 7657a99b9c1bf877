//! Fetches the layers of an image before its client asks for them.
//!
//! Clients fetch three layers at a time. Once one has asked for a layer of an image whose manifest
//! has just come from upstream, it will want the others: they are fetched beside it, so that a pull
//! through the mirror is faster than one past it. A look at a manifest or a config alone starts
//! nothing, since that is what tools do that never pull.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::fill::{Fills, Why};
use crate::filling;
use crate::media::Manifest;
use crate::store::{Place, Store};
use crate::traces::Span;
use crate::upstream::Upstream;

/// Layers fetched ahead at once, over all images; what clients wait for has turns of its own.
const AHEAD_MAX: usize = 16;

/// How long after its manifest an image's first layer is waited for.
const REMEMBERED_FOR: Duration = Duration::from_secs(120);

/// Layers of images that are remembered.
const LAYERS_MAX: u64 = 20_000;

/// An image whose manifest has just come.
#[derive(Debug)]
struct Image {
    /// Its layers with their sizes, in their order.
    layers: Vec<(Digest, u64)>,
    begun: AtomicBool,
}

/// Fetches layers ahead.
#[derive(Debug)]
pub struct Prefetch {
    store: Arc<Store>,
    fills: Arc<Fills>,
    recent: moka::sync::Cache<(Place, Digest), Arc<Image>>,
    turns: Arc<Semaphore>,
    /// Layers larger than this would push out too much that is known to be wanted.
    layer_bytes_max: AtomicU64,
}

impl Prefetch {
    /// A prefetcher for a cache of `room` bytes.
    pub fn new(store: Arc<Store>, fills: Arc<Fills>, room: u64) -> Self {
        let recent = moka::sync::Cache::builder()
            .max_capacity(LAYERS_MAX)
            .time_to_live(REMEMBERED_FOR)
            .build();
        Self {
            store,
            fills,
            recent,
            turns: Arc::new(Semaphore::new(AHEAD_MAX)),
            layer_bytes_max: AtomicU64::new(room / 8),
        }
    }

    /// Changes the room of the cache.
    pub fn set_room(&self, room: u64) {
        self.layer_bytes_max.store(room / 8, Ordering::Relaxed);
    }

    /// Notes the layers of a manifest that has just come from upstream.
    pub fn note(&self, place: &Place, manifest: &Manifest) {
        let largest = self.layer_bytes_max.load(Ordering::Relaxed);
        let layers: Vec<_> =
            manifest.layers().filter(|d| d.size <= largest).map(|d| (d.digest, d.size)).collect();
        if layers.len() < 2 {
            return;
        }
        let image = Arc::new(Image { layers, begun: AtomicBool::new(false) });
        for (layer, _) in &image.layers {
            self.recent.insert((place.clone(), *layer), Arc::clone(&image));
        }
    }

    /// Notes that a client wants a blob; where it is the first layer of a noted image, the others
    /// are fetched too. `trace` is the span of his request.
    pub fn asked(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: &Digest,
        trace: Option<&Span>,
    ) {
        let Some(image) = self.recent.get(&(place.clone(), *digest)) else { return };
        if upstream.is_low() || image.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        for (layer, _) in image.layers.iter().filter(|(layer, _)| layer != digest) {
            let (me, upstream, place, layer) =
                (Arc::clone(self), Arc::clone(upstream), place.clone(), *layer);
            let trace = trace.cloned();
            tokio::spawn(async move { me.fetch(&upstream, &place, layer, trace.as_ref()).await });
        }
    }

    /// Fetches one layer, unless it is held or on its way.
    async fn fetch(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        layer: Digest,
        trace: Option<&Span>,
    ) {
        let Ok(_turn) = self.turns.acquire().await else { return };
        if self.fills.find(&layer).is_some() || !matches!(self.store.find(layer).await, Ok(None)) {
            return;
        }
        let (follower, _) =
            filling::join_or_start(&self.fills, upstream, place, layer, (Why::Prefetch, trace));
        // A failure is told by the fill; whoever wants the layer asks again.
        follower.unseen().await;
    }
}
