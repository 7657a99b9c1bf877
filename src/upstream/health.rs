//! Which endpoint to try first, and how long to wait before trying again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Rounds over all endpoints for one question.
pub(super) const ROUNDS_MAX: u32 = 4;

/// Failures in a row after which an endpoint is tried last.
const FAILURES_MAX: u32 = 3;

/// How long it is tried last, before it gets its turn again.
const OPEN_FOR: Duration = Duration::from_secs(10);

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

/// A circuit breaker for one endpoint. Open means "last in the order", never "not asked": an
/// endpoint that has come back is found at once when nothing else answers.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
}

impl Health {
    /// Whether the endpoint is to be tried last.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.0.lock().open_until.is_some_and(|until| now < until)
    }

    /// It answered.
    pub(super) fn succeeded(&self) {
        *self.0.lock() = State::default();
    }

    /// It did not.
    pub(super) fn failed(&self, now: Instant) {
        let mut state = self.0.lock();
        state.failures += 1;
        if state.failures >= FAILURES_MAX {
            state.open_until = Some(now + OPEN_FOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_open_the_circuit_for_a_while() {
        let (health, now) = (Health::default(), Instant::now());
        health.failed(now);
        health.failed(now);
        assert!(!health.is_open(now));
        health.failed(now);
        assert!(health.is_open(now) && !health.is_open(now + OPEN_FOR));
        health.succeeded();
        assert!(!health.is_open(now));
    }

    #[test]
    fn pauses_grow() {
        assert!(pause(0) < Duration::from_millis(200));
        assert!(pause(4) >= Duration::from_millis(800));
    }
}
