//! May a tag's answer be given without asking, and may an old one stand in? Pure: time is passed in.

use std::time::{Duration, SystemTime};

use crate::error::Error;

/// What is to be done for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The record may be believed.
    Fresh,
    /// The upstream has to be asked.
    Stale,
}

/// Judges a record that was confirmed at `asked`. A clock that was set back would keep a record
/// fresh for as long as it was off, so a record from the future counts as stale.
pub fn judge(asked: SystemTime, ttl: Duration, now: SystemTime) -> Freshness {
    match now.duration_since(asked) {
        Ok(age) if age < ttl => Freshness::Fresh,
        _ => Freshness::Stale,
    }
}

/// Whether an old record may stand in after the upstream failed: yes for 429, 5xx and transport
/// errors, never where it answered with a refusal or an absence.
pub fn may_stand_in(error: &Error) -> bool {
    error.is_outage()
}

/// Whether a tag may move to what it was first seen to be at `seen`; until then its previous digest
/// stays. From a clock that was set back, not for longer than the cooldown from then on.
pub fn may_move(seen: SystemTime, cooldown: Duration, now: SystemTime) -> bool {
    now.duration_since(seen).unwrap_or_default() >= cooldown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_record_is_fresh_for_its_time_only() {
        let t0 = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let ttl = Duration::from_secs(60);
        assert_eq!(judge(t0, ttl, t0 + Duration::from_secs(59)), Freshness::Fresh);
        assert_eq!(judge(t0, ttl, t0 + Duration::from_secs(60)), Freshness::Stale);
        assert_eq!(judge(t0, ttl, t0 - Duration::from_secs(1)), Freshness::Stale);
        assert_eq!(judge(t0, Duration::ZERO, t0), Freshness::Stale);
    }

    #[test]
    fn a_tag_moves_when_its_cooldown_is_over() {
        let (seen, day) = (SystemTime::UNIX_EPOCH, Duration::from_secs(86_400));
        assert!(!may_move(seen, day, seen + day - Duration::from_secs(1)));
        assert!(may_move(seen, day, seen + day));
        assert!(may_move(seen, Duration::ZERO, seen));
    }

    #[test]
    fn refusals_and_absences_are_answers() {
        for (kind, allowed) in [
            (Kind::TooManyRequests, true),
            (Kind::Unavailable, true),
            (Kind::BadUpstream, true),
            (Kind::Denied, false),
            (Kind::ManifestUnknown, false),
            (Kind::NameUnknown, false),
        ] {
            assert_eq!(may_stand_in(&Error::new(kind, "")), allowed, "{kind:?}");
        }
    }
}
