//! Somebody else's public keys, fetched from where his token service publishes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::ACCEPT;
use url::Url;

use super::address::Reach;
use super::answer::read_up_to;
use super::client::Clients;
use super::redirect;
use super::wire::Wire;
use crate::config::jwks::{self, Named};
use crate::config::{self, Jwt};
use crate::error::{Error, Kind, Result};

/// Some dozens of keys are some kilobytes.
const KEYS_BYTES_MAX: usize = 1 << 20;

/// Whoever shows a token with a key that is not known waits for this.
const FETCH_WITHIN: Duration = Duration::from_secs(10);

/// An https URL that keys are fetched from. No redirect is followed: nobody is led anywhere.
#[derive(Debug)]
pub struct Source {
    url: Url,
    wire: Wire,
    private: bool,
}

impl Source {
    /// As configured; nothing is dialled. `None` where the keys are in a file.
    ///
    /// # Errors
    /// `Internal` where the client cannot be built.
    pub fn new(settings: &Jwt) -> Result<Option<Self>> {
        let Some(url) = settings.url() else { return Ok(None) };
        let upstream: Arc<str> =
            format!("the token service at {}", redirect::authority(&url)).into();
        let manner = config::Upstream { ca: settings.ca.clone(), ..config::Upstream::default() };
        let clients = Clients::new(&upstream, &manner)?;
        let wire = Wire { upstream, clients, response_timeout: FETCH_WITHIN };
        Ok(Some(Self { url, wire, private: settings.private }))
    }

    /// Fetches the keys. Cancel safe.
    ///
    /// # Errors
    /// An outage, or `BadUpstream` for what is no document of keys that could be used.
    pub async fn fetch(&self) -> Result<Vec<Named>> {
        let clients = &self.wire.clients;
        let client = if self.private { clients.own() } else { clients.named_by(Reach::Public) };
        let request = client.get(self.url.clone()).header(ACCEPT, "application/json");
        let response =
            self.wire.exchange(request, &self.url, Instant::now() + FETCH_WITHIN).await?;
        let name = &self.wire.upstream;
        let bad = |why: &str| Error::new(Kind::BadUpstream, format!("{name} {why}"));
        let status = response.status();
        if status != StatusCode::OK {
            return Err(bad(&format!("answered {status} for its keys")));
        }
        let body = read_up_to(response, KEYS_BYTES_MAX, FETCH_WITHIN)
            .await
            .map_err(|e| bad("sent keys that could not be read to their end").because(e))?;
        jwks::parse(&body).map_err(|why| bad(&format!("sent keys that cannot be used: {why}")))
    }
}
