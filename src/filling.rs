//! The task of one fill: download, hash, write, publish; resume where it broke.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::blocks::{Large, Summing};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::fill::{Fill, Fills, Follower};
use crate::keeper::{Keeper, Lease};
use crate::limits::{ANSWER_WITHIN, HOLD_BACK_BYTES, SLICE_BYTES, SMALL_BYTES_MAX};
use crate::store::{self, Link, Place};
use crate::upstream::ask::{self, Ask};
use crate::upstream::{Answer, Patience, Upstream};

/// Attempts that may end without a single new byte, one after the other.
const FRUITLESS_MAX: u32 = 3;

/// Pieces that wait to be written; each is what one read of the upstream's socket gave.
const PIECES_WAITING_MAX: usize = 4;

/// Follows the fill of a digest, and starts it where none is under way. The flag says whether it
/// was joined.
pub fn join_or_start(
    fills: &Arc<Fills>,
    upstream: &Arc<Upstream>,
    place: &Place,
    digest: Digest,
) -> (Follower, bool) {
    fills.join_or(upstream, place, digest, |fill| {
        let task = Task { fills: Arc::clone(fills), fill, path: OnceLock::new() };
        tokio::spawn(task.run());
    })
}

struct Task {
    fills: Arc<Fills>,
    fill: Arc<Fill>,
    path: OnceLock<PathBuf>,
}

impl Task {
    async fn run(self) {
        self.fills.metrics.fills_in_flight.inc();
        let ending = Ending(&self);
        let turns = self.fills.turns(self.fill.upstream.name());
        let outcome = match tokio::time::timeout(ANSWER_WITHIN, turns.acquire()).await {
            Ok(Ok(_turn)) => self.fill().await,
            Ok(Err(e)) => Err(Error::internal("the queue of fills is closed", e)),
            Err(_) => {
                let text =
                    format!("too many downloads from {} are under way", self.fill.upstream.name());
                Err(Error::new(Kind::Unavailable, text))
            }
        };
        self.fills.metrics.fill_ended(match &outcome {
            Ok(()) => "stored",
            Err(e) if e.kind() == Kind::Unavailable => "broken",
            Err(e) if e.kind() == Kind::DiskFailed => "not_kept",
            Err(e) if e.is_outage() => "bad_upstream",
            Err(e) if e.kind() == Kind::Internal => "failed",
            Err(_) => "refused",
        });
        if let Err(error) = &outcome {
            tracing::warn!(digest = %self.fill.digest, place = ?self.fill.place, ?error, "fill failed");
        }
        ending.with(outcome);
    }

    async fn fill(&self) -> Result<()> {
        if self.is_held_after_all().await {
            return Ok(());
        }
        let mut written = self.open().await?;
        if written.bytes == 0 || written.hasher.clone().finish() != self.fill.digest {
            written = self.fetch(written).await?;
        } // else a crash came between the last byte and the publishing
        let Written { hasher, summing, bytes, lease } = written;
        if hasher.finish() != self.fill.digest {
            return Err(self.bad(&format!("sent {bytes} bytes that are not what was asked for")));
        }
        // The bytes are right: nobody need wait for the disk.
        self.verified(bytes);
        self.publish(summing, bytes, lease).await
    }

    /// Whether another fill has ended between the look for the content and this one's start.
    async fn is_held_after_all(&self) -> bool {
        let digest = self.fill.digest;
        if !matches!(self.fills.store.find(digest).await, Ok(Some(_))) {
            return false;
        }
        let opened = self
            .fills
            .store
            .blocking(move |s| {
                let Some(file) = s.disk().open_blob(&digest)? else { return Ok(None) };
                let size = file.metadata()?.len();
                Ok(Some((file, size)))
            })
            .await;
        let Ok(Some((file, size))) = opened else { return false };
        let _ = self.fill.file.set(Arc::new(file)); // set here or in `open`, never both
        self.verified(size);
        true
    }

    fn verified(&self, size: u64) {
        self.fill.progress.send_modify(|p| {
            p.head = true;
            p.size = Some(size);
            p.ready = size;
            p.verified = true;
        });
    }

    /// Opens the file, with what an earlier attempt, perhaps of an earlier process, has left in it.
    async fn open(&self) -> Result<Written> {
        let waited = self.fills.store.scanned().await;
        let digest = self.fill.digest;
        let opened = self
            .fills
            .store
            .blocking(move |s| {
                waited?;
                s.keeper().unspare(&s.disk().fill_path(&digest));
                let (file, path) = s.disk().open_fill(&digest)?;
                let written = Written::read(&file, digest)?;
                Ok((file, path, written))
            })
            .await;
        let (file, path, written) = opened.map_err(|e| self.disk_failed(e))?;
        let (_, _) = (self.fill.file.set(Arc::new(file)), self.path.set(path)); // set here only
        Ok(written)
    }

    async fn publish(&self, summing: Summing, bytes: u64, lease: Option<Lease>) -> Result<()> {
        let (Some(file), Some(path)) = (self.fill.file.get().cloned(), self.path.get().cloned())
        else {
            return Err(Error::internal("a fill has no file", "it was not opened"));
        };
        let fill = Arc::clone(&self.fill);
        let published = self
            .fills
            .store
            .blocking(move |store| {
                let sums = summing.finish();
                if bytes > SMALL_BYTES_MAX
                    && let Err(error) = store.disk().put_sums(&fill.digest, &sums.encode())
                {
                    tracing::warn!(%error, digest = %fill.digest, "cannot record checksums");
                }
                store.disk().publish(&file, &path, &fill.digest)?;
                if bytes > SMALL_BYTES_MAX {
                    // Before it is known to the keeper, so that it cannot leave in between.
                    let large = store.hold(Large::written(fill.digest, file, sums)?);
                    let _ = fill.kept.set(large); // set here only
                }
                store.keeper().published(&fill.digest, bytes, lease);
                Ok(())
            })
            .await;
        self.fills
            .store
            .keeper()
            .wrote(published.as_ref().map_or_else(|e| Err(e.kind().into()), |()| Ok(())));
        published.map_err(|e| self.disk_failed(e))
    }

    /// Downloads from where `known` ends, again from where it broke, until the upstream's end.
    async fn fetch(&self, known: Written) -> Result<Written> {
        let mut position = known.bytes;
        let (pieces, inbox) = mpsc::channel(PIECES_WAITING_MAX);
        let (fill, keeper) = (Arc::clone(&self.fill), Arc::clone(self.fills.store.keeper()));
        let writer = tokio::task::spawn_blocking(move || known.write(&fill, &keeper, inbox));
        let fetched = self.feed(&pieces, &mut position).await;
        drop(pieces);
        let written =
            writer.await.map_err(|e| Error::internal("the writer of a fill died", e))??;
        fetched?;
        Ok(written)
    }

    async fn feed(&self, pieces: &mpsc::Sender<Piece>, position: &mut u64) -> Result<()> {
        let mut fruitless = 0;
        loop {
            let before = *position;
            let error = match self.attempt(pieces, position).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            fruitless = if *position > before { 0 } else { fruitless + 1 };
            let begun = self.fill.progress.borrow().head;
            let again = error.kind() == Kind::Unavailable && fruitless < FRUITLESS_MAX && begun;
            if !again || pieces.is_closed() {
                return Err(error);
            }
            tracing::info!(digest = %self.fill.digest, from = *position, ?error, "transfer broke; resuming");
        }
    }

    /// One transfer, from `position` to the end or to a break.
    async fn attempt(&self, pieces: &mpsc::Sender<Piece>, position: &mut u64) -> Result<()> {
        let ask = Ask::blob_from(&self.fill.place.repository, &self.fill.digest, *position);
        let mut answer = self.fill.upstream.ask(&ask, Patience::Full).await?;
        let (start, total) = self.accept(&answer, &ask, pieces).await?;
        let mut at = start;
        while let Some(bytes) = answer.piece().await? {
            let begin = at;
            at += bytes.len() as u64;
            if total.is_some_and(|t| at > t) {
                return Err(self.bad("sent more bytes than it announced"));
            }
            if pieces.send(Piece::Bytes(begin, bytes)).await.is_err() {
                return Err(self.writer_gone());
            }
            *position = at.max(*position);
        }
        match total {
            Some(total) if at < total => {
                let text = format!(
                    "{} ended the transfer at byte {at} of {total}",
                    self.fill.upstream.name()
                );
                Err(Error::new(Kind::Unavailable, text))
            }
            _ => Ok(()),
        }
    }

    /// Judges the head of an answer, notes the size and the proof that it gives, and takes room.
    async fn accept(
        &self,
        answer: &Answer,
        ask: &Ask,
        pieces: &mpsc::Sender<Piece>,
    ) -> Result<(u64, Option<u64>)> {
        let (start, total) = ask::extent(answer.status(), answer.headers(), ask.range)
            .map_err(|why| self.bad(&format!("answered with {why}")))?;
        let told = self.fill.progress.borrow().size;
        if let (Some(told), Some(total)) = (told, total)
            && told != total
        {
            return Err(
                self.bad(&format!("says the blob has {total} bytes, and said {told} before"))
            );
        }
        let (store, place) = (&self.fills.store, &self.fill.place);
        store.set_link(place, &self.fill.digest, Link::default()).await;
        if self.fill.upstream.is_anonymous() {
            store.set_link(&place.anyones(), &self.fill.digest, Link::default()).await;
        }
        let size = total.or(told);
        if told.is_none()
            && let Some(size) = size
        {
            let keeper = Arc::clone(self.fills.store.keeper());
            let lease = self.fills.store.blocking(move |_| Ok(keeper.reserve(size))).await;
            let lease = lease
                .ok()
                .flatten()
                .ok_or_else(|| self.disk_failed(io::ErrorKind::StorageFull.into()))?;
            if pieces.send(Piece::Lease(lease)).await.is_err() {
                return Err(self.writer_gone());
            }
        }
        self.fill.progress.send_modify(|p| {
            p.head = true;
            p.size = size;
        });
        Ok((start, size))
    }

    /// The writer has ended early; what it ended with is the error that counts.
    fn writer_gone(&self) -> Error {
        Error::new(Kind::Internal, format!("{} cannot be written", self.fill.digest))
    }

    fn bad(&self, what: &str) -> Error {
        let text = format!("{} {what} ({})", self.fill.upstream.name(), self.fill.digest);
        Error::new(Kind::BadUpstream, text)
    }

    fn disk_failed(&self, error: io::Error) -> Error {
        Error::new(Kind::DiskFailed, format!("{} cannot be kept", self.fill.digest)).because(error)
    }

    fn drop_file(&self) {
        if let Some(path) = self.path.get() {
            self.fills.store.disk().drop_fill(path);
        }
    }

    /// Leaves the file for the next attempt, and has it counted.
    fn leave_file(&self) {
        if let Some(path) = self.path.get() {
            self.fills.store.keeper().spare(path.clone(), self.bytes());
        }
    }

    fn bytes(&self) -> u64 {
        self.fill.file.get().and_then(|f| f.metadata().ok()).map_or(0, |about| about.len())
    }
}

/// Tells the followers how it ended, even where the task panics: dropped without an outcome means
/// failed. A transfer that broke leaves its file for the next attempt; wrong bytes do not stay.
struct Ending<'a>(&'a Task);

impl Ending<'_> {
    fn with(self, outcome: Result<()>) {
        let task = self.0;
        std::mem::forget(self);
        Self::end(task, outcome);
    }

    fn end(task: &Task, outcome: Result<()>) {
        // What has come is worth resuming, unless it may be wrong.
        let broke = |e: &Error| {
            matches!(e.kind(), Kind::Unavailable | Kind::TooManyRequests | Kind::NoLogin)
        };
        match &outcome {
            Ok(()) => {}
            Err(e) if broke(e) && task.bytes() > 0 => task.leave_file(),
            Err(_) => task.drop_file(),
        }
        task.fills.under_way.lock().remove(&task.fill.digest);
        task.fills.metrics.fills_in_flight.dec();
        task.fill.progress.send_modify(|p| p.end = Some(outcome));
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // By a stop of the whole program: what has come so far is resumed by the next start.
        Self::end(self.0, Err(Error::new(Kind::Unavailable, "a download was dropped")));
    }
}

/// What the writer is told.
enum Piece {
    /// Content, and where it belongs.
    Bytes(u64, Bytes),
    /// The room that it takes.
    Lease(Lease),
}

/// What is in the file, with its hash and checksums so far.
struct Written {
    hasher: Hasher,
    summing: Summing,
    bytes: u64,
    lease: Option<Lease>,
}

impl Written {
    fn read(file: &File, digest: Digest) -> io::Result<Self> {
        let mut known = Self {
            hasher: Hasher::new(digest.algorithm()),
            summing: Summing::default(),
            bytes: 0,
            lease: None,
        };
        let mut buffer = vec![0; SLICE_BYTES];
        loop {
            match file.read_at(&mut buffer, known.bytes)? {
                0 => return Ok(known),
                n => known.take(&buffer[..n]),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.summing.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Writes what comes, until nothing more does. Runs on a blocking thread.
    fn write(
        mut self,
        fill: &Fill,
        keeper: &Arc<Keeper>,
        mut inbox: mpsc::Receiver<Piece>,
    ) -> Result<Self> {
        let Some(file) = fill.file.get() else {
            return Err(Error::internal("a fill has no file", "it was not opened"));
        };
        while let Some(piece) = inbox.blocking_recv() {
            let (at, bytes) = match piece {
                Piece::Bytes(at, bytes) => (at, bytes),
                Piece::Lease(mut lease) => {
                    lease.wrote(self.bytes);
                    self.lease = Some(lease);
                    continue;
                }
            };
            let known = self.bytes.saturating_sub(at).min(bytes.len() as u64);
            let (old, new) = bytes.split_at(usize::try_from(known).unwrap_or(bytes.len()));
            let failed = |e| {
                Error::new(Kind::DiskFailed, format!("{} cannot be kept", fill.digest)).because(e)
            };
            if !old.is_empty() && !same(file, at, old).map_err(failed)? {
                return Err(Error::new(
                    Kind::BadUpstream,
                    format!(
                        "{} sent other bytes than before the break ({})",
                        fill.upstream.name(),
                        fill.digest
                    ),
                ));
            }
            let stored = self.store(file, new, keeper);
            keeper.wrote(stored.as_ref().map_or_else(|e| Err(e.kind().into()), |()| Ok(())));
            stored.map_err(failed)?;
            self.release(fill);
        }
        Ok(self)
    }

    fn store(&mut self, file: &File, new: &[u8], keeper: &Arc<Keeper>) -> io::Result<()> {
        let length = new.len() as u64;
        let leased = self.lease.as_ref().map_or(0, Lease::bytes);
        if self.bytes + length > leased {
            let grown = if let Some(lease) = &mut self.lease {
                lease.grow(length)
            } else {
                self.lease = keeper.reserve(self.bytes + length);
                self.lease.is_some()
            };
            if !grown {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        file.write_all_at(new, self.bytes).or_else(|e| {
            let rest = self.lease.as_ref().map_or(0, Lease::unwritten);
            let room = store::is_full(&e) && keeper.relieve(length.max(rest));
            if room { file.write_all_at(new, self.bytes) } else { Err(e) }
        })?;
        self.take(new);
        if let Some(lease) = &mut self.lease {
            lease.wrote(length);
        }
        Ok(())
    }

    /// Moves the watermark.
    fn release(&self, fill: &Fill) {
        let written = self.bytes;
        fill.progress.send_if_modified(|p| {
            let hold = HOLD_BACK_BYTES.min(p.size.unwrap_or(u64::MAX));
            let limit = p.size.map_or(written.saturating_sub(hold), |s| written.min(s - hold));
            let moved = limit > p.ready;
            p.ready = p.ready.max(limit);
            moved
        });
    }
}

fn same(file: &File, at: u64, bytes: &[u8]) -> io::Result<bool> {
    let mut known = vec![0; bytes.len()];
    file.read_exact_at(&mut known, at)?;
    Ok(known == bytes)
}
