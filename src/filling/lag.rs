//! What of a transfer's time goes by on this side of its connection.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time for which bytes that had arrived waited for us, for a thread or for room at the writer, summed
/// over a fill's transfers. That long it was not the connection that limited them.
#[derive(Debug, Default)]
pub(super) struct Lag {
    nanoseconds: AtomicU64,
}

/// One attempt's part in it.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    lag: &'a Lag,
    /// Since when the piece now in hand was there; `None` while it waits for one.
    since: Option<Instant>,
}

impl Lag {
    /// An attempt begins.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { lag: self, since: None }
    }

    /// The sum since this was last asked; what goes on counts once it ends.
    pub(super) fn take(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.swap(0, Ordering::Relaxed))
    }
}

impl Watch<'_> {
    /// Waits for the next piece. What counts is the time from when it was there, which is when the
    /// task was woken for it, until the next is waited for. Cancel safe where `next` is.
    pub(super) async fn wait<F: Future>(&mut self, next: F) -> F::Output {
        self.count();
        let mut next = pin!(next);
        let mut waker: Option<Arc<NotingWaker>> = None;
        std::future::poll_fn(|cx| {
            let woken = waker.take().and_then(|waker| *waker.at.lock());
            self.since = Some(woken.unwrap_or_else(Instant::now));
            let new = Arc::new(NotingWaker { at: Mutex::default(), task: cx.waker().clone() });
            waker = Some(Arc::clone(&new));
            let polled = next.as_mut().poll(&mut Context::from_waker(&Waker::from(new)));
            if polled.is_pending() {
                self.since = None;
            }
            polled
        })
        .await
    }

    fn count(&mut self) {
        if let Some(since) = self.since.take() {
            let nanoseconds = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.lag.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

/// Wakes a task, and notes when it did so first.
struct NotingWaker {
    at: Mutex<Option<Instant>>,
    task: Waker,
}

impl Wake for NotingWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.at.lock().get_or_insert_with(Instant::now);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[test]
    fn what_is_there_at_once_counts_until_the_next_is_waited_for() {
        let lag = Lag::default();
        let mut watch = lag.watch();
        assert_eq!(watch.wait(async { 7 }).now_or_never(), Some(7));
        assert_eq!(lag.take(), Duration::ZERO, "it is still at it");
        sleep(MOMENT);
        let (_keep, never) = oneshot::channel::<()>();
        assert_eq!(watch.wait(never).now_or_never(), None);
        assert!(lag.take() >= MOMENT);
        sleep(MOMENT);
        drop(watch);
        assert_eq!(lag.take(), Duration::ZERO, "nothing had come");
    }

    #[test]
    fn what_is_waited_for_counts_from_when_the_task_was_woken() {
        let lag = Lag::default();
        let mut watch = lag.watch();
        let (send, come) = oneshot::channel();
        let mut wait = Box::pin(watch.wait(come));
        assert!(wait.as_mut().now_or_never().is_none());
        sleep(MOMENT);
        let before = Instant::now();
        send.send(7).unwrap();
        sleep(MOMENT);
        assert_eq!(wait.as_mut().now_or_never(), Some(Ok(7)));
        drop(wait);
        drop(watch);
        let counted = lag.take();
        assert!((MOMENT..=before.elapsed()).contains(&counted), "{counted:?}");
    }
}
