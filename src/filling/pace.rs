//! Whether one more transfer would help a blob along. Pure.

use std::time::{Duration, Instant};

/// Bytes a second from which on the connection is not what limits a transfer, or no other would
/// help it: half of what a common network card does.
const FAST: f64 = 64e6;

/// How much of the transfers' time may be lag: with more, this machine or its disk is what limits them.
/// The HTTP client's own tasks wait for threads as well, unseen, so the true share is about twice this.
const LAG_MAX: f64 = 0.2;

/// How late a look may be: a machine that stood still for so long has kept all waiting, unseen.
const LATE_MAX: Duration = Duration::from_millis(100);

/// How often the pace is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long the rest must take at the present pace for one more transfer to be worth its request.
const WORTH: Duration = Duration::from_secs(2);

/// How fast a blob comes.
#[derive(Debug)]
pub(super) struct Pace {
    looked: Instant,
    bytes: u64,
    /// Bytes in a second before the last transfer was added.
    before: f64,
    /// Looks since then, or since one that said nothing of the line. Two are needed: the first sees a
    /// transfer begin.
    looks: u32,
}

/// What is seen at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// What [`Lag::take`](super::lag::Lag::take) says.
    pub(super) lag: Duration,
    /// Bytes received by now.
    pub(super) received: u64,
    /// Bytes still to come; `None` where the size is not known.
    pub(super) left: Option<u64>,
    /// Transfers under way, answered or not.
    pub(super) running: usize,
}

impl Pace {
    /// From now on.
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: now, bytes: 0, before: 0.0, looks: 0 }
    }

    /// Whether one more transfer would help: the rest takes long, it is the connection that limits
    /// them (a single one is not fast, and this machine takes what comes at once), and the last one
    /// that was added has brought something.
    pub(super) fn wants_more(&mut self, now: Instant, look: Look) -> bool {
        let Look { received, running, .. } = look;
        let seconds = now.duration_since(self.looked).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "it is a guess")]
        let (rate, left) =
            ((received - self.bytes) as f64 / seconds.max(0.001), look.left.unwrap_or(0) as f64);
        (self.looked, self.bytes) = (now, received);
        self.looks += 1;
        let fast = running == 1 && rate > FAST;
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let lag = look.lag.as_secs_f64() / (seconds.max(0.001) * running as f64);
        let is_late = seconds > (LOOK_EVERY + LATE_MAX).as_secs_f64();
        if fast || lag > LAG_MAX || is_late {
            self.looks = 0; // what was seen does not speak against the line
        }
        if self.looks < 2 || rate <= 0.0 || left / rate < WORTH.as_secs_f64() {
            return false;
        }
        // A fair share of the pace before, or half of one: networks are not even.
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let enough = self.before * (1.0 + 0.5 / running.max(2).saturating_sub(1) as f64);
        if running > 1 && rate < enough {
            return false;
        }
        (self.before, self.looks) = (rate, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// One transfer on a machine with time to spare.
    const IDLE: Look = Look { lag: Duration::ZERO, received: 0, left: None, running: 1 };

    #[test]
    fn transfers_are_added_while_each_brings_something() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut received = 0;
        let mut look = |mib: u64, running: usize, left: u64| {
            now += LOOK_EVERY;
            received += mib * MIB;
            let left = Some(left * MIB);
            pace.wants_more(now, Look { received, left, running, ..IDLE })
        };
        assert!(!look(5, 1, 400), "the first look sees it begin");
        assert!(look(5, 1, 395));
        assert!(!look(6, 2, 390) && look(10, 2, 380), "twice as fast");
        assert!(!look(10, 3, 370) && !look(10, 3, 360), "the third has brought nothing");
        assert!(!look(15, 3, 90), "the rest is there within two seconds");
        assert!(look(15, 3, 300));
        let mut pace = Pace::new(now);
        let fast = |received| Look { received, left: Some(1 << 40), ..IDLE };
        assert!(!pace.wants_more(now + LOOK_EVERY, fast(0)));
        assert!(!pace.wants_more(now + 2 * LOOK_EVERY, fast(20 * MIB)), "fast enough");
        assert!(!pace.wants_more(now + 3 * LOOK_EVERY, fast(21 * MIB)), "one hiccup");
        assert!(pace.wants_more(now + 4 * LOOK_EVERY, fast(22 * MIB)));
    }

    #[test]
    fn a_blob_of_unknown_size_or_a_dead_line_gets_no_more() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for (received, left) in [(100, None), (200, None), (200, Some(1 << 40))] {
            now += LOOK_EVERY;
            let look = Look { received, left, ..IDLE };
            assert!(!pace.wants_more(now, look));
        }
    }

    #[test]
    fn a_machine_without_time_to_spare_is_not_given_more_to_do() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        // Milliseconds that the look is late, and that what had come was kept waiting.
        let seen = [
            (0, 0, false),
            (0, 60, false),
            (0, 0, false),
            (0, 40, true),
            (0, 40, false),
            (130, 0, false),
            (0, 0, false),
            (0, 40, true),
        ];
        for (n, (late, lag, more)) in seen.into_iter().enumerate() {
            now += LOOK_EVERY + Duration::from_millis(late);
            let (lag, received) = (Duration::from_millis(lag), (n as u64 + 1) * MIB);
            let look = Look { lag, received, left: Some(400 * MIB), ..IDLE };
            assert_eq!(pace.wants_more(now, look), more, "look {n}");
        }
    }
}
