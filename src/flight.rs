//! One run for any number of callers who want the same thing at the same time.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::error::Result;

/// By whose credentials something is asked: a keyed hash of them, or ours.
pub type Who = Option<[u8; 32]>;

type Run<V> = Shared<BoxFuture<'static, Option<V>>>;

/// The runs under way, by key. A run is a task of its own: a caller who leaves stops nothing.
pub struct Flights<K, V: Clone> {
    under_way: Arc<Mutex<HashMap<K, Run<V>>>>,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// None under way.
    pub fn new() -> Self {
        Self { under_way: Arc::default() }
    }

    /// Joins the run for `key`, or starts `make`. Returns what it came to, and whether it was
    /// joined; `None` where the run panicked. Cancel safe: the run goes on without the caller.
    pub async fn run<F>(&self, key: K, make: impl FnOnce() -> F) -> (Option<V>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (run, joined) = {
            let mut under_way = self.under_way.lock();
            if let Some(run) = under_way.get(&key) {
                (run.clone(), true)
            } else {
                let landing = Landing { under_way: Arc::clone(&self.under_way), key: key.clone() };
                let work = make();
                let task = tokio::spawn(async move {
                    let _landing = landing;
                    work.await
                });
                let run = task.map(Result::ok).boxed().shared();
                under_way.insert(key, run.clone());
                (run, false)
            }
        };
        (run.await, joined)
    }
}

/// Others' runs that are joined one after the other, before one is made that nobody shares.
const JOINS_MAX: usize = 4;

impl<K, T> Flights<K, (Who, Result<T>)>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// As [`Flights::run`], for what is asked with somebody's credentials: what another was refused says
    /// nothing of the rights of `who`, for whom it is asked anew. Cancel safe.
    pub async fn run_as<F>(
        &self,
        who: Who,
        key: K,
        make: impl Fn() -> F,
    ) -> (Option<Result<T>>, bool)
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        for _ in 0..JOINS_MAX {
            let work = || {
                let work = make();
                async move { (who, work.await) }
            };
            let (outcome, joined) = self.run(key.clone(), work).await;
            match outcome {
                Some((leader, Err(error))) if leader != who && error.is_personal() => {}
                outcome => return (outcome.map(|(_, outcome)| outcome), joined),
            }
        }
        (tokio::spawn(make()).await.ok(), false)
    }
}

impl<K, V> Default for Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V: Clone> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({})", self.under_way.lock().len())
    }
}

/// Takes a run off the list when it ends, however it ends.
struct Landing<K: Eq + Hash, V: Clone> {
    under_way: Arc<Mutex<HashMap<K, Run<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn many_callers_share_one_run() {
        let flights = Arc::new(Flights::<u8, usize>::new());
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let callers: Vec<_> = (0..10)
            .map(|_| {
                let (flights, runs, go) =
                    (Arc::clone(&flights), Arc::clone(&runs), Arc::clone(&go));
                tokio::spawn(async move {
                    flights
                        .run(1, || async move {
                            go.notified().await;
                            runs.fetch_add(1, Ordering::SeqCst)
                        })
                        .await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        go.notify_one();
        let mut joined = 0;
        for caller in callers {
            let (value, was_joined) = caller.await.unwrap();
            assert_eq!(value, Some(0));
            joined += usize::from(was_joined);
        }
        assert_eq!((runs.load(Ordering::SeqCst), joined), (1, 9));
    }

    #[tokio::test]
    async fn what_another_is_refused_is_asked_anew() {
        use crate::error::{Error, Kind};
        let flights = Arc::new(Flights::<u8, (Who, Result<u8>)>::new());
        let go = Arc::new(Notify::new());
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |name: u8, kind: Option<Kind>| {
            let (flights, go, asked) = (Arc::clone(&flights), Arc::clone(&go), Arc::clone(&asked));
            tokio::spawn(async move {
                let make = || {
                    let (go, asked) = (Arc::clone(&go), Arc::clone(&asked));
                    async move {
                        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                            go.notified().await;
                        }
                        kind.map_or(Ok(name), |kind| Err(Error::new(kind, "refused")))
                    }
                };
                flights.run_as(Some([name; 32]), 1, make).await.0.unwrap()
            })
        };
        for kind in [Kind::Denied, Kind::TooManyRequests, Kind::BlobUnknown, Kind::Unavailable] {
            asked.store(0, Ordering::SeqCst);
            let refused = ask(1, Some(kind));
            while asked.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            let same = ask(1, None);
            let others: Vec<_> = (2..20).map(|name| ask(name, None)).collect();
            tokio::task::yield_now().await;
            go.notify_one();
            assert_eq!(refused.await.unwrap().unwrap_err().kind(), kind);
            assert_eq!(same.await.unwrap().unwrap_err().kind(), kind, "the same caller");
            for other in others {
                let told = other.await.unwrap();
                assert_eq!(told.is_ok(), kind != Kind::Unavailable, "{kind:?}: an outage is all's");
            }
        }
    }

    #[tokio::test]
    async fn a_caller_who_leaves_stops_nothing_and_a_panic_frees_the_key() {
        let flights = Flights::<u8, u8>::new();
        let done = Arc::new(Notify::new());
        let signal = Arc::clone(&done);
        let run = flights.run(1, || async move {
            tokio::task::yield_now().await;
            signal.notify_one();
            7
        });
        assert!(run.now_or_never().is_none());
        done.notified().await;
        let (value, _) = flights.run(2, || async { panic!("on purpose") }).await;
        assert_eq!(value, None);
        assert_eq!(flights.run(2, || async { 3 }).await, (Some(3), false));
    }
}
