//! What the mirror logs in to an upstream with.

use std::path::Path;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::config::{Auth, Password};
use crate::error::{Error, Kind, Result};

/// A user name and a secret. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The secret.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

impl Login {
    /// The value of a Basic `Authorization` header.
    pub fn basic(&self) -> String {
        http_auth::basic::encode_credentials(&self.username, &self.password)
    }
}

/// Where logins come from.
#[derive(Debug)]
pub struct Credentials {
    auth: Auth,
    /// The password file as it was last read, with the time it had then.
    file: Mutex<Option<(SystemTime, String)>>,
}

impl Credentials {
    /// Credentials as configured.
    pub fn new(auth: Auth) -> Self {
        Self { auth, file: Mutex::new(None) }
    }

    /// The login to use now; `None` where the upstream is asked anonymously.
    ///
    /// # Errors
    /// `Unavailable` where a password file cannot be read: held content goes on being served.
    pub fn login(&self) -> Result<Option<Login>> {
        match &self.auth {
            // Asked for ourselves, with nobody's credentials: what is public.
            Auth::Anonymous | Auth::Passthrough(_) => Ok(None),
            Auth::Static { username, password } => {
                let password = match password {
                    Password::Inline(text) => text.clone(),
                    Password::File(path) => self.read(path)?,
                };
                Ok(Some(Login { username: username.clone(), password }))
            }
        }
    }

    /// Reads a password file, again only when it has changed. A stat per token is cheap, and
    /// Kubernetes swaps secrets under us.
    #[expect(
        clippy::disallowed_methods,
        reason = "a password file is a few bytes, read when it changes"
    )]
    fn read(&self, path: &Path) -> Result<String> {
        let fail = |e: std::io::Error| {
            let text = format!("password file {} cannot be read", path.display());
            Error::new(Kind::Unavailable, text).because(e)
        };
        let changed = std::fs::metadata(path).and_then(|m| m.modified()).map_err(fail)?;
        let mut known = self.file.lock();
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
mod tests {
    use super::*;

    #[test]
    fn a_password_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "one\n").unwrap();
        let auth = Auth::Static { username: "u".into(), password: Password::File(path.clone()) };
        let credentials = Credentials::new(auth);
        assert_eq!(credentials.login().unwrap().unwrap().password, "one");
        std::fs::write(&path, "two\r\n").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(credentials.login().unwrap().unwrap().password, "two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(credentials.login().unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn a_login_does_not_print_its_secret() {
        let login = Login { username: "u".into(), password: "hunter2".into() };
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
