//! Fills: content on its way from upstream to disk, followed by whoever waits for it.
//!
//! One detached task per digest (`filling`) owns the file under `fills/`, hashes what it writes, and
//! moves a watermark. Followers read the file up to the watermark, each at its own pace; nobody's
//! socket is awaited by the task. The last piece is held back until the digest is known to be right.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::blocks::Large;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::flight::Who;
use crate::limits::{FILL_HELPERS_MAX, FILLS_MAX, FILLS_WRITING_MAX};
use crate::metrics::Metrics;
use crate::relay::shared::Relays;
use crate::relay::{Passing, Source};
use crate::store::{Place, Store};
use crate::upstream::Upstream;

/// How far a fill has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Whether the upstream's head has come, so that `size` says what it ever will.
    pub head: bool,
    /// The whole size in bytes, where the upstream told it.
    pub size: Option<u64>,
    /// Bytes that may go out.
    pub ready: u64,
    /// Bytes in the file without a gap.
    pub written: u64,
    /// Whether the digest has been found right; `size` is known then.
    pub verified: bool,
    /// How it ended; `Ok` once it is kept.
    pub end: Option<Result<()>>,
}

/// A fill under way, or just ended.
#[derive(Debug)]
pub struct Fill {
    /// What is being filled.
    pub digest: Digest,
    /// Whose upstream path it comes through; others prove their own right before they join.
    pub place: Place,
    /// Who is asked.
    pub upstream: Arc<Upstream>,
    /// Set before the first byte is ready.
    pub(crate) file: OnceLock<Arc<File>>,
    /// Where that lies; set with it.
    pub(crate) path: OnceLock<PathBuf>,
    /// Set once it is kept: a follower that reads on keeps it from being evicted.
    pub(crate) kept: OnceLock<Arc<Large>>,
    pub(crate) progress: watch::Sender<Progress>,
    /// What its followers share where it cannot go on.
    relays: Arc<Relays>,
}

impl Fill {
    /// The content, once every byte is known to be right: the rest is only keeping it.
    pub fn verified(&self) -> Option<(Arc<File>, u64)> {
        let progress = self.progress.borrow();
        let file = self.file.get().filter(|_| progress.verified)?;
        progress.size.map(|size| (Arc::clone(file), size))
    }
}

/// A reader of a fill. Many may follow one fill, each at its own offset.
#[derive(Debug)]
pub struct Follower {
    fill: Arc<Fill>,
    progress: watch::Receiver<Progress>,
    metrics: Arc<Metrics>,
}

impl Follower {
    fn new(fill: Arc<Fill>, metrics: &Arc<Metrics>) -> Self {
        metrics.fill_waiters.inc();
        Self { progress: fill.progress.subscribe(), fill, metrics: Arc::clone(metrics) }
    }

    /// Whose upstream path the fill comes through.
    pub fn place(&self) -> &Place {
        &self.fill.place
    }

    /// By whose credentials the fill comes.
    pub fn who(&self) -> Who {
        self.fill.upstream.who()
    }

    /// The file to read from, as far as `ready` says.
    ///
    /// # Errors
    /// `Internal` before anything is ready.
    pub fn file(&self) -> Result<&Arc<File>> {
        self.fill
            .file
            .get()
            .ok_or_else(|| Error::internal("a fill has no file", "nothing is ready yet"))
    }

    /// Waits for the whole size; `None` where the upstream does not tell and the fill goes on.
    /// Cancel safe.
    ///
    /// # Errors
    /// The fill's, where it fails before its head.
    pub async fn size(&mut self) -> Result<Option<u64>> {
        self.wait(|p| p.head).await.map(|p| p.size)
    }

    /// Waits until byte `position` may go out, and says how far it is ready; at the end of the
    /// content that is `position` itself. Cancel safe.
    ///
    /// # Errors
    /// The fill's, where it fails before it got there.
    pub async fn ready(&mut self, position: u64) -> Result<u64> {
        self.wait(|p| p.ready > position || p.verified).await.map(|p| p.ready)
    }

    /// Waits for the end, when every byte is known to be right. Cancel safe.
    ///
    /// # Errors
    /// The fill's.
    pub async fn end(&mut self) -> Result<Progress> {
        self.wait(|p| p.verified).await
    }

    /// Goes on at `position` without the fill, which the disk has stopped.
    ///
    /// # Errors
    /// The upstream's.
    pub async fn relay(&self, position: u64) -> Result<Passing> {
        let Fill { upstream, place, digest, file, relays, .. } = &*self.fill;
        let (upstream, place) = (Arc::clone(upstream), place.clone());
        let is_provable = position <= self.progress.borrow().written;
        let from = (position, file.get().cloned());
        Passing::begin(relays, &Source { upstream, place, digest: *digest }, from, is_provable)
            .await
    }

    async fn wait(&mut self, enough: impl Fn(&Progress) -> bool) -> Result<Progress> {
        let seen = self.progress.wait_for(|p| enough(p) || p.end.is_some()).await;
        let progress = seen.map_err(|e| Error::internal("a fill was dropped", e))?.clone();
        match &progress.end {
            Some(Err(error)) if !enough(&progress) => Err(error.clone()),
            _ => Ok(progress),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.metrics.fill_waiters.dec();
    }
}

/// The fills under way.
#[derive(Debug)]
pub struct Fills {
    pub(crate) store: Arc<Store>,
    pub(crate) under_way: Mutex<HashMap<Digest, Arc<Fill>>>,
    /// Turns for each upstream: one that hangs takes only its own.
    turns: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    /// For transfers beside the first one of a fill.
    pub(crate) helpers: Semaphore,
    /// For batches on their way to the disk.
    pub(crate) writers: Semaphore,
    pub(crate) metrics: Arc<Metrics>,
    relays: Arc<Relays>,
}

impl Fills {
    /// None under way.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            under_way: Mutex::default(),
            turns: Mutex::default(),
            helpers: Semaphore::new(FILL_HELPERS_MAX),
            writers: Semaphore::new(FILLS_WRITING_MAX),
            metrics,
            relays: Arc::default(),
        }
    }

    /// The turns of an upstream.
    pub(crate) fn turns(&self, upstream: &Arc<str>) -> Arc<Semaphore> {
        let mut turns = self.turns.lock();
        let new = || Arc::new(Semaphore::new(FILLS_MAX));
        Arc::clone(turns.entry(Arc::clone(upstream)).or_insert_with(new))
    }

    /// The fill of a digest, if one is under way, with the place it comes through.
    pub fn find(&self, digest: &Digest) -> Option<Arc<Fill>> {
        self.under_way.lock().get(digest).cloned()
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.under_way.lock().len()
    }

    /// Whether some download is whole and about to be kept.
    pub fn is_publishing(&self) -> bool {
        self.under_way.lock().values().any(|fill| {
            let progress = fill.progress.borrow();
            progress.end.is_none() && progress.verified
        })
    }

    /// Follows a fill. The caller has proven its right to the content.
    pub fn follow(&self, fill: Arc<Fill>) -> Follower {
        Follower::new(fill, &self.metrics)
    }

    /// Follows the fill of a digest; where none is under way, makes one and has `start` run it. The
    /// flag says whether it was joined.
    pub fn join_or(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
        start: impl FnOnce(Arc<Fill>),
    ) -> (Follower, bool) {
        let mut under_way = self.under_way.lock();
        if let Some(fill) = under_way.get(&digest) {
            return (self.follow(Arc::clone(fill)), true);
        }
        let fill = Arc::new(Fill {
            digest,
            place: place.clone(),
            upstream: Arc::clone(upstream),
            file: OnceLock::new(),
            path: OnceLock::new(),
            kept: OnceLock::new(),
            progress: watch::Sender::default(),
            relays: Arc::clone(&self.relays),
        });
        under_way.insert(digest, Arc::clone(&fill));
        drop(under_way);
        let follower = self.follow(Arc::clone(&fill));
        start(fill);
        (follower, false)
    }
}
