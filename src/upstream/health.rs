//! Which endpoint to try first, and how long to wait before trying again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Rounds over all endpoints for one question.
pub(super) const ROUNDS_MAX: u32 = 4;

/// Failures in a row after which an endpoint is tried last.
const FAILURES_MAX: u32 = 3;

/// How long it is tried last, before one request finds out whether it is well again.
const OPEN_FOR: Duration = Duration::from_secs(10);

/// An endpoint that takes longer than this for the head of an answer, and so many times as long as
/// the quickest, is tried after the others.
const SLOW_FROM: Duration = Duration::from_secs(1);
const SLOWER_BY: u32 = 4;

/// How long a measurement says anything: afterwards a slow endpoint gets its chance again.
const MEASURED_FOR: Duration = Duration::from_secs(60);

/// The pause before round `round + 1`: doubling, with jitter so that many waiters do not come back
/// as one.
pub(super) fn pause(round: u32) -> Duration {
    let base = Duration::from_millis(100) * 2u32.pow(round.min(6));
    let jitter = base.mul_f64(f64::from(random_byte()) / 255.0);
    base / 2 + jitter
}

fn random_byte() -> u8 {
    let mut byte = [0];
    // Without randomness the pauses are merely equal.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    byte[0]
}

/// When an endpoint's turn comes; the first is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In the order of the configuration.
    Usual,
    /// After quicker ones.
    Slow,
    /// When nothing else answers.
    Last,
}

/// A circuit breaker for one endpoint. Open means "last in the order", never "not asked": an
/// endpoint that has come back is found at once when nothing else answers.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
    /// The time to the head of an answer, smoothed, and when it was last measured.
    latency: Option<(Duration, Instant)>,
}

impl Health {
    /// When its turn comes, beside endpoints of which the quickest takes `best`. Half open, it gets
    /// its usual place for one request only, until that has succeeded.
    pub(super) fn place(&self, best: Option<Duration>, now: Instant) -> Place {
        let mut state = self.0.lock();
        match state.open_until {
            Some(until) if now < until => return Place::Last,
            Some(_) => state.open_until = Some(now + OPEN_FOR), // this request finds out
            None => {}
        }
        let own = state.latency.filter(|(_, at)| now.duration_since(*at) < MEASURED_FOR);
        match (own, best) {
            (Some((own, _)), Some(best)) if own > SLOW_FROM && own > best * SLOWER_BY => {
                Place::Slow
            }
            _ => Place::Usual,
        }
    }

    /// How long it takes, where that is known.
    pub(super) fn latency(&self, now: Instant) -> Option<Duration> {
        let state = self.0.lock();
        let (latency, at) = state.latency?;
        (now.duration_since(at) < MEASURED_FOR).then_some(latency)
    }

    /// It answered, after so long.
    pub(super) fn succeeded(&self, took: Duration, now: Instant) {
        let mut state = self.0.lock();
        let smoothed = match state.latency {
            Some((before, at)) if now.duration_since(at) < MEASURED_FOR => (before * 3 + took) / 4,
            _ => took,
        };
        *state = State { latency: Some((smoothed, now)), ..State::default() };
    }

    /// It did not.
    pub(super) fn failed(&self, now: Instant) {
        let mut state = self.0.lock();
        state.failures += 1;
        if state.failures >= FAILURES_MAX {
            state.open_until = Some(now + OPEN_FOR);
        }
    }

    /// A transfer broke or stalled: it is resumed elsewhere, if there is an elsewhere. Heads that
    /// come well do not make up for bodies that do not.
    pub(super) fn broke(&self, now: Instant) {
        self.0.lock().open_until = Some(now + OPEN_FOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(10);

    #[test]
    fn three_failures_in_a_row_open_the_circuit_for_a_while() {
        let (health, now) = (Health::default(), Instant::now());
        health.failed(now);
        health.failed(now);
        assert_eq!(health.place(None, now), Place::Usual);
        health.failed(now);
        assert_eq!(health.place(None, now), Place::Last);
        health.succeeded(QUICK, now);
        assert_eq!(health.place(None, now), Place::Usual);
    }

    #[test]
    fn half_open_one_request_finds_out() {
        let (health, now) = (Health::default(), Instant::now());
        health.broke(now);
        let later = now + OPEN_FOR;
        assert_eq!(health.place(None, later), Place::Usual);
        assert_eq!(health.place(None, later), Place::Last, "one is enough");
        health.succeeded(QUICK, later);
        assert_eq!(health.place(None, later), Place::Usual);
    }

    #[test]
    fn a_slow_endpoint_comes_after_quick_ones_for_a_while() {
        let (health, now) = (Health::default(), Instant::now());
        health.succeeded(Duration::from_secs(3), now);
        assert_eq!(health.place(Some(QUICK), now), Place::Slow);
        assert_eq!(health.place(Some(Duration::from_secs(2)), now), Place::Usual);
        assert_eq!(health.place(Some(QUICK), now + MEASURED_FOR), Place::Usual);
    }

    #[test]
    fn pauses_grow() {
        assert!(pause(0) < Duration::from_millis(200));
        assert!(pause(4) >= Duration::from_millis(800));
    }
}
