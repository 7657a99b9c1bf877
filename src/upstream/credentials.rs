//! What the mirror logs in to an upstream with.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use url::Url;

use super::docker::{DockerConfig, Found};
use super::helper;
use crate::config::{Auth, Password};
use crate::error::{Error, Kind, Result};
use crate::limits::{HELPER_ANSWER_FOR, LOGIN_DROPPED_EVERY, LOGIN_FAILURE_FOR};

/// Something to log in with. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user name and a secret.
    Basic {
        /// The name.
        username: String,
        /// The secret.
        password: String,
    },
    /// An identity token: the token service turns it into tokens.
    Identity {
        /// The secret.
        token: String,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Login({username})"),
            Self::Identity { .. } => f.write_str("Login(identity token)"),
        }
    }
}

/// A login that was fetched, and how long it holds.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) login: Option<Login>,
    /// From when on it is fetched anew.
    pub(super) renew_at: Instant,
    /// Until when it stands in where fetching fails.
    pub(super) ends_at: Instant,
}

impl Fetched {
    /// A login that lives for `life`: renewed when half of that is over, as clouds have outages.
    #[cfg(feature = "cloud-auth")]
    pub(super) fn living(login: Login, life: std::time::Duration) -> Self {
        let now = Instant::now();
        Self { login: Some(login), renew_at: now + life / 2, ends_at: now + life.mul_f64(0.95) }
    }
}

/// A login as it is to be used now.
#[derive(Debug)]
pub struct Current {
    /// `None` where the upstream is asked anonymously.
    pub login: Option<Login>,
    /// Whether it was held: one that is refused may have ended, and be worth fetching again.
    pub held: bool,
}

/// Where logins come from.
#[derive(Debug)]
pub struct Credentials {
    upstream: Arc<str>,
    source: Source,
    held: tokio::sync::Mutex<Held>,
}

#[derive(Debug)]
enum Source {
    Anonymous,
    Fixed {
        username: String,
        password: Password,
        /// The password file as it was last read, with the time it had then.
        file: Mutex<Option<(SystemTime, String)>>,
    },
    Docker(DockerConfig, Vec<String>),
    Helper(String, String),
    #[cfg(feature = "cloud-auth")]
    Ecr(Box<super::ecr::Ecr>),
    #[cfg(feature = "cloud-auth")]
    Gcp(Box<super::gcp::Gcp>),
    #[cfg(feature = "cloud-auth")]
    Acr(Box<super::acr::Acr>),
}

/// The last login fetched, and the last failure.
#[derive(Debug, Default)]
struct Held {
    fetched: Option<(String, Fetched)>,
    failure: Option<(Instant, Error)>,
    /// When a login was last dropped for having been refused.
    forgotten: Option<Instant>,
}

impl Credentials {
    /// Credentials as configured, for an upstream with these endpoints.
    ///
    /// # Errors
    /// `Internal` where a client for a cloud's token service cannot be set up.
    pub fn new(upstream: &Arc<str>, auth: &Auth, endpoints: &[Url]) -> Result<Self> {
        let hosts = endpoints.iter().map(super::redirect::authority);
        let names: Vec<String> = std::iter::once(upstream.to_string()).chain(hosts).collect();
        let source = match auth {
            // Asked for ourselves, with nobody's credentials: what is public.
            Auth::Anonymous | Auth::Passthrough(_) => Source::Anonymous,
            Auth::Static { username, password } => Source::Fixed {
                username: username.clone(),
                password: password.clone(),
                file: Mutex::default(),
            },
            Auth::DockerConfig => Source::Docker(DockerConfig::usual(), names),
            Auth::Helper(name) => Source::Helper(name.clone(), upstream.to_string()),
            #[cfg(feature = "cloud-auth")]
            Auth::Ecr(ecr) => Source::Ecr(Box::new(super::ecr::Ecr::new(upstream, ecr)?)),
            #[cfg(feature = "cloud-auth")]
            Auth::Gcp(gcp) => Source::Gcp(Box::new(super::gcp::Gcp::new(upstream, gcp)?)),
            #[cfg(feature = "cloud-auth")]
            Auth::Acr(acr) => {
                Source::Acr(Box::new(super::acr::Acr::new(upstream, acr, endpoints)?))
            }
            other => {
                let text = format!("{upstream} cannot be logged in to by {}", other.whose());
                return Err(Error::new(Kind::Internal, text));
            }
        };
        Ok(Self { upstream: Arc::clone(upstream), source, held: tokio::sync::Mutex::default() })
    }

    /// The login to use now. Any number of waiters make one question to a helper or a cloud.
    /// Dropping the future gives up the wait, and the question with its first waiter.
    ///
    /// # Errors
    /// `NoLogin` where none can be had, or not before `deadline`: held content goes on being
    /// served.
    pub async fn login(&self, deadline: Instant) -> Result<Current> {
        let now = |login| Ok(Current { login, held: false });
        match &self.source {
            Source::Anonymous => now(None),
            Source::Fixed { username, password, file } => {
                let password = match password {
                    Password::Inline(text) => text.clone(),
                    Password::File(path) => self.read(path, file)?,
                };
                now(Some(Login::Basic { username: username.clone(), password }))
            }
            Source::Docker(config, names) => match config.find(&self.upstream, names)? {
                Found::Login(login) => now(login),
                Found::Helper { name, server, otherwise } => {
                    let mut current = self.by_helper(&name, &server, deadline).await?;
                    current.login = current.login.or(otherwise);
                    Ok(current)
                }
            },
            Source::Helper(name, server) => {
                let current = self.by_helper(name, server, deadline).await?;
                if current.login.is_some() {
                    return Ok(current);
                }
                Err(Error::new(
                    Kind::NoLogin,
                    format!(
                        "docker-credential-{name} knows no login for {}; log in with it, or correct the upstream's `auth`",
                        self.upstream
                    ),
                ))
            }
            #[cfg(feature = "cloud-auth")]
            Source::Ecr(ecr) => self.kept("", deadline, || ecr.fetch()).await,
            #[cfg(feature = "cloud-auth")]
            Source::Gcp(gcp) => self.kept("", deadline, || gcp.fetch()).await,
            #[cfg(feature = "cloud-auth")]
            Source::Acr(acr) => self.kept("", deadline, || acr.fetch()).await,
        }
    }

    /// Drops a login that was refused, and says whether it is worth asking with another one. A
    /// refusal may be about rights as well, so that a storm of them drops one login only.
    pub async fn forget(&self, refused: &Login) -> bool {
        let mut held = self.held.lock().await;
        if held.fetched.as_ref().is_none_or(|(_, f)| f.login.as_ref() != Some(refused)) {
            return true; // another has taken its place already
        }
        let now = Instant::now();
        if held.forgotten.is_some_and(|at| now.duration_since(at) < LOGIN_DROPPED_EVERY) {
            return false;
        }
        held.fetched = None;
        held.forgotten = Some(now);
        true
    }

    async fn by_helper(&self, name: &str, server: &str, deadline: Instant) -> Result<Current> {
        let key = format!("{name} {server}");
        self.kept(&key, deadline, || async {
            let login = helper::get(&self.upstream, name, server).await?;
            let renew_at = Instant::now() + HELPER_ANSWER_FOR;
            Ok(Fetched { login, renew_at, ends_at: renew_at })
        })
        .await
    }

    /// What is held under `key` while it holds, else what `fetch` brings.
    async fn kept<F: Future<Output = Result<Fetched>>>(
        &self,
        key: &str,
        deadline: Instant,
        fetch: impl FnOnce() -> F,
    ) -> Result<Current> {
        let late = || {
            let text = format!("no login for {} came in time; try again", self.upstream);
            Error::new(Kind::NoLogin, text)
        };
        tokio::time::timeout_at(deadline.into(), async {
            let mut held = self.held.lock().await;
            let now = Instant::now();
            let known = held.fetched.as_ref().filter(|(of, _)| of == key).map(|(_, f)| f.clone());
            if let Some(known) = known.as_ref().filter(|known| now < known.renew_at) {
                return Ok(Current { login: known.login.clone(), held: true });
            }
            let spare = known.filter(|known| now < known.ends_at);
            let recent =
                held.failure.as_ref().filter(|(at, _)| now.duration_since(*at) < LOGIN_FAILURE_FOR);
            let outcome = match recent {
                Some((_, error)) => Err(error.clone()),
                None => fetch().await.inspect_err(|error| {
                    tracing::warn!(upstream = %self.upstream, ?error, "a login cannot be had");
                    held.failure = Some((now, error.clone()));
                }),
            };
            match (outcome, spare) {
                (Ok(fetched), _) => {
                    let login = fetched.login.clone();
                    held.fetched = Some((key.to_owned(), fetched));
                    held.failure = None;
                    Ok(Current { login, held: false })
                }
                (Err(_), Some(spare)) => Ok(Current { login: spare.login, held: false }),
                (Err(error), None) => Err(error),
            }
        })
        .await
        .unwrap_or_else(|_| Err(late()))
    }

    /// Reads a password file, again only when it has changed. A stat per token is cheap, and
    /// Kubernetes swaps secrets under us.
    #[expect(
        clippy::disallowed_methods,
        reason = "a password file is a few bytes, read when it changes"
    )]
    fn read(&self, path: &Path, file: &Mutex<Option<(SystemTime, String)>>) -> Result<String> {
        let fail = |e: std::io::Error| {
            let text = format!(
                "no login for {}: the password file {} cannot be read; put it back, or correct the upstream's `auth`",
                self.upstream,
                path.display()
            );
            Error::new(Kind::NoLogin, text).because(e)
        };
        let changed = std::fs::metadata(path).and_then(|m| m.modified()).map_err(fail)?;
        let mut known = file.lock();
        if let Some((time, password)) = &*known
            && *time == changed
        {
            return Ok(password.clone());
        }
        let text = std::fs::read_to_string(path).map_err(fail)?;
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        *known = Some((changed, password.clone()));
        Ok(password)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn a_password_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "one\n").unwrap();
        let auth = Auth::Static { username: "u".into(), password: Password::File(path.clone()) };
        let credentials = Credentials::new(&"r.test".into(), &auth, &[]).unwrap();
        let password = async || match credentials.login(soon()).await.unwrap().login {
            Some(Login::Basic { password, .. }) => password,
            other => panic!("{other:?}"),
        };
        assert_eq!(password().await, "one");
        std::fs::write(&path, "two\r\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(password().await, "two");
        std::fs::remove_file(&path).unwrap();
        let error = credentials.login(soon()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NoLogin);
        assert!(error.message().contains("r.test") && error.message().contains("put it back"));
    }

    #[test]
    fn a_login_does_not_print_its_secret() {
        let login = Login::Basic { username: "u".into(), password: "hunter2".into() };
        let token = Login::Identity { token: "hunter2".into() };
        assert!(!format!("{login:?}{token:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_login_is_fetched_once_renewed_in_time_and_stands_in_for_a_failure() {
        let credentials = Credentials::new(&"r.test".into(), &Auth::Anonymous, &[]).unwrap();
        let fetched = |renew: u64, end: u64| {
            let login = Some(Login::Identity { token: renew.to_string() });
            let at = |ms| Instant::now() + Duration::from_millis(ms);
            Fetched { login, renew_at: at(renew), ends_at: at(end) }
        };
        let first = credentials.kept("a", soon(), || async { Ok(fetched(60_000, 60_000)) }).await;
        let first = first.unwrap();
        assert!(!first.held);
        let held = credentials.kept("a", soon(), || async { panic!("it is held") }).await.unwrap();
        assert!(held.held && held.login == first.login);
        assert!(credentials.forget(&first.login.unwrap()).await);
        let due = credentials.kept("a", soon(), || async { Ok(fetched(0, 60_000)) }).await.unwrap();
        let fails = || async { Err(Error::new(Kind::NoLogin, "down")) };
        let spare = credentials.kept("a", soon(), fails).await.unwrap();
        assert_eq!(spare.login, due.login);
        assert!(!credentials.forget(&due.login.unwrap()).await, "one in half a minute");
        credentials.held.lock().await.fetched = None;
        let storm = credentials.kept("a", soon(), || async { panic!("it has just failed") }).await;
        assert_eq!(storm.unwrap_err().message(), "down");
        let patience = Instant::now() + Duration::from_millis(20);
        let late = credentials.kept("b", patience, std::future::pending).await;
        assert!(late.is_err());
    }
}
