//! What is left of an account's limit, and for how long it is not to be asked. Pure: time is
//! passed in.

use std::time::{Duration, Instant};

use http::HeaderMap;

use super::ask::Object;
use crate::limits::{BUDGET_LOOK_EVERY, LIMIT_PAUSE_FIRST, LIMIT_PAUSE_MAX};

/// What a limit is counted by: Docker Hub counts manifests, and its other limit is about
/// everything; one that is reached must not stop what the other still lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Manifests.
    Counted,
    /// Blobs and lists.
    Free,
}

impl From<Object> for Class {
    fn from(object: Object) -> Self {
        match object {
            Object::Manifest => Self::Counted,
            Object::Blob | Object::Tags | Object::Referrers | Object::Ping | Object::Upload => {
                Self::Free
            }
        }
    }
}

/// Whether an account may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Open,
    /// It may, but little is left: only for what is not held.
    Low,
    /// A limit was reached; from this time on one request may try whether it still is.
    Paused(Instant),
}

/// What is known of one account's limit.
#[derive(Debug, Default)]
pub(super) struct Budget {
    told: Option<Told>,
    /// When little was left and the upstream was asked all the same, to see whether that is so.
    looked: Option<Instant>,
    counted: Gate,
    free: Gate,
}

/// What the upstream told last.
#[derive(Clone, Copy, Debug)]
struct Told {
    limit: u64,
    remaining: u64,
    at: Instant,
    window: Duration,
}

#[derive(Debug, Default)]
struct Gate {
    until: Option<Instant>,
    strikes: u32,
}

impl Budget {
    /// Reads `ratelimit-limit: 100;w=21600` and `ratelimit-remaining`. Returns what is left and the
    /// limit, where that has just become low.
    pub(super) fn note(
        &mut self,
        headers: &HeaderMap,
        reserve: u64,
        now: Instant,
    ) -> Option<(u64, u64)> {
        let (remaining, window) = number(headers, "ratelimit-remaining")?;
        let (limit, _) = number(headers, "ratelimit-limit").unwrap_or((remaining, window));
        let before = self.is_low(reserve, now);
        self.told = Some(Told { limit, remaining, at: now, window });
        (!before && self.is_low(reserve, now)).then_some((remaining, limit))
    }

    /// Whether no more is left than is to be kept for what is not held. A reserve of more than a
    /// tenth of a small limit would leave nothing to use.
    pub(super) fn is_low(&self, reserve: u64, now: Instant) -> bool {
        self.told.is_some_and(|told| {
            now.duration_since(told.at) < told.window
                && told.remaining <= reserve.min(told.limit / 10)
        })
    }

    /// Whether the account may be asked for something of this class.
    pub(super) fn standing(&self, class: Class, reserve: u64, now: Instant) -> Standing {
        match self.gate(class).until {
            Some(until) => Standing::Paused(until),
            None if class == Class::Counted && self.is_low(reserve, now) => Standing::Low,
            None => Standing::Open,
        }
    }

    /// Whether it is time to see if little is still left; the caller then does so.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let due = self.looked.is_none_or(|at| now.duration_since(at) >= BUDGET_LOOK_EVERY);
        if due {
            self.looked = Some(now);
        }
        due
    }

    /// A limit was reached. `wait` is what the upstream asked for; else the pause doubles.
    pub(super) fn pause(&mut self, class: Class, wait: Option<Duration>, now: Instant) {
        let gate = self.gate_mut(class);
        if gate.until.is_none_or(|until| until <= now) {
            gate.strikes += 1;
        }
        let doubled = LIMIT_PAUSE_FIRST * 2u32.pow((gate.strikes - 1).min(8));
        let until = now + wait.unwrap_or_else(|| doubled.min(LIMIT_PAUSE_MAX));
        gate.until = gate.until.max(Some(until));
    }

    /// It answered.
    pub(super) fn open(&mut self, class: Class) {
        *self.gate_mut(class) = Gate::default();
    }

    /// Whether a limit was reached and nobody has been answered since.
    pub(super) fn is_paused(&self, class: Class) -> bool {
        self.gate(class).until.is_some()
    }

    fn gate(&self, class: Class) -> &Gate {
        match class {
            Class::Counted => &self.counted,
            Class::Free => &self.free,
        }
    }

    fn gate_mut(&mut self, class: Class) -> &mut Gate {
        match class {
            Class::Counted => &mut self.counted,
            Class::Free => &mut self.free,
        }
    }
}

/// A number and its window: `76;w=21600`. Without one it is believed for an hour.
fn number(headers: &HeaderMap, name: &str) -> Option<(u64, Duration)> {
    let mut parts = headers.get(name)?.to_str().ok()?.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some((number, Duration::from_secs(window.unwrap_or(3600).min(86_400))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(limit: &str, remaining: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", limit.parse().unwrap());
        headers.insert("ratelimit-remaining", remaining.parse().unwrap());
        headers
    }

    #[test]
    fn the_last_of_a_limit_is_kept_for_what_is_not_held() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let hub = |left: &str| headers("100;w=21600", left);
        assert_eq!(budget.standing(Class::Counted, 10, now), Standing::Open);
        assert_eq!(budget.note(&hub("11;w=21600"), 10, now), None);
        assert_eq!(budget.standing(Class::Counted, 10, now), Standing::Open);
        assert_eq!(budget.note(&hub("10;w=21600"), 10, now), Some((10, 100)));
        assert_eq!(budget.note(&hub("9;w=21600"), 10, now), None, "it is told once");
        assert_eq!(budget.standing(Class::Counted, 10, now), Standing::Low);
        assert_eq!(budget.standing(Class::Free, 10, now), Standing::Open);
        assert!(budget.look(now) && !budget.look(now + Duration::from_secs(59)));
        assert!(budget.look(now + BUDGET_LOOK_EVERY));
        let later = now + Duration::from_secs(21_600);
        assert_eq!(budget.standing(Class::Counted, 10, later), Standing::Open);
    }

    #[test]
    fn a_small_limit_can_be_used() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        assert_eq!(budget.note(&headers("5", "1"), 10, now), None);
        assert_eq!(budget.note(&headers("5", "0"), 10, now), Some((0, 5)));
        for rubbish in ["", "many", "-1", "1.5"] {
            assert_eq!(budget.note(&headers("5", rubbish), 10, now), None);
        }
    }

    #[test]
    fn a_pause_is_as_long_as_was_asked_for_or_doubles() {
        let (mut budget, t0) = (Budget::default(), Instant::now());
        let until = |budget: &Budget| match budget.standing(Class::Free, 0, t0) {
            Standing::Paused(until) => until - t0,
            other => panic!("{other:?}"),
        };
        budget.pause(Class::Free, None, t0);
        assert_eq!(until(&budget), LIMIT_PAUSE_FIRST);
        budget.pause(Class::Free, None, t0);
        assert_eq!(until(&budget), LIMIT_PAUSE_FIRST, "those under way are one strike");
        budget.pause(Class::Free, None, t0 + LIMIT_PAUSE_FIRST);
        assert_eq!(until(&budget), LIMIT_PAUSE_FIRST * 3);
        budget.pause(Class::Free, Some(Duration::from_secs(1000)), t0);
        assert_eq!(until(&budget), Duration::from_secs(1000));
        assert_eq!(budget.standing(Class::Counted, 0, t0), Standing::Open);
        budget.open(Class::Free);
        assert_eq!(budget.standing(Class::Free, 0, t0), Standing::Open);
    }
}
