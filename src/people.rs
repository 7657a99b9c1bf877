//! Users with passwords. A password is checked on a thread of its own kind, since bcrypt takes its
//! time, and remembered for a minute under a keyed hash, since clients send it with each request.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ring::hmac;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::config::htpasswd;
use crate::error::{Error, Kind, Result};
use crate::watched::Watched;

/// How long a password that was right is believed.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// Passwords checked at once: each takes a core for a tenth of a second or more.
const CHECKS_AT_ONCE: usize = 2;

/// Checks that wait; more are refused, so that guessing fills no memory.
const CHECKS_WAITING_MAX: usize = 256;

/// The hash that unknown users are checked against, so that they take as long as known ones.
const NOBODY: &str = "$2b$10$CwTycUXWue0Thq9StjUM0uJ8eE1bEpmZ9Qy4tJcQyK1oT0oL5oX0e";

/// The users of one file.
#[derive(Debug)]
pub struct People {
    file: PathBuf,
    users: ArcSwap<HashMap<String, String>>,
    watched: Watched,
    /// Passwords that were right, by their hash under `key` together with the user's own hash: a
    /// new password makes the old one forgotten.
    remembered: moka::sync::Cache<[u8; 32], ()>,
    key: hmac::Key,
    turns: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl People {
    /// Reads the file.
    ///
    /// # Errors
    /// One sentence that says what is wrong with it.
    pub fn load(file: PathBuf, key: hmac::Key) -> Result<Self, String> {
        let watched = Watched::new(vec![file.clone()]);
        let users = htpasswd::load(&file)?;
        let remembered =
            moka::sync::Cache::builder().max_capacity(10_000).time_to_live(REMEMBERED_FOR).build();
        Ok(Self {
            file,
            users: ArcSwap::from_pointee(users),
            watched,
            remembered,
            key,
            turns: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            waiting: Arc::new(Semaphore::new(CHECKS_WAITING_MAX)),
        })
    }

    /// The same file read again, with what was remembered of passwords that have not changed.
    ///
    /// # Errors
    /// One sentence that says what is wrong with it.
    pub fn renewed(&self) -> Result<Self, String> {
        let watched = Watched::new(vec![self.file.clone()]);
        let users = htpasswd::load(&self.file)?;
        Ok(Self {
            file: self.file.clone(),
            users: ArcSwap::from_pointee(users),
            watched,
            remembered: self.remembered.clone(),
            key: self.key.clone(),
            turns: Arc::clone(&self.turns),
            waiting: Arc::clone(&self.waiting),
        })
    }

    /// Where they come from.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Reads the file again where it has changed, or in any case with `force`. Blocks.
    ///
    /// # Errors
    /// One sentence; the users known before stay.
    pub fn reload(&self, force: bool) -> Result<bool, String> {
        self.watched.look(force, || {
            self.users.store(Arc::new(htpasswd::load(&self.file)?));
            Ok(())
        })
    }

    /// Whether there is such a user.
    pub fn know(&self, user: &str) -> bool {
        self.users.load().contains_key(user)
    }

    /// What stands in the file for a user: the hash of a password.
    pub fn entry(&self, user: &str) -> Option<String> {
        self.users.load().get(user).cloned()
    }

    /// Whether a password is this user's.
    ///
    /// # Errors
    /// `TooManyRequests` where too many passwords wait to be checked.
    pub async fn verify(&self, user: &str, password: &str) -> Result<bool> {
        let known = self.users.load().get(user).cloned();
        let hash = known.clone().unwrap_or_else(|| NOBODY.to_owned());
        let name = self.name(user, password, &hash);
        if known.is_some() && self.remembered.contains_key(&name) {
            return Ok(true);
        }
        let busy = || Error::new(Kind::TooManyRequests, "too many log-ins at once; try again");
        let waiting = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| busy())?;
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|e| Error::internal("the queue of log-ins is closed", e))?;
        let password = Zeroizing::new(password.to_owned());
        let check = move || {
            // Held until the end, even where the caller has left meanwhile.
            let _places = (waiting, turn);
            bcrypt::verify(password.as_bytes(), &hash).unwrap_or(false)
        };
        let right = tokio::task::spawn_blocking(check).await;
        let right = right.map_err(|e| Error::internal("a password could not be checked", e))?;
        if right && known.is_some() {
            self.remembered.insert(name, ());
        }
        Ok(right && known.is_some())
    }

    fn name(&self, user: &str, password: &str, hash: &str) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user, password, hash] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut name = [0; 32];
        name.copy_from_slice(context.sign().as_ref());
        name
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use super::*;

    fn people(folder: &std::path::Path, text: &str) -> People {
        let file = folder.join("htpasswd");
        std::fs::write(&file, text).unwrap();
        People::load(file, hmac::Key::new(hmac::HMAC_SHA256, b"test")).unwrap()
    }

    #[tokio::test]
    async fn a_password_is_right_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let line = |password: &str| format!("ci:{}\n", bcrypt::hash(password, 4).unwrap());
        let people = people(folder.path(), &line("one"));
        assert!(people.verify("ci", "one").await.unwrap());
        assert!(people.verify("ci", "one").await.unwrap(), "remembered");
        assert!(!people.verify("ci", "two").await.unwrap());
        assert!(!people.verify("eve", "one").await.unwrap());
        std::fs::write(&people.file, line("two")).unwrap();
        assert_eq!(people.reload(true), Ok(true));
        assert!(!people.verify("ci", "one").await.unwrap(), "no longer remembered");
        assert!(people.verify("ci", "two").await.unwrap());
        std::fs::write(&people.file, "rubbish").unwrap();
        assert!(people.reload(true).is_err());
        assert!(people.know("ci"));
    }

    #[test]
    fn nobodys_hash_is_one() {
        assert_eq!(bcrypt::verify("anything", NOBODY).ok(), Some(false));
    }
}
