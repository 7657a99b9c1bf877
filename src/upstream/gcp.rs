//! Google's registries: an access token of a service account, as the password of
//! `oauth2accesstoken`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gcp_auth::{ConfigDefaultCredentials, CustomServiceAccount, TokenProvider};
use serde::Deserialize;

use super::cloud::Cloud;
use super::credentials::{Fetched, Login};
use crate::config;
use crate::error::{Error, Kind, Result};

/// What Artifact Registry and GCR want to see for a pull.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// Where a registry's access tokens come from.
#[derive(Debug)]
pub(super) struct Gcp {
    upstream: Arc<str>,
    key_file: Option<PathBuf>,
    cloud: Cloud,
}

/// What the metadata server answers.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: u64,
}

impl Gcp {
    /// Nothing is read or dialled yet.
    pub(super) fn new(upstream: &Arc<str>, config: &config::Gcp) -> Result<Self> {
        let set = std::env::var_os("GOOGLE_APPLICATION_CREDENTIALS").filter(|v| !v.is_empty());
        let key_file = config.key_file.clone().or_else(|| set.map(PathBuf::from));
        Ok(Self { upstream: Arc::clone(upstream), key_file, cloud: Cloud::new()? })
    }

    /// Fetches an access token: by the key file, by what gcloud has left, or from the metadata
    /// server.
    pub(super) async fn fetch(&self) -> Result<Fetched> {
        let (token, life) = match &self.key_file {
            Some(path) => self.by_key(path).await?,
            None if has_gcloud() => {
                let found = ConfigDefaultCredentials::new().await;
                let found = found.map_err(|e| self.fail("what gcloud has left cannot be used; run `gcloud auth application-default login`").because(kind_only(&e)))?;
                self.token_of(&found).await?
            }
            None => self.by_metadata().await?,
        };
        let login = Login::Basic { username: "oauth2accesstoken".to_owned(), password: token };
        Ok(Fetched::living(login, life))
    }

    fn fail(&self, why: &str) -> Error {
        Error::new(Kind::NoLogin, format!("no login for {}: {why}", self.upstream))
    }

    /// Reads the key each time, so that one that is replaced is taken up.
    #[expect(clippy::disallowed_methods, reason = "a key of 2 KiB, twice an hour")]
    async fn by_key(&self, path: &Path) -> Result<(String, Duration)> {
        let text = tokio::fs::read(path).await.map_err(|e| {
            let why = format!(
                "the key file {} cannot be read; put it back, or correct the upstream's `auth`",
                path.display()
            );
            self.fail(&why).because(e)
        })?;
        let account = CustomServiceAccount::from_json(&String::from_utf8_lossy(&text));
        // The library's words could repeat a part of the key.
        let account = account.map_err(|_| {
            self.fail(&format!(
                "{} is no key of a service account; make one by `gcloud iam service-accounts keys create`",
                path.display()
            ))
        })?;
        self.token_of(&account).await
    }

    async fn token_of(&self, account: &dyn TokenProvider) -> Result<(String, Duration)> {
        let token = account.token(&[SCOPE]).await.map_err(|e| {
            self.fail("Google's token service gives none; check that the key is in force and the clock is right")
                .because(kind_only(&e))
        })?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ends = u64::try_from(token.expires_at().timestamp()).unwrap_or_default();
        let left = ends.saturating_sub(now.as_secs()).clamp(120, 3600);
        Ok((token.as_str().to_owned(), Duration::from_secs(left)))
    }

    async fn by_metadata(&self) -> Result<(String, Duration)> {
        let host = std::env::var("GCE_METADATA_HOST").ok().filter(|host| !host.is_empty());
        let host = host.as_deref().unwrap_or("metadata.google.internal");
        let url =
            format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
        let request = http::Request::get(url)
            .header("metadata-flavor", "Google")
            .body(Bytes::new())
            .map_err(|e| self.fail("GCE_METADATA_HOST is no host; correct it").because(e))?;
        let away = "Google's metadata server cannot be reached; away from Google's machines name `gcp.key_file`";
        let answer = self.cloud.send(request).await.map_err(|e| self.fail(away).because(e))?;
        if !answer.status().is_success() {
            return Err(self.fail(&format!(
                "Google's metadata server answered {}; give this machine a service account that may read the registry",
                answer.status()
            )));
        }
        let answer: Answer = serde_json::from_slice(answer.body()).map_err(|_| {
            self.fail("Google's metadata server answered with no token; name `gcp.key_file`")
        })?;
        Ok((answer.access_token, Duration::from_secs(answer.expires_in.clamp(60, 43_200))))
    }
}

/// Whether `gcloud auth application-default login` was run here.
#[expect(clippy::disallowed_methods, reason = "one stat, twice an hour")]
fn has_gcloud() -> bool {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let file = |home| Path::new(&home).join(".config/gcloud/application_default_credentials.json");
    home.map(file).is_some_and(|path| std::fs::metadata(path).is_ok())
}

/// The library's own words, without those of what it has read.
fn kind_only(error: &gcp_auth::Error) -> &'static str {
    use gcp_auth::Error as E;
    match error {
        E::Http(text, _) | E::Io(text, _) | E::Json(text, _) | E::Other(text, _) | E::Str(text) => {
            text
        }
        E::NoAuthMethod(..) => "no method of authentication was found",
    }
}
