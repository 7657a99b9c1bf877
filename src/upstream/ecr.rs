//! Amazon ECR: a password for twelve hours, from `GetAuthorizationToken`, signed by `SigV4`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, Credential, DefaultCredentialProvider, RequestSigner,
};
use reqsign_core::{CommandExecute, CommandOutput, Context, FileRead, HttpSend, OsEnv, Signer};
use serde::Deserialize;
use url::Url;

use super::cloud::Cloud;
use super::credentials::{Fetched, Login};
use crate::config;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind, Result};

/// Where a registry's passwords come from.
#[derive(Debug)]
pub(super) struct Ecr {
    upstream: Arc<str>,
    api: Url,
    /// The operation's name; ECR Public has another service.
    target: &'static str,
    signer: Signer<Credential>,
    cloud: Cloud,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: OneOrMany,
}

/// ECR answers with a list, ECR Public with a single one.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Authorization>),
    One(Authorization),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: String,
    expires_at: f64,
}

impl Ecr {
    /// Sets up the signing; nothing is dialled.
    pub(super) fn new(upstream: &Arc<str>, config: &config::Ecr) -> Result<Self> {
        let cloud = Cloud::new()?;
        let context = Context::new()
            .with_http_send(Through(cloud.clone()))
            .with_file_read(Through(cloud.clone()))
            .with_command_execute(Through(cloud.clone()))
            .with_env(OsEnv);
        Self::with(upstream, config, cloud, context)
    }

    fn with(
        upstream: &Arc<str>,
        config: &config::Ecr,
        cloud: Cloud,
        context: Context,
    ) -> Result<Self> {
        let region = config.region.as_deref().or_else(|| config::ecr_region(upstream));
        let region = region.unwrap_or("us-east-1");
        let public = &**upstream == "public.ecr.aws";
        let (service, target) = if public {
            ("ecr-public", "SpencerFrontendService.GetAuthorizationToken")
        } else {
            ("ecr", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken")
        };
        let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
        let usual = format!("https://api.{service}.{region}.amazonaws.com{suffix}/");
        let api = match &config.endpoint {
            Some(url) => url.clone(),
            None => Url::parse(&usual).map_err(|e| Error::internal("a region is no host", e))?,
        };
        let own = DefaultCredentialProvider::new();
        let sign = RequestSigner::new(service, region);
        let signer = match &config.role {
            None => Signer::new(context, own, sign),
            Some(role) => {
                let sts = Signer::new(context.clone(), own, RequestSigner::new("sts", region));
                let assumed = AssumeRoleCredentialProvider::new(role.clone(), sts)
                    .with_role_session_name("pierhead".to_owned())
                    .with_region(region.to_owned())
                    .with_regional_sts_endpoint();
                Signer::new(context, assumed, sign)
            }
        };
        Ok(Self { upstream: Arc::clone(upstream), api, target, signer, cloud })
    }

    /// Asks for a password.
    pub(super) async fn fetch(&self) -> Result<Fetched> {
        let fail = |why: &str| {
            let text = format!("no login for {}: {why}", self.upstream);
            Error::new(Kind::NoLogin, text)
        };
        let answer = self.cloud.send(self.signed().await?).await.map_err(|e| {
            fail("ECR's API cannot be reached; check the network and the region").because(e)
        })?;
        if !answer.status().is_success() {
            return Err(fail(&format!(
                "ECR answered {}{}; let this machine's AWS identity call {}:GetAuthorizationToken, or name another by AWS_PROFILE or `role`",
                answer.status(),
                kind_of(answer.body()),
                if self.target.starts_with("Spencer") { "ecr-public" } else { "ecr" },
            )));
        }
        let odd = || fail("ECR's answer holds no password; check `ecr.endpoint` and the region");
        let answer: Answer = serde_json::from_slice(answer.body()).map_err(|_| odd())?;
        let one = match answer.authorization_data {
            OneOrMany::One(one) => Some(one),
            OneOrMany::Many(all) => all.into_iter().next(),
        };
        let Authorization { authorization_token, expires_at } = one.ok_or_else(odd)?;
        let text = STANDARD.decode(authorization_token).ok();
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(odd)?;
        let (username, password) = text.split_once(':').ok_or_else(odd)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // A clock that is off must neither keep a password for ever nor ask in a loop.
        let life = (expires_at - now.as_secs_f64()).clamp(120.0, 43_200.0);
        let login = Login::Basic { username: username.to_owned(), password: password.to_owned() };
        Ok(Fetched::living(login, Duration::from_secs_f64(life)))
    }

    async fn signed(&self) -> Result<http::Request<Bytes>> {
        let body = Bytes::from_static(b"{}");
        let hash = Digest::of(Algorithm::Sha256, &body).to_string();
        let request = http::Request::post(self.api.as_str())
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", self.target)
            .header("x-amz-content-sha256", hash.trim_start_matches("sha256:"))
            .body(body)
            .map_err(|e| Error::internal("cannot build the request to ECR", e))?;
        let (mut head, body) = request.into_parts();
        self.signer.sign(&mut head, None).await.map_err(|e| {
            // Its text may repeat an answer of STS; only its kind is told.
            let text = format!(
                "no login for {}: this machine has no usable AWS credentials ({}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give it a role",
                self.upstream,
                e.kind(),
            );
            Error::new(Kind::NoLogin, text)
        })?;
        Ok(http::Request::from_parts(head, body))
    }
}

/// The name of an AWS error, such as ` (AccessDeniedException)`; its message may name accounts.
fn kind_of(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let name = json["__type"].as_str().and_then(|name| name.rsplit('#').next()).unwrap_or_default();
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).take(60).collect();
    if plain.is_empty() { plain } else { format!(" ({plain})") }
}

/// What the signing library reads the world through.
#[derive(Debug)]
struct Through(Cloud);

impl HttpSend for Through {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let sent = self.0.send(request).await;
        sent.map_err(|e| reqsign_core::Error::unexpected("cannot be reached").with_context(e))
    }
}

impl FileRead for Through {
    #[expect(clippy::disallowed_methods, reason = "a profile of a few lines, twice a day")]
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        tokio::fs::read(path)
            .await
            .map_err(|e| reqsign_core::Error::config_invalid("cannot be read").with_context(e))
    }
}

impl CommandExecute for Through {
    async fn command_execute<'a>(
        &'a self,
        program: &'a str,
        arguments: &'a [&'a str],
    ) -> reqsign_core::Result<CommandOutput> {
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let output = output
            .map_err(|e| reqsign_core::Error::config_invalid("cannot be run").with_context(e))?;
        Ok(CommandOutput {
            status: output.status.code().unwrap_or(1),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }
}
