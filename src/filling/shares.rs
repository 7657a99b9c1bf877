//! Which part of a blob is fetched by whom. Pure.

use std::ops::Range;
use std::time::{Duration, Instant};

/// The least and the most that one request asks for of a blob that is fetched in parts, but for the
/// last, which takes a small rest along and may have nearly twice as much: a request costs a round
/// trip, and what lies far ahead helps nobody yet.
const PART_BYTES: Range<u64> = 8 << 20..32 << 20;

/// What must be left for a blob to be divided: the connection that the first transfer leaves has
/// some bytes under way that nobody reads.
const LEFT_BYTES_MIN: u64 = 64 << 20;

/// How long the rest of a stretch must take at its pace for another to take it over.
const RELIEF_WORTH: Duration = Duration::from_secs(2);

/// The parts of a blob that nobody fetches yet. They are proposed first: the first transfer, which
/// may be all that this upstream can do, goes on until another has been answered with a part.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// In ascending order.
    rest: Vec<Range<u64>>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Whole,
    /// Where the first transfer would end.
    Proposed(u64),
    Divided(u64),
    /// It stays whole.
    Given,
}

impl Shares {
    /// Proposes to divide what lies between `at`, where the first transfer stands, and `total` for
    /// `most` transfers. The part for the helper that is to try; `None` where it is not worth it, or
    /// has been done.
    pub(super) fn propose(&mut self, at: u64, total: u64, most: usize) -> Option<Range<u64>> {
        let left = total.saturating_sub(at);
        let part = (left / (2 * most.max(1) as u64)).clamp(PART_BYTES.start, PART_BYTES.end);
        if self.state != State::Whole || left < LEFT_BYTES_MIN {
            return None;
        }
        let first = at + part;
        self.state = State::Proposed(first);
        let mut start = first;
        while start < total {
            // No small rest at the end.
            let end = if total - start < 2 * part { total } else { start + part };
            self.rest.push(start..end);
            start = end;
        }
        Some(self.rest.remove(0))
    }

    /// Takes the proposal up, as a part has been answered while the first transfer stands at `at`.
    /// Where that one ends now; `None` where it has come too far already.
    pub(super) fn settle(&mut self, at: u64) -> Option<u64> {
        match self.state {
            State::Divided(first) => Some(first),
            State::Proposed(first) if at < first => {
                self.state = State::Divided(first);
                Some(first)
            }
            _ => None,
        }
    }

    /// Withdraws a proposal that has not been taken up.
    pub(super) fn withdraw(&mut self) {
        if let State::Proposed(_) = self.state {
            self.give_up();
        }
    }

    /// Leaves everything to one transfer again.
    pub(super) fn give_up(&mut self) {
        self.rest.clear();
        self.state = State::Given;
    }

    /// The next part in order.
    pub(super) fn take(&mut self) -> Option<Range<u64>> {
        self.are_left().then(|| self.rest.remove(0))
    }

    /// Takes back what a transfer has left.
    pub(super) fn give_back(&mut self, part: Range<u64>) {
        if self.are_divided() && !part.is_empty() {
            let place = self.rest.partition_point(|other| other.start < part.start);
            self.rest.insert(place, part);
        }
    }

    /// Whether the blob is fetched in parts.
    pub(super) fn are_divided(&self) -> bool {
        matches!(self.state, State::Divided(_))
    }

    /// Whether the blob is fetched in parts, and some are left.
    pub(super) fn are_left(&self) -> bool {
        self.are_divided() && !self.rest.is_empty()
    }
}

/// A stretch that a transfer is at. Another that has nothing to do may take the rest of it.
#[derive(Debug)]
pub(super) struct Stretch {
    begun: Instant,
    start: u64,
    /// How far it is.
    pub(super) at: u64,
    /// Where it ends.
    pub(super) until: u64,
}

impl Stretch {
    /// One that begins now.
    pub(super) fn new(part: &Range<u64>, now: Instant) -> Self {
        Self { begun: now, start: part.start, at: part.start, until: part.end }
    }

    /// How long the rest of it takes as it goes.
    fn lasts(&self, now: Instant) -> f64 {
        self.left() / self.rate(now).max(1.0)
    }

    #[expect(clippy::cast_precision_loss, reason = "it is a guess")]
    fn left(&self) -> f64 {
        self.until.saturating_sub(self.at) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "it is a guess")]
    fn rate(&self, now: Instant) -> f64 {
        (self.at - self.start) as f64 / now.duration_since(self.begun).as_secs_f64().max(0.001)
    }

    /// Takes the rest of the slowest of `others`, where this one, which has ended, would be through
    /// with it in half the time.
    pub(super) fn relieve<'a>(
        &self,
        others: impl Iterator<Item = &'a mut Self>,
        now: Instant,
    ) -> Option<Range<u64>> {
        let open = others.filter(|other| other.at < other.until);
        let slowest = open.max_by(|a, b| a.lasts(now).total_cmp(&b.lasts(now)))?;
        let mine = slowest.left() / self.rate(now).max(1.0);
        if slowest.lasts(now) < 2.0 * mine || slowest.lasts(now) < RELIEF_WORTH.as_secs_f64() {
            return None;
        }
        let rest = slowest.at..slowest.until;
        slowest.until = slowest.at;
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_parts_are_what_is_left_in_order() {
        let mut shares = Shares::default();
        assert_eq!(shares.propose(0, 63 * MIB, 4), None, "too little");
        let tried = shares.propose(10 * MIB, 410 * MIB, 4).unwrap();
        assert_eq!(shares.propose(50 * MIB, 410 * MIB, 4), None, "once");
        assert_eq!(shares.take(), None, "not yet");
        let first = shares.settle(30 * MIB).unwrap();
        assert_eq!((first, tried.start), (42 * MIB, 42 * MIB), "no part is larger than 32 MiB");
        assert_eq!(shares.settle(100 * MIB), Some(first));
        let mut at = tried.end;
        while let Some(part) = shares.take() {
            assert_eq!(part.start, at);
            assert!(part.end - part.start >= 32 * MIB && part.end - part.start < 64 * MIB);
            at = part.end;
        }
        assert_eq!(at, 410 * MIB);
    }

    #[test]
    fn what_a_transfer_leaves_is_the_next_to_be_taken() {
        let mut shares = Shares::default();
        let part = shares.propose(0, 96 * MIB, 4).unwrap();
        assert!(shares.settle(0).is_some());
        shares.give_back(part.start + 5..part.end);
        shares.give_back(part.end..part.end);
        assert_eq!(shares.take(), Some(part.start + 5..part.end));
        shares.give_up();
        assert!(shares.take().is_none() && !shares.are_divided());
    }

    #[test]
    fn without_a_part_in_time_it_stays_whole() {
        let mut shares = Shares::default();
        let part = shares.propose(0, 96 * MIB, 4).unwrap();
        assert_eq!(shares.settle(part.start), None, "the first transfer is there already");
        shares.give_back(part);
        shares.withdraw();
        assert!(!shares.are_left() && shares.take().is_none());
        assert_eq!(shares.propose(0, 96 * MIB, 4), None);
    }

    #[test]
    fn a_slow_one_is_relieved_by_one_that_has_nothing_to_do() {
        let begun = Instant::now();
        let now = begun + Duration::from_secs(10);
        let stretch = |at, until| Stretch { begun, start: 0, at, until };
        let fast = stretch(100 * MIB, 100 * MIB);
        let mut others = [stretch(90 * MIB, 99 * MIB), stretch(MIB, 50 * MIB), stretch(5, 5)];
        assert_eq!(fast.relieve(others.iter_mut(), now), Some(MIB..50 * MIB));
        assert_eq!(others[1].until, MIB, "it ends where it is");
        assert_eq!(fast.relieve(others.iter_mut(), now), None, "nearly as fast");
        let mut stalled = [stretch(0, MIB)];
        assert_eq!(fast.relieve(stalled.iter_mut(), now), Some(0..MIB));
    }
}
