//! The HTTP clients of one upstream: one for its own hosts, and guarded ones for the hosts that it
//! names itself (redirects, token services), which must not lie nearer than it does.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect::Policy};

use super::address::{Reach, resolver};
use crate::error::{Error, Result};

/// Some registries answer 403 to a missing or odd agent (Docker Hub has).
pub(super) const USER_AGENT: &str = concat!("pierhead/", env!("CARGO_PKG_VERSION"));

/// The clients; each keeps its own pool of connections.
#[derive(Debug)]
pub(super) struct Clients {
    own: Client,
    public: Client,
    private: Client,
}

impl Clients {
    /// Builds them.
    ///
    /// # Errors
    /// `Internal` where the TLS roots cannot be loaded.
    pub(super) fn new(connect_timeout: Duration) -> Result<Self> {
        let build = |builder: ClientBuilder| {
            builder.build().map_err(|e| Error::internal("cannot set up the upstream client", e))
        };
        let base = || {
            Client::builder()
                .user_agent(USER_AGENT)
                .redirect(Policy::none())
                .referer(false)
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(Duration::from_secs(60))
                .tcp_keepalive(Duration::from_secs(30))
                // One slow reader among our fills must not hold the others of an HTTP/2 connection.
                .http2_initial_stream_window_size(2 * 1024 * 1024)
                .http2_initial_connection_window_size(16 * 1024 * 1024)
        };
        Ok(Self {
            own: build(base())?,
            public: build(base().dns_resolver(resolver(Reach::Public)))?,
            private: build(base().dns_resolver(resolver(Reach::Private)))?,
        })
    }

    /// For the hosts that are configured.
    pub(super) fn own(&self) -> &Client {
        &self.own
    }

    /// For a host that someone at `reach` has named.
    pub(super) fn named_by(&self, reach: Reach) -> &Client {
        match reach {
            Reach::Public => &self.public,
            Reach::Private => &self.private,
            Reach::Loopback => &self.own,
        }
    }
}
