//! How much of an upstream is used at once: requests at a time, requests a second, bytes a second.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ask::{Ask, Object};
use crate::config;
use crate::error::{Error, Kind, Result};

/// What may be sent ahead of the rate after a pause, so that short transfers are not cut in pieces.
const BURST: Duration = Duration::from_millis(100);

/// The bounds of one upstream.
#[derive(Debug)]
pub(super) struct Manners {
    upstream: Arc<str>,
    places: Option<Places>,
    rate: Option<DefaultDirectRateLimiter>,
    pace: Option<Arc<Pace>>,
}

/// Requests at a time. Transfers leave one place to short questions, where there are several: a
/// tag must not wait for the end of a layer.
#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    count: usize,
}

/// A place that is taken until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Place {
    _all: Option<OwnedSemaphorePermit>,
    _transfer: Option<OwnedSemaphorePermit>,
}

impl Manners {
    pub(super) fn new(upstream: &Arc<str>, config: &config::Upstream) -> Self {
        let places = config.max_connections.map(|count| Places {
            all: Arc::new(Semaphore::new(count)),
            transfers: Arc::new(Semaphore::new(count.saturating_sub(1).max(1))),
            count,
        });
        let rate = config.max_requests_per_second.and_then(NonZeroU32::new);
        Self {
            upstream: Arc::clone(upstream),
            places,
            rate: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate))),
            pace: config.bandwidth.map(|size| Arc::new(Pace::new(size.bytes()))),
        }
    }

    /// What paces the bytes of every transfer.
    pub(super) fn pace(&self) -> Option<Arc<Pace>> {
        self.pace.clone()
    }

    /// Whether fewer than half of the places for transfers are free.
    pub(super) fn are_crowded(&self) -> bool {
        self.places.as_ref().is_some_and(|p| p.transfers.available_permits() * 2 < p.count)
    }

    /// Waits for a place among the requests under way, and for the rate. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` where none comes free in time.
    pub(super) async fn enter(&self, ask: &Ask, deadline: Instant) -> Result<Place> {
        let waiting = async {
            // None of them is ever closed.
            let (mut transfer, mut all) = (None, None);
            if let Some(places) = &self.places {
                if matches!(ask.object, Object::Blob | Object::Upload) {
                    transfer = Arc::clone(&places.transfers).acquire_owned().await.ok();
                }
                all = Arc::clone(&places.all).acquire_owned().await.ok();
            }
            if let Some(rate) = &self.rate {
                while let Err(early) = rate.check() {
                    let now = governor::clock::DefaultClock::default().now();
                    tokio::time::sleep(early.wait_time_from(now)).await;
                }
            }
            Place { _all: all, _transfer: transfer }
        };
        tokio::time::timeout_at(deadline.into(), waiting).await.map_err(|_| {
            let text = format!(
                "as many requests to {} are under way as its `max_connections` and `max_requests_per_second` allow; try again, or raise them",
                self.upstream
            );
            Error::new(Kind::Unavailable, text)
        })
    }
}

/// Bytes a second, shared fairly: each transfer waits for its piece before it reads the next, so
/// that pieces of all transfers take turns.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), next: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes, which have come already, are paid for. Cancel safe.
    pub(super) async fn spend(&self, bytes: usize) {
        let until = {
            let now = Instant::now();
            let mut next = self.next.lock();
            let start = (*next).max(now.checked_sub(BURST).unwrap_or(now));
            *next = start + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            *next
        };
        tokio::time::sleep_until(until.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::name::Repository;

    fn blob() -> Ask {
        let repository = Repository::parse("a/b").unwrap();
        Ask::blob(http::Method::GET, &repository, &Digest::of(Algorithm::Sha256, b""))
    }

    fn tags() -> Ask {
        Ask::page(Object::Tags, &Repository::parse("a/b").unwrap(), "a/b/tags/list".into())
    }

    #[tokio::test]
    async fn transfers_leave_a_place_to_short_questions() {
        let config = config::Upstream { max_connections: Some(2), ..config::Upstream::default() };
        let manners = Manners::new(&"r.test".into(), &config);
        let in_a_moment = || Instant::now() + Duration::from_millis(20);
        let first = manners.enter(&blob(), in_a_moment()).await.unwrap();
        let error = manners.enter(&blob(), in_a_moment()).await.unwrap_err();
        assert!(error.message().contains("r.test"), "{error}");
        drop(manners.enter(&tags(), in_a_moment()).await.unwrap());
        drop(first);
        manners.enter(&blob(), in_a_moment()).await.unwrap();
    }

    #[tokio::test]
    async fn requests_and_bytes_keep_their_rate() {
        let config =
            config::Upstream { max_requests_per_second: Some(20), ..config::Upstream::default() };
        let manners = Manners::new(&"r.test".into(), &config);
        let started = Instant::now();
        let soon = started + Duration::from_secs(20);
        for _ in 0..25 {
            manners.enter(&tags(), soon).await.unwrap();
        }
        assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
        let pace = Pace::new(1_000_000);
        let started = Instant::now();
        for _ in 0..10 {
            pace.spend(40_000).await;
        }
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(250), "{took:?}");
    }
}
