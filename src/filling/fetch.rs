//! The transfers of one fill: the first, and such as help it with parts of a large blob.
//!
//! The first begins at the front and reads on for as long as nothing else is decided. Where the
//! upstream's connection is what limits it, the rest is divided, and helpers are added while each
//! brings something. All of them run in the fill's own task and end with it.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};

use super::Task;
use super::front::{self, Front, Sink};
use super::shares::{LOOK_EVERY, Look, Pace, Shares};
use crate::error::{Error, Kind, Result};
use crate::store::Link;
use crate::upstream::ask::{self, Ask};
use crate::upstream::{Answer, Patience};

/// Attempts that may end without a single new byte, one after the other.
const FRUITLESS_MAX: u32 = 3;

impl Task {
    /// Downloads from where `known` ends, again from where it broke, until the upstream's end.
    pub(super) async fn fetch(&self, known: Front) -> Result<Front> {
        let (sink, inbox) = front::sink();
        let from = known.bytes;
        let written = known.write(&self.fills, &self.fill, inbox);
        let fetched = async {
            let transfers = Transfers::new(self, sink, from);
            transfers.run(from).await
        };
        let (written, fetched) = tokio::join!(written, fetched);
        let written = written?; // its error is the reason for the other
        fetched.map(|()| written)
    }
}

/// How a transfer ended, and whether it was the first.
type Ended = (bool, Result<()>);

/// What a helper keeps from others while it runs.
type Turns<'a> = (SemaphorePermit<'a>, OwnedSemaphorePermit);

struct Transfers<'a> {
    task: &'a Task,
    sink: Sink,
    shares: Mutex<Shares>,
    /// Where the first transfer stands, and where it ends.
    at: AtomicU64,
    until: AtomicU64,
    /// Bytes that all of them have received, and what there was before them.
    received: AtomicU64,
    known: u64,
}

impl<'a> Transfers<'a> {
    fn new(task: &'a Task, sink: Sink, known: u64) -> Self {
        Self {
            task,
            sink,
            shares: Mutex::default(),
            at: AtomicU64::new(known),
            until: AtomicU64::new(u64::MAX),
            received: AtomicU64::new(0),
            known,
        }
    }

    async fn run(&self, from: u64) -> Result<()> {
        let mut all: FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + Send + '_>>> =
            FuturesUnordered::new();
        all.push(Box::pin(self.first(from)));
        let mut pace = Pace::new(Instant::now());
        let mut looks = tokio::time::interval_at((Instant::now() + LOOK_EVERY).into(), LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut may_help = true;
        loop {
            tokio::select! {
                Some((first, ended)) = all.next() => {
                    if let Err(error) = ended {
                        if first {
                            return Err(error);
                        }
                        tracing::info!(digest = %self.task.fill.digest, ?error, "a part is left to other transfers");
                        may_help = false;
                        self.shares.lock().withdraw();
                    }
                    match (all.is_empty(), self.shares.lock().are_left()) {
                        (false, _) => {}
                        (true, false) => return Ok(()),
                        // A helper has left something, and nobody else is there to take it.
                        (true, true) => all.push(Box::pin(async { (true, self.take_parts().await) })),
                    }
                }
                due = looks.tick(), if may_help => {
                    if self.wants_more(&mut pace, due.elapsed(), all.len())
                        && let Some(turns) = self.turns()
                        && self.divide()
                    {
                        all.push(Box::pin(self.help(turns)));
                    }
                }
            }
        }
    }

    /// Whether one more transfer would help, by what is seen and what the upstream lets us.
    fn wants_more(&self, pace: &mut Pace, late: Duration, running: usize) -> bool {
        let received = self.received.load(Ordering::Relaxed);
        let size = self.task.fill.progress.borrow().size;
        let left = size.map(|size| size.saturating_sub(self.known + received));
        let more = pace.wants_more(Instant::now(), Look { late, received, left, running });
        let upstream = &self.task.fill.upstream;
        more && running < upstream.segments() && !upstream.is_low() && !self.sink.is_full()
    }

    /// The turns of a helper, where no other fill needs them.
    fn turns(&self) -> Option<Turns<'a>> {
        let fills = &self.task.fills;
        let own = fills.helpers.try_acquire().ok()?;
        let turn = fills.turns(self.task.fill.upstream.name()).try_acquire_owned().ok()?;
        Some((own, turn))
    }

    /// Whether there is something for a helper, now that one is wanted.
    fn divide(&self) -> bool {
        let mut shares = self.shares.lock();
        let size = self.task.fill.progress.borrow().size;
        let (at, most) = (self.at.load(Ordering::Relaxed), self.task.fill.upstream.segments());
        shares.are_left() || size.is_some_and(|size| shares.propose(at, size, most))
    }

    /// The transfer that begins at the front, with all that is nobody else's.
    async fn first(&self, from: u64) -> Ended {
        let mut position = from;
        let mut ended = self.stretch(&mut position, None).await;
        if ended.is_ok() {
            ended = self.take_parts().await;
        }
        (true, ended)
    }

    async fn help(&self, _turns: Turns<'a>) -> Ended {
        (false, self.take_parts().await)
    }

    /// Fetches parts until none is left. What it does not get to it gives back.
    async fn take_parts(&self) -> Result<()> {
        loop {
            let Some(part) = self.shares.lock().take() else { return Ok(()) };
            let mut position = part.start;
            let ended = self.stretch(&mut position, Some(part.clone())).await;
            if ended.is_err() {
                self.shares.lock().give_back(position..part.end);
                return ended;
            }
        }
    }

    /// One stretch, again from where it broke.
    async fn stretch(&self, position: &mut u64, part: Option<Range<u64>>) -> Result<()> {
        let mut fruitless = 0;
        loop {
            let before = *position;
            let error = match self.attempt(position, part.as_ref()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            fruitless = if *position > before { 0 } else { fruitless + 1 };
            let begun = self.task.fill.progress.borrow().head;
            let again = error.kind() == Kind::Unavailable && fruitless < FRUITLESS_MAX && begun;
            if !again || self.sink.is_closed() {
                return Err(error);
            }
            tracing::info!(digest = %self.task.fill.digest, from = *position, ?error, "transfer broke; resuming");
        }
    }

    /// One transfer, from `position` to the end or to a break.
    async fn attempt(&self, position: &mut u64, part: Option<&Range<u64>>) -> Result<()> {
        let Task { fill, .. } = self.task;
        let repository = &fill.place.repository;
        let ask = match part {
            Some(part) => Ask::blob_part(repository, &fill.digest, *position..part.end),
            None => Ask::blob_from(repository, &fill.digest, *position),
        };
        let mut answer = fill.upstream.ask(&ask, Patience::Full).await?;
        let (mut at, total) = self.accept(&answer, &ask).await?;
        let end = || match part {
            Some(part) => part.end,
            None => self.until.load(Ordering::Relaxed),
        };
        while part.is_some() || at < end() {
            let Some(bytes) = answer.piece().await? else { break };
            let begin = at;
            at += bytes.len() as u64;
            if total.is_some_and(|t| at > t) || part.is_some_and(|p| at > p.end) {
                return Err(self.task.bad("sent more bytes than it announced"));
            }
            self.put(begin, bytes, end()).await?;
            *position = at.min(end()).max(*position);
            if part.is_none() {
                self.at.store(*position, Ordering::Relaxed);
            }
        }
        match total {
            Some(total) if at < total.min(end()) => {
                let name = fill.upstream.name();
                let text = format!("{name} ended the transfer at byte {at} of {total}");
                Err(Error::new(Kind::Unavailable, text))
            }
            _ => Ok(()),
        }
    }

    /// Hands over what lies before `end`.
    async fn put(&self, at: u64, mut bytes: Bytes, end: u64) -> Result<()> {
        bytes.truncate(usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX));
        let length = bytes.len() as u64;
        if !self.sink.put(at, bytes).await {
            return Err(self.writer_gone());
        }
        self.received.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Judges the head of an answer: where it begins, and the whole size where that is known.
    async fn accept(&self, answer: &Answer, ask: &Ask) -> Result<(u64, Option<u64>)> {
        let task = self.task;
        let (start, total) = ask::extent(answer.status(), answer.headers(), ask.range)
            .map_err(|why| task.bad(&format!("answered with {why}")))?;
        let is_part = matches!(ask.range, Some((_, Some(_))));
        if is_part && answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(task.bad("answers a request for a part with all"));
        }
        if is_part {
            let until = self.shares.lock().settle(self.at.load(Ordering::Relaxed));
            let late =
                || Error::new(Kind::Unavailable, "the first transfer has come this far itself");
            self.until.store(until.ok_or_else(late)?, Ordering::Relaxed);
        }
        let told = task.fill.progress.borrow().size;
        if let (Some(told), Some(total)) = (told, total)
            && told != total
        {
            let text = format!("says the blob has {total} bytes, and said {told} before");
            return Err(task.bad(&text));
        }
        let size = total.or(told);
        if !is_part {
            self.begin(size, told.is_none()).await?;
        }
        Ok((start, size))
    }

    /// Notes the proof that an answer gives and the size, and takes room for it.
    async fn begin(&self, size: Option<u64>, is_news: bool) -> Result<()> {
        let Task { fills, fill, .. } = self.task;
        let (store, place) = (&fills.store, &fill.place);
        store.set_link(place, &fill.digest, Link::default()).await;
        if fill.upstream.is_anonymous() {
            store.set_link(&place.anyones(), &fill.digest, Link::default()).await;
        }
        if is_news && let Some(size) = size {
            let keeper = Arc::clone(store.keeper());
            let lease = store.blocking(move |_| Ok(keeper.reserve(size))).await.ok().flatten();
            let full = || self.task.disk_failed(io::ErrorKind::StorageFull.into());
            if !self.sink.lease(lease.ok_or_else(full)?).await {
                return Err(self.writer_gone());
            }
        }
        fill.progress.send_modify(|p| {
            p.head = true;
            p.size = size;
        });
        Ok(())
    }

    /// The writer has ended early; what it ended with is the error that counts.
    fn writer_gone(&self) -> Error {
        Error::new(Kind::Internal, format!("{} cannot be written", self.task.fill.digest))
    }
}
