//! Keeps the cache within its bounds: makes room before bytes are written, and lets the least
//! useful content go. Everything here blocks and belongs on a blocking thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use moka::sync::Cache;
use parking_lot::Mutex;

use crate::blocks::Large;
use crate::config::units::Free;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::held::Held;
use crate::index::{self, Index};
use crate::metrics::Metrics;

/// Objects looked at in one go, under one lock.
const BATCH: usize = 64;

/// Small content in memory.
#[derive(Debug)]
pub struct Small {
    /// The content.
    pub bytes: Bytes,
    /// When it was last asked for, in seconds.
    pub used: AtomicU32,
}

/// Why content leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `max_size`.
    Size,
    /// `min_free`, or a disk that is full.
    Free,
    /// `max_age`.
    Age,
    /// An operator said so.
    Purged,
    /// It did not have its digest.
    Rotten,
}

impl Reason {
    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Free => "free",
            Self::Age => "age",
            Self::Purged => "purged",
            Self::Rotten => "rotten",
        }
    }
}

/// The bounds, as configured.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes on disk.
    pub max_size: u64,
    /// What must stay free of the file system.
    pub min_free: Free,
    /// How long content is kept that nobody asks for.
    pub max_age: Option<Duration>,
}

/// Keeps the cache within its bounds.
#[derive(Debug)]
pub struct Keeper {
    disk: Arc<Disk>,
    bounds: Bounds,
    index: Mutex<Index>,
    /// Bytes of fills under way.
    reserved: AtomicU64,
    /// Those of them that have not been written yet, and so are still free on the disk.
    unwritten: AtomicU64,
    /// Whether the folder has been read since the start.
    scanned: tokio::sync::watch::Sender<bool>,
    small: Cache<Digest, Arc<Small>>,
    large: Cache<Digest, Arc<Large>>,
    /// Whether the last write failed; for `/readyz`.
    trouble: AtomicBool,
    metrics: Arc<Metrics>,
    /// Which content is hosted: it is not ours to remove.
    pub held: Held,
}

/// Room that a fill has taken; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    keeper: Arc<Keeper>,
    bytes: u64,
    unwritten: u64,
}

impl Keeper {
    /// A keeper that knows nothing of the folder yet.
    pub fn new(
        disk: Arc<Disk>,
        bounds: Bounds,
        small: Cache<Digest, Arc<Small>>,
        large: Cache<Digest, Arc<Large>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.cache_limit_bytes.set(i64::try_from(bounds.max_size).unwrap_or(i64::MAX));
        Self {
            disk,
            bounds,
            index: Mutex::new(Index::new(bounds.max_size)),
            reserved: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            scanned: tokio::sync::watch::Sender::new(false),
            small,
            large,
            trouble: AtomicBool::new(false),
            metrics,
            held: Held::default(),
        }
    }

    /// Waits until the folder has been read. Cancel safe.
    pub async fn scanned(&self) {
        // The sender lives as long as we do.
        let _ = self.scanned.subscribe().wait_for(|done| *done).await;
    }

    /// Reads the folder: sizes, and the access order from the files' times.
    pub fn scan(&self) {
        let mut found: Vec<(Digest, u64, u32, bool)> = Vec::new();
        let strangers = self.disk.each_blob(|digest, about| {
            let used = seconds(about.accessed().ok());
            let came = seconds(about.modified().ok());
            found.push((digest, about.len(), used, used > came.saturating_add(1)));
        });
        found.sort_unstable_by_key(|(_, _, used, _)| *used);
        {
            let mut index = self.index.lock();
            for (digest, bytes, used, again) in found {
                index.insert(&digest, bytes, used, again);
            }
            self.report(&index);
        }
        match strangers {
            Ok(0) => {}
            Ok(n) => tracing::warn!(
                files = n,
                "files in the cache folder do not belong there; they are left alone"
            ),
            Err(error) => tracing::error!(%error, "the cache folder cannot be read"),
        }
        self.scanned.send_replace(true);
        self.make_room();
    }

    /// Takes room for `bytes` that are about to be written, and empties it where needed. `None`
    /// where there is none to be had: the content is passed on without being kept.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Lease> {
        let mut lease = Lease { keeper: Arc::clone(self), bytes: 0, unwritten: 0 };
        lease.grow(index::blocks(bytes)).then_some(lease)
    }

    /// Notes content that has been published.
    pub fn published(&self, digest: &Digest, bytes: u64) {
        let mut index = self.index.lock();
        index.insert(digest, bytes, now(), false);
        self.report(&index);
    }

    /// Notes a use that memory did not answer.
    pub fn touch(&self, digest: &Digest, used: u32) {
        self.index.lock().touch(digest, used);
    }

    /// Lets content go until the bounds hold. Whether they do.
    pub fn make_room(&self) -> bool {
        // Spared objects go to the end of the order; nobody is looked at much more than twice.
        let mut looks = 2 * self.index.lock().len() + BATCH;
        while let Some(reason) = self.excess() {
            let batch = self.index.lock().candidates(BATCH);
            if batch.is_empty() || looks < batch.len() {
                return false;
            }
            looks -= batch.len();
            for (digest, _, used) in batch {
                if self.excess().is_none() {
                    return true;
                }
                self.let_go(&digest, used, reason);
            }
        }
        true
    }

    /// Which bound does not hold.
    fn excess(&self) -> Option<Reason> {
        let held = self.index.lock().on_disk();
        if held + self.reserved.load(Ordering::Relaxed) > self.bounds.max_size {
            return Some(Reason::Size);
        }
        (!self.has_free()).then_some(Reason::Free)
    }

    fn has_free(&self) -> bool {
        // A file system that does not tell is taken at its word when it is full.
        let Ok((free, total)) = self.disk.space() else { return true };
        let unwritten = self.unwritten.load(Ordering::Relaxed);
        free >= self.bounds.min_free.of(total).saturating_add(unwritten)
    }

    /// Lets go of at least `bytes`, because the disk is full whatever the bounds say.
    pub fn relieve(&self, bytes: u64) -> bool {
        let mut freed = 0;
        let batch = self.index.lock().candidates(16 * BATCH);
        for (digest, size, used) in batch {
            if freed >= bytes {
                break;
            }
            if self.let_go(&digest, used, Reason::Free) {
                freed += size;
            }
        }
        freed >= bytes
    }

    /// Deletes one object, unless it is being read or has been used since it was put in order.
    fn let_go(&self, digest: &Digest, used: u32, reason: Reason) -> bool {
        let recently = self.last_use(digest);
        if recently > used && reason != Reason::Age {
            self.index.lock().touch(digest, recently);
            return false;
        }
        if self.is_read(digest) {
            self.index.lock().touch(digest, now());
            return false;
        }
        self.delete(digest, reason)
    }

    /// Deletes one object, whoever reads it: readers keep what they have open. Hosted content stays.
    pub fn delete(&self, digest: &Digest, reason: Reason) -> bool {
        let Some(removed) = self.held.unless_hosted(digest, || self.disk.remove_blob(digest))
        else {
            let mut index = self.index.lock();
            if self.held.is_learning() {
                index.touch(digest, now());
            } else {
                index.pin(digest, true); // so that it is not proposed again
            }
            return false;
        };
        self.small.invalidate(digest);
        self.large.invalidate(digest);
        if let Err(error) = removed {
            tracing::warn!(%error, %digest, "cannot remove content");
            self.index.lock().touch(digest, now());
            return false;
        }
        let mut index = self.index.lock();
        if let Some(bytes) = index.remove(digest) {
            self.metrics.evicted(reason.as_str(), bytes);
        }
        self.report(&index);
        true
    }

    /// Forgets an object whose file is gone already.
    pub fn forget(&self, digest: &Digest) {
        self.small.invalidate(digest);
        self.large.invalidate(digest);
        let mut index = self.index.lock();
        index.remove(digest);
        self.report(&index);
    }

    /// Closes the files of what has left: until then the disk does not get its room back.
    pub fn close_gone(&self) {
        self.large.run_pending_tasks();
    }

    fn last_use(&self, digest: &Digest) -> u32 {
        let small = self.small.get(digest).map(|s| s.used.load(Ordering::Relaxed));
        let large = || self.large.get(digest).map(|l| l.used.load(Ordering::Relaxed));
        small.or_else(large).unwrap_or(0)
    }

    /// Whether a transfer holds the file open: one reference is the cache's, one is ours here.
    fn is_read(&self, digest: &Digest) -> bool {
        self.large.get(digest).is_some_and(|large| Arc::strong_count(&large) > 2)
    }

    /// Brings the order up to date with the uses that memory has answered, and the files' times
    /// with the order, so that the next start knows it.
    pub fn flush(&self) {
        let mut uses: Vec<(Digest, u32)> = Vec::new();
        uses.extend(self.small.iter().map(|(d, s)| (*d, s.used.swap(0, Ordering::Relaxed))));
        uses.extend(self.large.iter().map(|(d, l)| (*d, l.used.swap(0, Ordering::Relaxed))));
        for (digest, used) in uses.into_iter().filter(|(_, used)| *used > 0) {
            self.used(&digest, used);
        }
    }

    /// Notes a use for good: in the order, and in the file's time.
    pub fn used(&self, digest: &Digest, used: u32) {
        self.touch(digest, used);
        let when = UNIX_EPOCH + Duration::from_secs(used.into());
        if let Err(error) = self.disk.set_used(digest, when) {
            tracing::debug!(%error, %digest, "cannot note a use in the file's time");
        }
    }

    /// Lets content go that nobody has asked for in `max_age`.
    pub fn expire(&self) {
        let Some(age) = self.bounds.max_age else { return };
        let before = now().saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        let mut from = 0;
        loop {
            let (batch, next) = self.index.lock().walk(from, BATCH);
            if batch.is_empty() {
                return;
            }
            for (digest, _, used) in batch.iter().filter(|(.., used)| *used < before) {
                if self.last_use(digest).max(*used) < before {
                    self.let_go(digest, *used, Reason::Age);
                }
            }
            from = next;
        }
    }

    /// Part of all objects, and where to go on.
    pub fn walk(&self, from: usize, n: usize) -> (Vec<(Digest, u64, u32)>, usize) {
        self.index.lock().walk(from, n)
    }

    /// Objects and bytes.
    pub fn totals(&self) -> (usize, u64) {
        let index = self.index.lock();
        (index.len(), index.bytes())
    }

    /// Pins content, or lets it go.
    pub fn pin(&self, digest: &Digest, pinned: bool) {
        self.index.lock().pin(digest, pinned);
    }

    /// Notes whether the disk takes writes.
    pub fn wrote(&self, outcome: io::Result<()>) {
        let failed = outcome.is_err();
        if self.trouble.swap(failed, Ordering::Relaxed) == failed {
            return;
        }
        if let Err(error) = outcome {
            tracing::error!(%error, "the disk takes no more: content is passed on without being kept");
        } else {
            tracing::info!("the disk takes content again");
        }
    }

    /// Whether the disk refused the last write.
    pub fn is_in_trouble(&self) -> bool {
        self.trouble.load(Ordering::Relaxed)
    }

    fn report(&self, index: &Index) {
        self.metrics.cache_bytes.set(i64::try_from(index.bytes()).unwrap_or(i64::MAX));
        self.metrics.cache_objects.set(i64::try_from(index.len()).unwrap_or(i64::MAX));
    }
}

impl Lease {
    /// Notes bytes that have been written.
    pub fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        self.keeper.unwritten.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes more room, for content whose size was not told. Whether there is some.
    pub fn grow(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        self.unwritten += bytes;
        self.keeper.reserved.fetch_add(bytes, Ordering::Relaxed);
        self.keeper.unwritten.fetch_add(bytes, Ordering::Relaxed);
        // Who fills alone may go beyond: the one object of slack, or one larger than the whole room.
        let alone =
            || self.keeper.reserved.load(Ordering::Relaxed) == self.bytes && self.keeper.has_free();
        self.keeper.make_room() || alone()
    }

    /// Who gave it.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
        self.keeper.unwritten.fetch_sub(self.unwritten, Ordering::Relaxed);
    }
}

/// The time, in seconds since 1970.
pub fn now() -> u32 {
    seconds(Some(SystemTime::now()))
}

fn seconds(time: Option<SystemTime>) -> u32 {
    let since = time.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
