//! The accounts of one upstream: whose turn it is, and who waits while a limit lasts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use parking_lot::Mutex;
use url::Url;

use super::Patience;
use super::ask::Ask;
use super::budget::{Budget, Class, Standing};
use super::credentials::Credentials;
use crate::config;
use crate::error::{Error, Kind, Result};

/// Every account, in the order in which they are used.
#[derive(Debug)]
pub(super) struct Accounts {
    upstream: Arc<str>,
    all: Vec<Account>,
    /// What is kept of each limit for what is not held.
    reserve: u64,
}

#[derive(Debug)]
struct Account {
    credentials: Credentials,
    limit: Arc<Limit>,
}

/// What is known of the limit of one account, whoever's it is.
#[derive(Debug, Default)]
pub(super) struct Limit {
    budget: Mutex<Budget>,
    /// Held by the one request that tries whether a limit still lasts.
    trial: tokio::sync::Mutex<()>,
}

/// Leave to ask, as one of the accounts.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    index: usize,
    account: &'a Account,
    class: Class,
    trial: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Turn<'_> {
    /// Whose credentials are shown, and under which number their tokens are kept.
    pub(super) fn who(&self) -> (usize, &Credentials) {
        (self.index, &self.account.credentials)
    }

    /// The upstream answered, with whatever. One that was asked before the limit was reached does
    /// not end the pause.
    pub(super) fn answered(&self) {
        let mut budget = self.account.limit.budget.lock();
        if self.trial.is_some() || !budget.is_paused(self.class) {
            budget.open(self.class);
        }
    }

    /// The upstream said that a limit is reached: from now on all leave it alone.
    pub(super) fn limited(&self, wait: Option<Duration>) {
        self.account.limit.budget.lock().pause(self.class, wait, Instant::now());
    }
}

impl Accounts {
    /// The accounts as configured.
    ///
    /// # Errors
    /// `Internal` where a client for a cloud's logins cannot be set up.
    pub(super) fn new(
        upstream: &Arc<str>,
        auth: &config::Auth,
        endpoints: &[Url],
        reserve: u64,
    ) -> Result<Self> {
        let account = |auth: &config::Auth| {
            let credentials = Credentials::new(upstream, auth, endpoints)?;
            Ok(Account { credentials, limit: Arc::default() })
        };
        let all = auth.accounts().iter().map(account).collect::<Result<_>>()?;
        Ok(Self { upstream: Arc::clone(upstream), all, reserve })
    }

    /// The same accounts under a limit that was known before they were made.
    pub(super) fn limited_by(mut self, limit: &Arc<Limit>) -> Self {
        for account in &mut self.all {
            account.limit = Arc::clone(limit);
        }
        self
    }

    /// The account that pushes are made with: one upload must not change hands.
    pub(super) fn first(&self) -> Option<(usize, &Credentials)> {
        self.all.first().map(|account| (0, &account.credentials))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether little is left on every account.
    pub(super) fn are_low(&self) -> bool {
        let now = Instant::now();
        self.all.iter().all(|one| one.limit.budget.lock().is_low(self.reserve, now))
    }

    /// Notes what an answer says of the account's limit, and says so when it runs low.
    pub(super) fn note(&self, turn: &Turn<'_>, headers: &HeaderMap) {
        let low = turn.account.limit.budget.lock().note(headers, self.reserve, Instant::now());
        if let Some((remaining, limit)) = low {
            let source = headers.get("docker-ratelimit-source").and_then(|v| v.to_str().ok());
            tracing::warn!(
                upstream = %self.upstream, account = turn.index, remaining, limit, source,
                "the upstream's limit runs low; held tags are served without asking"
            );
        }
    }

    /// Waits for leave to ask. While a limit lasts nobody asks; then one request tries, and the
    /// others go on when it was answered. Cancel safe.
    ///
    /// # Errors
    /// `TooManyRequests` where that takes longer than the caller can wait, or where little is left
    /// and the caller has something to make do with.
    pub(super) async fn turn(
        &self,
        ask: &Ask,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Turn<'_>> {
        let class = Class::from(ask.object);
        loop {
            let (index, standing) = self.best(class);
            let account = &self.all[index];
            let turn = |trial| Turn { index, account, class, trial };
            let until = match standing {
                Standing::Open => return Ok(turn(None)),
                Standing::Low if patience == Patience::Full => return Ok(turn(None)),
                Standing::Low if account.limit.budget.lock().look(Instant::now()) => {
                    return Ok(turn(None));
                }
                Standing::Low => return Err(self.low()),
                Standing::Paused(until) => until,
            };
            let now = Instant::now();
            if until > now {
                if patience != Patience::Full || until + Duration::from_secs(1) > deadline {
                    return Err(self.paused(until - now));
                }
                tokio::time::sleep_until(until.into()).await;
            }
            let trial = match patience {
                Patience::Brief | Patience::Spare => account.limit.trial.try_lock().ok(),
                Patience::Full => {
                    tokio::time::timeout_at(deadline.into(), account.limit.trial.lock()).await.ok()
                }
            };
            let trial = trial.ok_or_else(|| self.paused(Duration::from_secs(1)))?;
            // Another may have tried meanwhile, for better or worse.
            if self.best(class) == (index, Standing::Paused(until)) {
                return Ok(turn(Some(trial)));
            }
        }
    }

    /// The account to use: the first that is open, else one with little left, else the one whose
    /// pause ends first.
    fn best(&self, class: Class) -> (usize, Standing) {
        let now = Instant::now();
        let rank = |standing: Standing| match standing {
            Standing::Open => (0, None),
            Standing::Low => (1, None),
            Standing::Paused(until) => (2, Some(until)),
        };
        let standings = self.all.iter().enumerate().map(|(index, one)| {
            (index, one.limit.budget.lock().standing(class, self.reserve, now))
        });
        standings.min_by_key(|(_, standing)| rank(*standing)).unwrap_or((0, Standing::Open))
    }

    fn low(&self) -> Error {
        let text = format!("little is left of the limit of {}, which is kept", self.upstream);
        Error::new(Kind::TooManyRequests, text)
    }

    fn paused(&self, wait: Duration) -> Error {
        // Rounded up: a client that is back too early would only be told again.
        let wait = Duration::from_secs(wait.as_secs() + 1);
        let text = format!(
            "{} limits requests and is left alone for {} s; log in, or name another account in the upstream's `auth`",
            self.upstream,
            wait.as_secs()
        );
        Error::new(Kind::TooManyRequests, text).retry_after(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Auth;
    use crate::name::{Reference, Repository};

    fn accounts(count: usize) -> Accounts {
        let auth = Auth::Several(vec![Auth::Anonymous; count]);
        Accounts::new(&"r.test".into(), &auth, &[], 10).unwrap()
    }

    fn manifest() -> Ask {
        let repository = Repository::parse("a/b").unwrap();
        let tag = Reference::parse("v1").unwrap();
        Ask::manifest(http::Method::HEAD, &repository, &tag)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(25)
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_account_is_taken_where_one_is_limited() {
        let two = accounts(2);
        let ask = manifest();
        let first = two.turn(&ask, Patience::Full, soon()).await.unwrap();
        assert_eq!(first.index, 0);
        first.limited(Some(Duration::from_secs(3600)));
        let second = two.turn(&ask, Patience::Full, soon()).await.unwrap();
        assert_eq!(second.index, 1);
        second.limited(Some(Duration::from_secs(1800)));
        let error = two.turn(&ask, Patience::Full, soon()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TooManyRequests);
        assert!(error.wait().unwrap() <= Duration::from_secs(1801));
    }

    #[tokio::test]
    async fn one_of_many_tries_whether_a_limit_lasts() {
        let one = Arc::new(accounts(1));
        let ask = manifest();
        let first = one.turn(&ask, Patience::Full, soon()).await.unwrap();
        first.limited(Some(Duration::from_millis(50)));
        let waiting = (0..20).map(|_| {
            let (one, ask) = (Arc::clone(&one), ask.clone());
            tokio::spawn(async move {
                let turn = one.turn(&ask, Patience::Full, soon()).await.unwrap();
                let tried = turn.trial.is_some();
                if tried {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    turn.answered();
                }
                tried
            })
        });
        let waiting: Vec<_> = waiting.collect();
        let mut trials = 0;
        for task in waiting {
            trials += usize::from(task.await.unwrap());
        }
        assert_eq!(trials, 1);
    }
}
