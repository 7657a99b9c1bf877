//! Keeps the cache within its bounds: makes room before bytes are written, and lets the least
//! useful content go. Everything here blocks and belongs on a blocking thread.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use moka::sync::Cache;
use parking_lot::{Mutex, RwLock};

use crate::blocks::Large;
use crate::config::units::Free;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::held::Held;
use crate::index::{self, Index};
use crate::metrics::Metrics;
use crate::spares::{Spare, Spares};

mod company;
mod lease;
mod pinned;
mod scan;
mod small;

pub use company::Company;
pub use lease::Lease;
pub use small::{Small, Smalls};

/// Objects looked at in one go, under one lock.
const BATCH: usize = 64;

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
    bounds: RwLock<Bounds>,
    index: Mutex<Index>,
    /// Downloads that broke off, and content that was set aside.
    spares: Mutex<Spares>,
    /// Bytes of fills under way.
    reserved: AtomicU64,
    /// Those of them that have not been written yet, and so are still free on the disk.
    unwritten: AtomicU64,
    /// Those of another process, which hands over to this one.
    elsewhere: AtomicU64,
    company: tokio::sync::watch::Sender<Company>,
    /// What the pins hold, whether it is there or not.
    pinned: Mutex<HashSet<Digest>>,
    /// Whether the folder has been read since the start.
    scanned: tokio::sync::watch::Sender<bool>,
    small: Smalls,
    large: Cache<Digest, Arc<Large>>,
    /// Whether the last write failed; for `/readyz` and the metrics.
    trouble: AtomicBool,
    metrics: Arc<Metrics>,
    /// How often content was taken away that must not be answered any more, not even by who had it
    /// ready a moment ago.
    withdrawn: AtomicU64,
    /// Which content is hosted: it is not ours to remove.
    pub held: Held,
}

impl Keeper {
    /// A keeper that knows nothing of the folder yet.
    pub fn new(
        disk: Arc<Disk>,
        bounds: Bounds,
        small: Smalls,
        large: Cache<Digest, Arc<Large>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.cache_limit_bytes.set(i64::try_from(bounds.max_size).unwrap_or(i64::MAX));
        Self {
            disk,
            bounds: RwLock::new(bounds),
            index: Mutex::new(Index::new(bounds.max_size)),
            spares: Mutex::default(),
            pinned: Mutex::default(),
            reserved: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            elsewhere: AtomicU64::new(0),
            company: tokio::sync::watch::Sender::default(),
            scanned: tokio::sync::watch::Sender::new(false),
            small,
            large,
            trouble: AtomicBool::new(false),
            metrics,
            withdrawn: AtomicU64::new(0),
            held: Held::default(),
        }
    }

    /// Takes room for `bytes` that are about to be written, and empties it where needed. `None`
    /// where there is none to be had: the content is passed on without being kept.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Lease> {
        let mut lease = Lease { keeper: Arc::clone(self), bytes: 0, unwritten: 0 };
        lease.grow(index::footprint(bytes)).then_some(lease)
    }

    /// Notes content that has been published, in place of the room that it was written to.
    pub fn published(&self, digest: &Digest, bytes: u64, lease: Option<Lease>) {
        let pinned = self.pinned.lock().contains(digest);
        let mut index = self.index.lock();
        drop(lease);
        index.insert(digest, bytes, now(), false);
        index.pin(digest, pinned);
        self.report(&index);
    }

    /// Counts a file that nobody reads any more; it leaves before all content does.
    pub fn spare(&self, path: PathBuf, bytes: u64) {
        self.spares.lock().add(Spare { path, bytes, since: now() });
    }

    /// Takes such a file into use again.
    pub fn unspare(&self, path: &Path) {
        self.spares.lock().take(path);
    }

    /// Notes a use that memory did not answer.
    pub fn touch(&self, digest: &Digest, used: u32) {
        self.index.lock().touch(digest, used);
    }

    /// Lets content go until the bounds hold. Whether they do.
    pub fn make_room(&self) -> bool {
        if self.company() == Company::Behind {
            return self.excess().is_none();
        }
        // Spared objects go to the end of the order; nobody is looked at much more than twice.
        let mut looks = 2 * self.index.lock().len() + BATCH;
        while let Some(reason) = self.excess() {
            let spare = self.spares.lock().pop();
            if let Some(spare) = spare {
                self.disk.drop_fill(&spare.path);
                continue;
            }
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
        if self.on_disk() > self.bounds().max_size {
            return Some(Reason::Size);
        }
        (!self.has_free(0)).then_some(Reason::Free)
    }

    /// All that counts: content, spares, and fills under way.
    fn on_disk(&self) -> u64 {
        let spares = self.spares.lock().bytes();
        let index = self.index.lock();
        // Under the lock, since what is published moves from the one to the other under it.
        index.on_disk() + spares + self.under_way()
    }

    /// Bytes that are being written, here and by a process that hands over to this one.
    fn under_way(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed) + self.elsewhere.load(Ordering::Relaxed)
    }

    /// Whether what is reserved could be had at all, if everything left that may leave. Nothing
    /// shall leave for content that cannot be kept in the end.
    fn could_fit(&self) -> bool {
        let spares = self.spares.lock().bytes();
        let index = self.index.lock();
        let stays = index.pinned() + self.under_way();
        let leaves = index.on_disk() - index.pinned() + spares;
        drop(index);
        stays <= self.bounds().max_size && self.has_free(leaves)
    }

    /// Whether enough of the file system is free, or would be with so many bytes more.
    fn has_free(&self, more: u64) -> bool {
        // A file system that does not tell is taken at its word when it is full.
        let Ok((free, total)) = self.disk.space() else { return true };
        let unwritten = self.unwritten.load(Ordering::Relaxed);
        free.saturating_add(more) >= self.bounds().min_free.of(total).saturating_add(unwritten)
    }

    /// Lets go of at least `bytes`, because the disk is full whatever the bounds say. Of nothing,
    /// where all that may leave would not be enough.
    pub fn relieve(&self, bytes: u64) -> bool {
        let mut freed = 0;
        if self.company() == Company::Behind {
            return false;
        }
        while let Some(spare) = self.spares.lock().pop() {
            self.disk.drop_fill(&spare.path);
            freed += spare.bytes;
        }
        let may_leave = {
            let index = self.index.lock();
            index.on_disk() - index.pinned()
        };
        if freed + may_leave < bytes {
            return false;
        }
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
        if self.index.lock().is_pinned(digest) {
            return false;
        }
        // Uses are counted, not compared by time: seconds are long for a machine.
        let unseen = self.unseen_use(digest);
        if unseen > 0 && (reason != Reason::Age || unseen > used) {
            self.index.lock().touch(digest, unseen);
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
        let (known, pinned) = {
            let index = self.index.lock();
            (index.about(digest), index.is_pinned(digest))
        };
        let removed = self.held.unless_hosted(digest, || {
            self.drop_memory(digest);
            if matches!(reason, Reason::Purged | Reason::Rotten) {
                self.withdraw();
            }
            self.disk.remove_blob(digest)
        });
        let Some(removed) = removed else {
            let mut index = self.index.lock();
            if self.held.is_learning() {
                index.touch(digest, 0); // to the end of the order, and no younger
            } else {
                index.pin(digest, true); // so that it is not proposed again
            }
            return false;
        };
        if let Err(error) = removed {
            tracing::warn!(%error, %digest, "cannot remove content");
            if let Some((bytes, _)) = known {
                let mut index = self.index.lock();
                index.insert(digest, bytes, now(), false);
                index.pin(digest, pinned);
            }
            return false;
        }
        // An open file keeps its room: the disk would look full until the cache gets round to it.
        self.close_gone();
        if let Some((bytes, _)) = known {
            self.metrics.evicted(reason.as_str(), bytes);
        }
        true
    }

    /// Forgets an object whose file is gone, or about to go.
    pub fn forget(&self, digest: &Digest) {
        self.drop_memory(digest);
        self.withdraw();
    }

    /// Has nothing go out any more that was made ready before.
    pub fn withdraw(&self) {
        self.withdrawn.fetch_add(1, Ordering::Relaxed);
    }

    /// How often content was withdrawn: what was made ready before is none any more.
    pub fn withdrawn(&self) -> u64 {
        self.withdrawn.load(Ordering::Relaxed)
    }

    /// In this order: who opens it meanwhile looks into the index last (`recheck`), so that no memory
    /// of it stays.
    fn drop_memory(&self, digest: &Digest) {
        {
            let mut index = self.index.lock();
            index.remove(digest);
            self.report(&index);
        }
        self.small.invalidate(digest);
        self.large.invalidate(digest);
    }

    /// Forgets what was put into memory while its file left the folder.
    pub fn recheck(&self, digest: &Digest) {
        if self.is_scanned() && !self.index.lock().contains(digest) {
            self.small.invalidate(digest);
            self.large.invalidate(digest);
        }
    }

    /// Closes the files of what has left: until then the disk does not get its room back.
    pub fn close_gone(&self) {
        self.large.run_pending_tasks();
    }

    /// Takes the last use that memory has answered and the order does not know; 0 where none was.
    fn unseen_use(&self, digest: &Digest) -> u32 {
        let small = self.small.get(digest).map(|s| s.used.swap(0, Ordering::Relaxed));
        let large = || self.large.get(digest).map(|l| l.used.swap(0, Ordering::Relaxed));
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
        self.small.each(|d, s| uses.push((*d, s.used.swap(0, Ordering::Relaxed))));
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

    /// Part of all objects, and where to go on.
    pub fn walk(&self, from: usize, n: usize) -> (Vec<(Digest, u64, u32)>, usize) {
        self.index.lock().walk(from, n)
    }

    /// Objects and bytes.
    pub fn totals(&self) -> (usize, u64) {
        let index = self.index.lock();
        (index.len(), index.bytes())
    }

    /// Notes whether the disk takes writes.
    pub fn wrote(&self, outcome: io::Result<()>) {
        let failed = outcome.is_err();
        if self.trouble.swap(failed, Ordering::Relaxed) == failed {
            return;
        }
        self.metrics.cache_writable.set(i64::from(!failed));
        if let Err(error) = outcome {
            tracing::error!(%error, "the disk takes no more: content is passed on without being kept");
        } else {
            tracing::info!("the disk takes content again");
        }
    }

    /// What is counted of broken downloads and rotten content, in bytes.
    pub fn spare_bytes(&self) -> u64 {
        self.spares.lock().bytes()
    }

    /// The bounds.
    pub fn bounds(&self) -> Bounds {
        *self.bounds.read()
    }

    /// Changes the bounds; what is too much by them leaves with the next `make_room`.
    pub fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.write() = bounds;
        self.index.lock().set_room(bounds.max_size);
        self.metrics.cache_limit_bytes.set(i64::try_from(bounds.max_size).unwrap_or(i64::MAX));
    }

    /// Bytes and last use of an object that is held.
    pub fn about(&self, digest: &Digest) -> Option<(u64, u32)> {
        self.index.lock().about(digest)
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

/// The time, in seconds since 1970: the clock's at the start, and from then on what has really
/// passed. A clock that jumps ages nothing and freshens nothing.
pub fn now() -> u32 {
    static START: OnceLock<(Instant, u32)> = OnceLock::new();
    let (start, at) = START.get_or_init(|| (Instant::now(), seconds(Some(SystemTime::now()))));
    at.saturating_add(u32::try_from(start.elapsed().as_secs()).unwrap_or(u32::MAX))
}

fn seconds(time: Option<SystemTime>) -> u32 {
    let since = time.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
