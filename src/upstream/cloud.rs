//! How the token services of clouds are asked: bounded in time and size, nothing followed.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, redirect::Policy};
use url::Url;

use super::answer::read_up_to;
use crate::error::{Error, Result};
use crate::limits::TOKEN_BYTES_MAX;

/// A token service that takes longer is down.
const WITHIN: Duration = Duration::from_secs(10);

/// The clients for a cloud's services.
#[derive(Clone, Debug)]
pub(super) struct Cloud {
    /// For services on the internet, through whatever proxy the environment names.
    pub(super) far: Client,
    /// For what a machine asks about itself, which no proxy may answer.
    near: Client,
}

impl Cloud {
    /// Builds the clients; nothing is dialled.
    ///
    /// # Errors
    /// `Internal` where the TLS roots cannot be loaded.
    pub(super) fn new() -> Result<Self> {
        let base = || {
            Client::builder()
                .user_agent(super::client::USER_AGENT)
                .redirect(Policy::none())
                .referer(false)
                .connect_timeout(Duration::from_secs(3))
                .timeout(WITHIN)
        };
        let failed = |e| Error::internal("cannot set up the client for a cloud's logins", e);
        Ok(Self {
            far: base().build().map_err(failed)?,
            near: base().no_proxy().build().map_err(failed)?,
        })
    }

    /// Sends a request. No error repeats a URL or a body: both may hold secrets.
    pub(super) async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        let request = reqwest::Request::try_from(request).map_err(reqwest::Error::without_url)?;
        let client = if is_near(request.url()) { &self.near } else { &self.far };
        let response = client.execute(request).await.map_err(reqwest::Error::without_url)?;
        let mut answer = http::Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            headers.clone_from(response.headers());
        }
        let body = read_up_to(response, TOKEN_BYTES_MAX, WITHIN).await?;
        Ok(answer.body(body.into())?)
    }
}

/// Whether a URL names a metadata service or this machine.
fn is_near(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_link_local() || ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_unique_local() || ip.is_loopback(),
        Some(url::Host::Domain(name)) => {
            matches!(name, "localhost" | "metadata" | "metadata.google.internal")
        }
        None => false,
    }
}
