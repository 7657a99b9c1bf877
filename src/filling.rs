//! The task of one fill: download (`fetch`), hash and write (`front`), publish. Large content is
//! fetched in parallel parts (`shares`) where that is faster (`pace`, `lag`). `traced` has its spans.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use crate::blocks::{Large, Summing};
use crate::digest::Digest;
use crate::disk::Filling;
use crate::error::{Error, Kind, Result};
use crate::fill::{Fill, Fills, Follower, Why};
use crate::keeper::Lease;
use crate::limits::{ANSWER_WITHIN, SMALL_BYTES_MAX};
use crate::store::Place;
use crate::traces::Span;
use crate::upstream::Upstream;

mod fetch;
mod front;
mod lag;
mod pace;
mod shares;
mod traced;

use front::Front;

/// Follows the fill of a digest, and starts it where none is under way. The flag says whether it
/// was joined. `cause` is why it would be begun, and the span of the request that did so.
pub fn join_or_start(
    fills: &Arc<Fills>,
    upstream: &Arc<Upstream>,
    place: &Place,
    digest: Digest,
    cause: (Why, Option<&Span>),
) -> (Follower, bool) {
    fills.join_or(upstream, place, digest, cause, |fill| {
        let task = Task { fills: Arc::clone(fills), fill, is_resumable: OnceLock::new() };
        tokio::spawn(task.run());
    })
}

struct Task {
    fills: Arc<Fills>,
    fill: Arc<Fill>,
    /// Whether the next attempt finds the file again.
    is_resumable: OnceLock<bool>,
}

impl Task {
    async fn run(self) {
        self.fills.metrics.fills_in_flight.inc();
        traced::begun(&self.fill);
        let ending = Ending(&self);
        let turns = self.fills.turns(self.fill.upstream.name());
        let outcome = match tokio::time::timeout(ANSWER_WITHIN, turns.acquire()).await {
            Ok(Ok(_turn)) => {
                self.fill.has_turn.store(true, Ordering::Relaxed);
                traced::has_turn(&self.fill);
                self.fill().await
            }
            Ok(Err(e)) => Err(Error::internal("the queue of fills is closed", e)),
            Err(_) => {
                let text =
                    format!("too many downloads from {} are under way", self.fill.upstream.name());
                Err(Error::new(Kind::Unavailable, text))
            }
        };
        self.fills.metrics.fill_ended(word(&outcome));
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
        let Front { hasher, summing, bytes, lease, .. } = written;
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
    async fn open(&self) -> Result<Front> {
        let waited = self.fills.store.scanned().await;
        let digest = self.fill.digest;
        let opened = self
            .fills
            .store
            .blocking(move |s| {
                waited?;
                s.keeper().unspare(&s.disk().fill_path(&digest));
                let filling = s.disk().open_fill(&digest)?;
                s.disk().cut_to_front(&filling.path, &filling.file, None)?;
                let front = Front::read(&filling.file, digest)?;
                Ok((filling, front))
            })
            .await;
        let (Filling { file, path, is_resumable }, front) =
            opened.map_err(|e| self.disk_failed(e))?;
        let (_, _) = (self.fill.path.set(path), self.fill.file.set(Arc::new(file))); // set here only
        let _ = self.is_resumable.set(is_resumable);
        self.fill.progress.send_if_modified(|p| {
            p.written = front.bytes;
            false // nobody may have it before the upstream has been asked
        });
        Ok(front)
    }

    async fn publish(&self, summing: Summing, bytes: u64, lease: Option<Lease>) -> Result<()> {
        let (Some(file), Some(path)) =
            (self.fill.file.get().cloned(), self.fill.path.get().cloned())
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

    fn bad(&self, what: &str) -> Error {
        let text = format!("{} {what} ({})", self.fill.upstream.name(), self.fill.digest);
        Error::new(Kind::BadUpstream, text)
    }

    fn disk_failed(&self, error: io::Error) -> Error {
        Error::new(Kind::DiskFailed, format!("{} cannot be kept", self.fill.digest)).because(error)
    }

    fn drop_file(&self) {
        if let Some(path) = self.fill.path.get() {
            self.fills.store.disk().drop_fill(path);
        }
    }

    /// Leaves the file for the next attempt, and has it counted.
    fn leave_file(&self) {
        if let Some(file) = self.fill.file.get() {
            let _ = file.unlock(); // slow followers may have it open for long
        }
        if let Some(path) = self.fill.path.get() {
            self.fills.store.keeper().spare(path.clone(), self.bytes());
        }
    }

    /// Cuts off what lies behind a gap. Nobody writes any more.
    fn cut_file(&self) {
        let (Some(file), Some(path)) = (self.fill.file.get(), self.fill.path.get()) else { return };
        let front = self.fill.progress.borrow().written;
        let disk = self.fills.store.disk();
        if let Err(error) = disk.cut_to_front(path, file, Some(front)) {
            tracing::warn!(%error, digest = %self.fill.digest, "a broken download is not cut");
        }
    }

    fn bytes(&self) -> u64 {
        self.fill.file.get().and_then(|f| f.metadata().ok()).map_or(0, |about| about.len())
    }
}

/// How a fill ended, in metrics and traces.
fn word(outcome: &Result<()>) -> &'static str {
    match outcome {
        Ok(()) => "stored",
        Err(e) if e.kind() == Kind::Unavailable => "broken",
        Err(e) if e.kind() == Kind::DiskFailed => "not_kept",
        Err(e) if e.is_outage() => "bad_upstream",
        Err(e) if e.kind() == Kind::Internal => "failed",
        Err(_) => "refused",
    }
}

/// Tells the followers how it ended, even where the task panics: dropped without an outcome means
/// failed. A transfer that broke leaves its file for the next attempt; wrong bytes do not stay.
struct Ending<'a>(&'a Task);

impl Ending<'_> {
    fn with(self, outcome: Result<()>) {
        let task = self.0;
        std::mem::forget(self);
        if outcome.is_err() {
            task.cut_file();
        }
        Self::end(task, outcome);
    }

    fn end(task: &Task, outcome: Result<()>) {
        // What has come is worth resuming, unless it may be wrong.
        let broke = |e: &Error| {
            matches!(e.kind(), Kind::Unavailable | Kind::TooManyRequests | Kind::NoLogin)
        };
        match &outcome {
            Ok(()) => {}
            Err(e) if broke(e) && task.bytes() > 0 && task.is_resumable.get() == Some(&true) => {
                task.leave_file();
            }
            Err(_) => task.drop_file(),
        }
        traced::ended(&task.fill, &outcome);
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
