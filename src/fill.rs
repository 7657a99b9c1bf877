//! Fills: content on its way from upstream to disk, followed by whoever waits for it.
//!
//! One detached task per digest (`filling`) owns the file under `fills/`, hashes what it writes, and
//! moves a watermark. Followers read the file up to the watermark, each at its own pace; nobody's
//! socket is awaited by the task. The last piece is held back until the digest is known to be right.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use crate::blocks::Large;
use crate::digest::Digest;
use crate::error::Result;
use crate::limits::{FILL_HELPERS_MAX, FILLS_MAX, FILLS_WRITING_MAX};
use crate::metrics::Metrics;
use crate::relay::shared::Relays;
use crate::relay::{Passing, Source};
use crate::store::{Place, Store};
use crate::traces::Span;
use crate::upstream::Upstream;

mod follower;
mod seen;

pub use self::follower::Follower;
pub use self::seen::{Seen, Stage};

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
    /// Bytes in the file beyond that, of parts that were fetched ahead.
    pub ahead: u64,
    /// Whether the digest has been found right; `size` is known then.
    pub verified: bool,
    /// How it ended; `Ok` once it is kept.
    pub end: Option<Result<()>>,
}

/// Why a fill was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// A client asked for it.
    Client,
    /// A client asked for another layer of the same image.
    Prefetch,
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
    /// Why it was begun.
    pub why: Why,
    /// When it was begun.
    pub begun: Instant,
    /// Its span, where the request is traced that began it.
    pub(crate) trace: Option<Span>,
    /// Whether it has had its turn among the fills of its upstream.
    pub(crate) has_turn: AtomicBool,
    /// Transfers under way.
    pub(crate) transfers: AtomicUsize,
    /// Requests that follow it.
    waiters: AtomicUsize,
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

    /// Those under way as they are at this moment, the oldest first, at most `n` of them, and how
    /// many there are in all. No fill waits for this: each is looked at for some copies.
    pub fn seen(&self, n: usize) -> (Vec<Seen>, usize) {
        let mut fills: Vec<_> = self.under_way.lock().values().cloned().collect();
        let all = fills.len();
        fills.sort_by_key(|fill| fill.begun);
        fills.truncate(n);
        (fills.iter().map(|fill| fill.seen()).collect(), all)
    }

    /// What was found not to be kept and is passed on at this moment: no fill has to find that again.
    pub async fn passing(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
    ) -> Option<Passing> {
        let source = Source { upstream: Arc::clone(upstream), place: place.clone(), digest };
        Passing::join(&self.relays, &source).await
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
        (why, trace): (Why, Option<&Span>),
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
            why,
            begun: Instant::now(),
            trace: trace.map(|request| request.child("fill")),
            has_turn: AtomicBool::new(false),
            transfers: AtomicUsize::new(0),
            waiters: AtomicUsize::new(0),
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
