//! The transfers of one fill: the first, and such as help it with parts of a large blob.
//!
//! The first begins at the front and reads on for as long as nothing else is decided. Where the
//! upstream's connection is what limits it, the rest is divided, and helpers are added while each
//! brings something. All of them run in the fill's own task and end with it. Helpers are only that: what
//! goes wrong with them costs nothing but time.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};

use super::Task;
use super::front::{self, Front, Sink};
use super::lag::Lag;
use super::pace::{LOOK_EVERY, Look, Pace};
use super::shares::{Shares, Stretch};
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

/// Which transfer has ended, and how.
enum Ended {
    /// The first: without it there is nothing.
    First(Result<()>),
    Helper(Result<()>),
}

type Running<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + Send + 'a>>>;

/// What a helper keeps from others while it runs.
type Turns<'a> = (SemaphorePermit<'a>, OwnedSemaphorePermit);

/// Counts a transfer for as long as it lives.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Transfers<'a> {
    task: &'a Task,
    sink: Sink,
    state: Mutex<State>,
    /// What there was before.
    known: u64,
    /// What of their time is not the connection's.
    lag: Lag,
}

#[derive(Default)]
struct State {
    shares: Shares,
    /// Every stretch begun so far, the first transfer's first.
    stretches: Vec<Stretch>,
    /// Bytes that all of them have received.
    received: u64,
}

impl<'a> Transfers<'a> {
    fn new(task: &'a Task, sink: Sink, known: u64) -> Self {
        Self { task, sink, state: Mutex::default(), known, lag: Lag::default() }
    }

    async fn run(&self, from: u64) -> Result<()> {
        let mut all = Running::new();
        all.push(Box::pin(self.first(from)));
        let mut pace = Pace::new(Instant::now());
        let mut looks = tokio::time::interval_at((Instant::now() + LOOK_EVERY).into(), LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut may_help = true;
        loop {
            tokio::select! {
                biased; // what has come is handed over before a look is taken at how long it lay about
                Some(ended) = all.next() => {
                    if let Some(outcome) = self.judge(ended, &mut may_help, &mut all) {
                        return outcome;
                    }
                }
                _ = looks.tick(), if may_help => {
                    if self.wants_more(&mut pace, all.len())
                        && let Some(turns) = self.turns()
                        && let Some(part) = self.divide()
                    {
                        all.push(Box::pin(self.help(part, Some(turns))));
                    }
                }
            }
        }
    }

    /// What follows from the end of a transfer; an outcome, where nothing more is to be waited for.
    fn judge<'s>(
        &'s self,
        ended: Ended,
        may_help: &mut bool,
        all: &mut Running<'s>,
    ) -> Option<Result<()>> {
        let mut state = self.state.lock();
        let is_first = matches!(ended, Ended::First(_));
        match ended {
            Ended::First(Err(error)) => return Some(Err(error)),
            // It has brought all, whatever helpers are still about.
            Ended::First(Ok(())) if !state.shares.are_divided() => return Some(Ok(())),
            Ended::Helper(Err(error)) => {
                tracing::info!(digest = %self.task.fill.digest, ?error, "a part is left to other transfers");
                *may_help = false;
                state.shares.withdraw();
            }
            Ended::First(Ok(())) | Ended::Helper(Ok(())) => {}
        }
        let open = state.stretches.iter().any(|stretch| stretch.at < stretch.until);
        let idle = |state: &mut State| if is_first { state.relieve(0) } else { None };
        match state.shares.take().or_else(|| idle(&mut state)) {
            // The first one's turn is free, and helpers have not failed.
            Some(part) if *may_help => all.push(Box::pin(self.help(part, None))),
            Some(_) if all.is_empty() => {
                // Helpers have left something and do not help: all of it by one, from the front.
                state.shares.give_up();
                let front = self.task.fill.progress.borrow().written;
                drop(state);
                all.push(Box::pin(self.first(front)));
            }
            Some(part) => state.shares.give_back(part),
            None if !open => return Some(Ok(())),
            None => {}
        }
        None
    }

    /// Whether one more transfer would help, by what is seen and what the upstream lets us.
    fn wants_more(&self, pace: &mut Pace, running: usize) -> bool {
        let received = self.state.lock().received;
        let size = self.task.fill.progress.borrow().size;
        let left = size.map(|size| size.saturating_sub(self.known + received));
        let look = Look { lag: self.lag.take(), received, left, running };
        let more = pace.wants_more(Instant::now(), look);
        let upstream = &self.task.fill.upstream;
        more && running < upstream.segments() && !upstream.is_low() && !upstream.is_crowded()
    }

    /// The turns of a helper, where no other fill needs them.
    fn turns(&self) -> Option<Turns<'a>> {
        let fills = &self.task.fills;
        let own = fills.helpers.try_acquire().ok()?;
        let turn = fills.turns(self.task.fill.upstream.name()).try_acquire_owned().ok()?;
        Some((own, turn))
    }

    /// What a helper may take, now that one is wanted.
    fn divide(&self) -> Option<Range<u64>> {
        let mut state = self.state.lock();
        let size = self.task.fill.progress.borrow().size?;
        let at = state.stretches.first()?.at;
        state
            .shares
            .take()
            .or_else(|| state.shares.propose(at, size, self.task.fill.upstream.segments()))
    }

    /// The transfer from `from` on with all that is nobody else's.
    async fn first(&self, from: u64) -> Ended {
        let index = self.begin_stretch(&(from..u64::MAX));
        Ended::First(self.stretch(index, false).await)
    }

    /// Fetches parts until none is left, and then what others are too slow with. What it does not get
    /// to it gives back.
    async fn help(&self, mut part: Range<u64>, _turns: Option<Turns<'a>>) -> Ended {
        loop {
            let index = self.begin_stretch(&part);
            let ended = self.stretch(index, true).await;
            let mut state = self.state.lock();
            if ended.is_err() {
                let Stretch { at, until, .. } = state.stretches[index];
                state.stretches[index].until = at;
                state.shares.give_back(at..until);
                return Ended::Helper(ended);
            }
            let next = state.shares.take().or_else(|| state.relieve(index));
            let Some(next) = next else { return Ended::Helper(Ok(())) };
            part = next;
        }
    }

    fn begin_stretch(&self, part: &Range<u64>) -> usize {
        let stretches = &mut self.state.lock().stretches;
        stretches.push(Stretch::new(part, Instant::now()));
        stretches.len() - 1
    }

    /// One stretch, again from where it broke.
    async fn stretch(&self, index: usize, is_part: bool) -> Result<()> {
        let mut fruitless = 0;
        loop {
            let before = self.state.lock().stretches[index].at;
            let error = match self.attempt(index, is_part).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let at = self.state.lock().stretches[index].at;
            fruitless = if at > before { 0 } else { fruitless + 1 };
            let begun = self.task.fill.progress.borrow().head;
            let again = error.kind() == Kind::Unavailable && fruitless < FRUITLESS_MAX && begun;
            if !again || self.sink.is_closed() {
                return Err(error);
            }
            tracing::info!(digest = %self.task.fill.digest, from = at, ?error, "transfer broke; resuming");
        }
    }

    /// One transfer, from where a stretch is to its end or to a break.
    async fn attempt(&self, index: usize, is_part: bool) -> Result<()> {
        let fill = &self.task.fill;
        let repository = &fill.place.repository;
        let (from, until) = self.bounds_of(index);
        if from >= until {
            return Ok(());
        }
        let (ask, patience) = if is_part {
            (Ask::blob_part(repository, &fill.digest, from..until), Patience::Spare)
        } else {
            (Ask::blob_from(repository, &fill.digest, from), Patience::Full)
        };
        let mut answer = fill.upstream.ask(&ask, patience).await?;
        let (mut at, total) = self.accept(&answer, &ask, is_part).await?;
        let _counted = UnderWay::new(&fill.transfers);
        let mut watch = self.lag.watch();
        while at < self.bounds_of(index).1 {
            let Some(bytes) = watch.wait(answer.piece()).await? else { break };
            let begin = at;
            at += bytes.len() as u64;
            if !is_part && total.is_some_and(|t| at > t) {
                return Err(self.task.bad("sent more bytes than it announced"));
            }
            self.put(index, begin, bytes).await?;
        }
        match total {
            Some(total) if at < total.min(self.bounds_of(index).1) => {
                let name = fill.upstream.name();
                let text = format!("{name} ended the transfer at byte {at} of {total}");
                Err(Error::new(Kind::Unavailable, text))
            }
            _ => Ok(()),
        }
    }

    /// Where a stretch is, and where it ends by now.
    fn bounds_of(&self, index: usize) -> (u64, u64) {
        let stretch = &self.state.lock().stretches[index];
        (stretch.at, stretch.until)
    }

    /// Hands over what lies before the end of a stretch.
    async fn put(&self, index: usize, begin: u64, mut bytes: Bytes) -> Result<()> {
        let (_, until) = self.bounds_of(index);
        bytes.truncate(usize::try_from(until.saturating_sub(begin)).unwrap_or(usize::MAX));
        let length = bytes.len() as u64;
        if length > 0 && !self.sink.put(begin, bytes).await {
            return Err(self.writer_gone());
        }
        let mut state = self.state.lock();
        state.received += length;
        let stretch = &mut state.stretches[index];
        // Its end may have come nearer while the piece was handed over.
        stretch.at = stretch.at.max(begin + length).min(stretch.until.max(stretch.at));
        Ok(())
    }

    /// Judges the head of an answer: where it begins, and the whole size where that is known.
    async fn accept(
        &self,
        answer: &Answer,
        ask: &Ask,
        is_part: bool,
    ) -> Result<(u64, Option<u64>)> {
        let task = self.task;
        let (start, total) = ask::extent(answer.status(), answer.headers(), ask.range)
            .map_err(|why| task.bad(&format!("answered with {why}")))?;
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
            return Ok((start, size));
        }
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(task.bad("answers a request for a part with all"));
        }
        let mut state = self.state.lock();
        let Some(first) = state.stretches.first().map(|first| first.at) else {
            return Ok((start, size));
        };
        let was_divided = state.shares.are_divided();
        let until = state.shares.settle(first).ok_or_else(|| {
            Error::new(Kind::Internal, "the first transfer has come this far itself")
        })?;
        if !was_divided {
            state.stretches[0].until = until;
        }
        Ok((start, size))
    }

    /// Notes the proof that an answer gives and the size, and takes room for it.
    async fn begin(&self, size: Option<u64>, is_news: bool) -> Result<()> {
        let Task { fills, fill, .. } = self.task;
        let (store, place) = (&fills.store, &fill.place);
        let mut places = vec![place.clone()];
        if fill.upstream.is_anonymous() {
            places.push(place.anyones());
        }
        store.set_links(places, &fill.digest, Link::default()).await;
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

impl State {
    /// What the transfer that has just been at a stretch may take from another, which is slow.
    fn relieve(&mut self, index: usize) -> Option<Range<u64>> {
        if !self.shares.are_divided() {
            return None;
        }
        let now = Instant::now();
        let (before, rest) = self.stretches.split_at_mut(index);
        let (mine, after) = rest.split_first_mut()?;
        mine.relieve(before.iter_mut().chain(after), now)
    }
}
