//! How many downloads each caller has begun and not seen the end of.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};

/// Who has begun a download.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Beginner {
    /// Somebody who has logged in.
    User(Arc<str>),
    /// Somebody by address.
    Address(IpAddr),
}

/// The downloads begun, by caller.
#[derive(Debug)]
pub struct Begun {
    counts: Mutex<HashMap<Beginner, usize>>,
    most: AtomicUsize,
}

impl Begun {
    /// None begun; at most `most` for each caller.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), most: AtomicUsize::new(most) })
    }

    /// Changes how many each caller may have begun; those begun already count.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// One more. It counts until it is dropped.
    ///
    /// # Errors
    /// `TooManyRequests` where the caller has begun as many as may be.
    pub fn begin(self: &Arc<Self>, beginner: &Beginner) -> Result<Begin> {
        let mut counts = self.counts.lock();
        let count = counts.entry(beginner.clone()).or_default();
        let most = self.most.load(Ordering::Relaxed);
        if *count >= most {
            let text = format!("{most} downloads are under way for you; wait for some to end");
            return Err(Error::new(Kind::TooManyRequests, text)
                .retry_after(std::time::Duration::from_secs(5)));
        }
        *count += 1;
        Ok(Begin { begun: Arc::clone(self), beginner: beginner.clone() })
    }
}

/// A download begun.
#[derive(Debug)]
pub struct Begin {
    begun: Arc<Begun>,
    beginner: Beginner,
}

impl Drop for Begin {
    fn drop(&mut self) {
        let mut counts = self.begun.counts.lock();
        if let Some(count) = counts.get_mut(&self.beginner) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.beginner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_so_many_and_no_more() {
        let begun = Begun::new(2);
        let (one, two) = (Beginner::User("a".into()), Beginner::User("b".into()));
        let held = [begun.begin(&one).unwrap(), begun.begin(&one).unwrap()];
        assert_eq!(begun.begin(&one).unwrap_err().kind(), Kind::TooManyRequests);
        assert!(begun.begin(&two).is_ok());
        drop(held);
        assert!(begun.begin(&one).is_ok() && begun.counts.lock().is_empty());
    }
}
