//! The words for what became of a request in the cache.

/// What became of a request in the cache; the same word in header, log and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Nothing that is cached was concerned.
    None,
    /// Held.
    Hit,
    /// A tag that was confirmed by a `HEAD`, its manifest held.
    Revalidated,
    /// Held, and the upstream failed to confirm it.
    Stale,
    /// Fetched for this request.
    Miss,
    /// Fetched for another request at the same time.
    Collapsed,
    /// Fetched for this request and not kept, because the disk takes no more.
    Passed,
    /// Asked of the upstream and not kept.
    Bypass,
}

impl Cache {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Passed => "passed",
            Self::Bypass => "bypass",
        }
    }
}
