//! One request on the wire, with a deadline for the head of its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use url::Url;

use super::client::Clients;
use super::redirect;
use crate::error::{Error, Kind, Result};

/// How requests are sent.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) upstream: Arc<str>,
    pub(super) clients: Clients,
    pub(super) response_timeout: Duration,
}

impl Wire {
    /// Sends a request. Dropping the future closes or returns the connection.
    ///
    /// # Errors
    /// `Unavailable` that says how the host failed.
    pub(super) async fn exchange(
        &self,
        request: reqwest::RequestBuilder,
        url: &Url,
        deadline: Instant,
    ) -> Result<reqwest::Response> {
        let left = deadline.saturating_duration_since(Instant::now()).min(self.response_timeout);
        self.deliver(request, url, left).await
    }

    /// Sends a request whose answer may take as long as `left`, its body included.
    ///
    /// # Errors
    /// As `exchange`.
    pub(super) async fn deliver(
        &self,
        request: reqwest::RequestBuilder,
        url: &Url,
        left: Duration,
    ) -> Result<reqwest::Response> {
        let host = redirect::authority(url);
        let unavailable = |why: &str| {
            let text = format!("{} cannot be reached: {host} {why}", self.upstream);
            Error::new(Kind::Unavailable, text)
        };
        match tokio::time::timeout(left, request.send()).await {
            Err(_) => {
                Err(unavailable(&format!("did not answer within {} s", left.as_secs().max(1))))
            }
            Ok(Err(e)) if e.is_timeout() => {
                Err(unavailable("did not accept the connection in time").because(e.without_url()))
            }
            Ok(Err(e)) if e.is_connect() => {
                Err(unavailable("refused the connection or has no address")
                    .because(e.without_url()))
            }
            Ok(Err(e)) => Err(unavailable("broke the connection off").because(e.without_url())),
            Ok(Ok(response)) => Ok(response),
        }
    }
}
