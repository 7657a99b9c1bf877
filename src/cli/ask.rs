//! Asks a running mirror: its admin address for what it knows, its pull address for content.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use http::StatusCode;
use serde_json::Value;
use zeroize::Zeroizing;

/// How long an answer of the admin address may take; a purge of much content takes some time.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// A running mirror.
#[derive(Debug)]
pub(super) struct Admin {
    client: reqwest::Client,
    /// `host:port` of the admin address.
    authority: String,
    /// What opens its API, where that takes something.
    token: Option<Zeroizing<String>>,
    /// Whether the answer is printed as JSON.
    pub(super) json: bool,
}

impl Admin {
    /// The mirror behind an admin address.
    pub(super) fn new(
        authority: String,
        token: Option<Zeroizing<String>>,
        json: bool,
    ) -> anyhow::Result<Self> {
        // Straight to the mirror: a proxy would not know it.
        let client = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self { client, authority, token, json })
    }

    /// Reads something.
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let url = self.url(path, query)?;
        self.answer(self.client.get(url).timeout(ANSWER_WITHIN)).await
    }

    /// Changes something.
    pub(super) async fn post(&self, path: &str, order: &Value) -> anyhow::Result<Value> {
        let url = self.url(path, &[])?;
        self.answer(self.client.post(url).json(order).timeout(ANSWER_WITHIN)).await
    }

    /// Changes something that may take as long as it takes.
    pub(super) async fn post_at_length(&self, path: &str, order: &Value) -> anyhow::Result<Value> {
        let url = self.url(path, &[])?;
        self.answer(self.client.post(url).json(order)).await
    }

    /// Whether a path of the admin address is answered with 200.
    pub(super) async fn is_well(&self, path: &str) -> anyhow::Result<bool> {
        let request = self.client.get(self.url(path, &[])?).timeout(Duration::from_secs(5));
        let answer = request.send().await.map_err(|e| self.unreachable(e))?;
        Ok(answer.status() == StatusCode::OK)
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<url::Url> {
        let mut url = url::Url::parse(&format!("http://{}{path}", self.authority))
            .with_context(|| format!("{} is no address; write HOST:PORT", self.authority))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.as_str()),
            None => request,
        };
        let answer = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = answer.status();
        let text = answer.text().await.context("the mirror's answer broke off")?;
        let value: Value = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not the admin address of a Pierhead: it answered {status}",
                self.authority
            )
        })?;
        // Orders about hosted repositories are refused in the specification's form.
        let error = value["error"].as_str().or(value["errors"][0]["message"].as_str());
        if let (false, Some(error)) = (status.is_success(), error) {
            bail!("{error}");
        }
        Ok(value)
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let at = &self.authority;
        if error.is_connect() {
            anyhow::anyhow!(
                "no mirror answers at {at}; start it with 'pierhead serve', or name its admin address with --admin"
            )
        } else {
            anyhow::Error::new(error).context(format!("the mirror at {at} does not answer"))
        }
    }

    /// Where clients pull. An address that stands for all of a machine's is where the admin
    /// address is.
    pub(super) async fn pull_url(&self) -> anyhow::Result<String> {
        let status = self.get("/api/status", &[]).await?;
        let first =
            status["listen"][0].as_str().context("the mirror tells no address to pull at")?;
        let mut authority = first.to_owned();
        if let Ok(address) = first.parse::<SocketAddr>()
            && address.ip().is_unspecified()
        {
            let host = self.authority.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host);
            authority = format!("{host}:{}", address.port());
        }
        Ok(format!("http://{authority}"))
    }

    /// Asks the pull address for content, as a client of the mirror.
    pub(super) fn pull(&self, url: &str) -> reqwest::RequestBuilder {
        self.client.get(url)
    }
}
