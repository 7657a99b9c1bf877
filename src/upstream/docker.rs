//! Docker's own configuration: `auths`, `credsStore` and `credHelpers` of `config.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::Deserialize;

use super::credentials::Login;
use crate::error::{Error, Kind, Result};

/// No `config.json` is larger.
const BYTES_MAX: u64 = 1 << 20;

/// The key under which Docker keeps the login of Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";

/// Where a login is, by what the file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In the file itself, or nowhere.
    Login(Option<Login>),
    /// A helper knows, if it is asked for `server`; where it does not, `otherwise` counts.
    Helper { name: String, server: String, otherwise: Option<Login> },
}

/// The file, read again whenever it changes.
#[derive(Debug)]
pub(super) struct DockerConfig {
    path: Option<PathBuf>,
    known: Mutex<Option<(SystemTime, u64, Arc<File>)>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry")
    }
}

impl DockerConfig {
    /// The file that `docker` would use: `$DOCKER_CONFIG/config.json`, else that of the home.
    pub(super) fn usual() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = set("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".docker")));
        Self { path: folder.map(|folder| folder.join("config.json")), known: Mutex::default() }
    }

    /// Where the login for any of these names is: the upstream's own, and its endpoints' hosts.
    ///
    /// # Errors
    /// `NoLogin` where the file is missing or is not Docker's.
    pub(super) fn find(&self, upstream: &str, names: &[String]) -> Result<Found> {
        let file = self.read(upstream)?;
        let wanted: Vec<&str> = names.iter().map(|name| host(name)).collect();
        let matches = |key: &str| wanted.contains(&host(key));
        let entry = file.auths.iter().find(|(key, _)| matches(key));
        let otherwise = match entry {
            Some((key, entry)) => self.login(upstream, key, entry)?,
            None => None,
        };
        let helper = file.cred_helpers.iter().find(|(key, _)| matches(key));
        Ok(match helper {
            Some((key, name)) => {
                Found::Helper { name: name.clone(), server: key.clone(), otherwise }
            }
            None if !file.creds_store.is_empty() => {
                let server = match entry {
                    Some((key, _)) => key.clone(),
                    None if wanted.contains(&host(HUB)) => HUB.to_owned(),
                    None => wanted.first().copied().unwrap_or_default().to_owned(),
                };
                Found::Helper { name: file.creds_store.clone(), server, otherwise }
            }
            None => Found::Login(otherwise),
        })
    }

    fn fail(&self, upstream: &str, why: &str) -> Error {
        let path = match &self.path {
            Some(path) => path.display().to_string(),
            None => "config.json".to_owned(),
        };
        Error::new(
            Kind::NoLogin,
            format!(
                "no login for {upstream}: Docker's {path} {why}; run `docker login {upstream}` as pierhead's user, or set DOCKER_CONFIG to the folder with its config.json"
            ),
        )
    }

    #[expect(clippy::disallowed_methods, reason = "a few kilobytes, read when they change")]
    fn read(&self, upstream: &str) -> Result<Arc<File>> {
        let fail = |e: std::io::Error| self.fail(upstream, "cannot be read").because(e);
        let Some(path) = &self.path else {
            return Err(
                self.fail(upstream, "has no place, as neither DOCKER_CONFIG nor HOME is set")
            );
        };
        let about = std::fs::metadata(path).map_err(fail)?;
        let (changed, size) = (about.modified().map_err(fail)?, about.len());
        if !about.is_file() || size > BYTES_MAX {
            return Err(self.fail(upstream, "is no file of a usual size"));
        }
        let mut known = self.known.lock();
        if let Some((time, length, file)) = &*known
            && (*time, *length) == (changed, size)
        {
            return Ok(Arc::clone(file));
        }
        let text = std::fs::read(path).map_err(fail)?;
        // The parser's own words could repeat a secret.
        let file: File = serde_json::from_slice(&text)
            .map_err(|_| self.fail(upstream, "is not the JSON that Docker writes"))?;
        let file = Arc::new(file);
        *known = Some((changed, size, Arc::clone(&file)));
        Ok(file)
    }

    /// An entry's login; an empty one only says that a store knows more.
    fn login(&self, upstream: &str, key: &str, entry: &Entry) -> Result<Option<Login>> {
        if !entry.identitytoken.is_empty() {
            return Ok(Some(Login::Identity { token: entry.identitytoken.clone() }));
        }
        if entry.auth.is_empty() {
            let (username, password) = (entry.username.clone(), entry.password.clone());
            return Ok((!password.is_empty()).then_some(Login::Basic { username, password }));
        }
        let bytes = STANDARD.decode(entry.auth.trim()).ok();
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        let (username, password) = text
            .as_deref()
            .and_then(|text| text.split_once(':'))
            .ok_or_else(|| self.fail(upstream, &format!("has no usable `auth` for {key}")))?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Login::Basic { username: username.to_owned(), password }))
    }
}

/// The host in a key of the file: with or without a scheme, with or without a path.
fn host(key: &str) -> &str {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or(bare) {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        host => host,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use super::*;

    fn find(json: &str, name: &str) -> Result<Found> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        DockerConfig { path: Some(path), known: Mutex::default() }.find(name, &[name.to_owned()])
    }

    fn basic(username: &str, password: &str) -> Login {
        Login::Basic { username: username.into(), password: password.into() }
    }

    #[test]
    fn logins_are_found_under_every_spelling_of_a_host() {
        // dTpwOnc= is u:p:w
        for (json, name) in [
            (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnc="}}}"#, "docker.io"),
            (r#"{"auths":{"ghcr.io":{"auth":"dTpwOnc="}},"HttpHeaders":{}}"#, "ghcr.io"),
            (r#"{"auths":{"https://r.test:5000/v2/":{"auth":"dTpwOnc="}}}"#, "r.test:5000"),
            (r#"{"auths":{"r.test":{"username":"u","password":"p:w"}}}"#, "r.test"),
        ] {
            assert_eq!(find(json, name).unwrap(), Found::Login(Some(basic("u", "p:w"))), "{json}");
        }
        assert_eq!(find("{}", "ghcr.io").unwrap(), Found::Login(None));
        let other = r#"{"auths":{"ghcr.io.evil.test":{"auth":"dTpwOnc="}}}"#;
        assert_eq!(find(other, "ghcr.io").unwrap(), Found::Login(None));
        let identity = r#"{"auths":{"x.azurecr.io":{"auth":"MDA6","identitytoken":"t"}}}"#;
        let token = Login::Identity { token: "t".into() };
        assert_eq!(find(identity, "x.azurecr.io").unwrap(), Found::Login(Some(token)));
    }

    #[test]
    fn helpers_go_before_the_store_and_the_store_before_the_file() {
        let json = r#"{"auths":{"a.test":{"auth":"dTpwOnc="}},"credsStore":"store",
            "credHelpers":{"b.test":"own"}}"#;
        let helper = |name: &str, server: &str, otherwise| Found::Helper {
            name: name.into(),
            server: server.into(),
            otherwise,
        };
        assert_eq!(
            find(json, "a.test").unwrap(),
            helper("store", "a.test", Some(basic("u", "p:w")))
        );
        assert_eq!(find(json, "b.test").unwrap(), helper("own", "b.test", None));
        assert_eq!(find(json, "docker.io").unwrap(), helper("store", HUB, None));
    }

    #[test]
    fn a_file_that_is_no_good_is_told_without_its_content() {
        for json in ["", "hunter2", r#"{"auths":{"a.test":{"auth":"hunter2"}}}"#, r#"{"auths":7}"#]
        {
            let text = format!("{:?}", find(json, "a.test").unwrap_err());
            assert!(text.contains("docker login a.test") && !text.contains("hunter2"), "{text}");
        }
    }
}
