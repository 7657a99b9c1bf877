//! The HTTP clients of one upstream: one for its own hosts, and guarded ones for the hosts that it
//! names itself (redirects, token services), which must not lie nearer than it does.

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity, Proxy, redirect::Policy};
use url::Url;

use super::address::{Reach, resolver};
use crate::config;
use crate::error::{Error, Kind, Result};

/// Some registries answer 403 to a missing or odd agent (Docker Hub has).
pub(super) const USER_AGENT: &str = concat!("pierhead/", env!("CARGO_PKG_VERSION"));

/// The clients; each keeps its own pool of connections.
#[derive(Debug)]
pub(super) struct Clients {
    own: Client,
    public: Client,
    private: Client,
    /// Hosts of proxies, configured or from the environment.
    proxies: Vec<String>,
}

impl Clients {
    /// Builds them. Files of certificates are read here, once.
    ///
    /// # Errors
    /// `Internal` that names the upstream and the file which cannot be used.
    pub(super) fn new(upstream: &str, config: &config::Upstream) -> Result<Self> {
        let proxies = proxies(config.proxy.as_ref().map(|proxy| &proxy.0));
        let roots = match &config.ca {
            Some(path) => certificates(upstream, path)?,
            None => Vec::new(),
        };
        let base = || -> Result<ClientBuilder> {
            let mut builder = Client::builder()
                .user_agent(USER_AGENT)
                .redirect(Policy::none())
                .referer(false)
                .connect_timeout(config.connect_timeout.get())
                .pool_idle_timeout(Duration::from_secs(60))
                .tcp_keepalive(Duration::from_secs(30))
                // One slow reader among our fills must not hold the others of an HTTP/2 connection.
                .http2_initial_stream_window_size(2 * 1024 * 1024)
                .http2_initial_connection_window_size(16 * 1024 * 1024)
                .tls_certs_merge(roots.clone());
            if let Some(config::Proxy(url)) = &config.proxy {
                let proxy = Proxy::all(url.as_str())
                    .map_err(|e| unusable(upstream, "the proxy's URL").because(e.without_url()))?;
                builder = builder.no_proxy().proxy(proxy);
            }
            Ok(builder)
        };
        // Only for hosts that are configured: what they name has to prove itself, and gets no
        // certificate of ours.
        let mut own = base()?.tls_danger_accept_invalid_certs(config.insecure);
        if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
            own = own.identity(identity(upstream, cert, key)?);
        }
        let guarded = |reach| Ok(base()?.dns_resolver(resolver(reach, &proxies)));
        let build = |builder: ClientBuilder| {
            builder.build().map_err(|e| Error::internal("cannot set up the upstream client", e))
        };
        Ok(Self {
            own: build(own)?,
            public: build(guarded(Reach::Public)?)?,
            private: build(guarded(Reach::Private)?)?,
            proxies,
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

    /// Whether connections may go through a proxy, so that their address says nothing of how far
    /// away a registry is.
    pub(super) fn are_proxied(&self) -> bool {
        !self.proxies.is_empty()
    }

    /// Whether a URL leads to a proxy itself, which a registry has no business to name.
    pub(super) fn is_proxy(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.proxies.iter().any(|proxy| proxy == host))
    }
}

/// The hosts of the proxies in force.
fn proxies(configured: Option<&Url>) -> Vec<String> {
    let names =
        ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let set = names.iter().filter_map(|name| std::env::var(name).ok());
    let texts: Vec<String> = match configured {
        Some(url) => vec![url.to_string()],
        None => set.filter(|text| !text.is_empty()).collect(),
    };
    let host = |text: &String| {
        let text = if text.contains("://") { text.clone() } else { format!("http://{text}") };
        Url::parse(&text).ok()?.host_str().map(str::to_owned)
    };
    texts.iter().filter_map(host).collect()
}

fn unusable(upstream: &str, what: &str) -> Error {
    Error::new(
        Kind::Internal,
        format!("{what} of the upstream {upstream} cannot be used; correct it"),
    )
}

fn certificates(upstream: &str, path: &Path) -> Result<Vec<Certificate>> {
    let what = format!("the `ca` file {}", path.display());
    let text = read(path).map_err(|e| unusable(upstream, &what).because(e))?;
    let all = Certificate::from_pem_bundle(&text)
        .map_err(|e| unusable(upstream, &what).because(e.without_url()))?;
    if all.is_empty() {
        return Err(unusable(upstream, &format!("{what}, which holds no certificate,")));
    }
    Ok(all)
}

fn identity(upstream: &str, cert: &Path, key: &Path) -> Result<Identity> {
    let what = format!("the client certificate {} with its key", cert.display());
    let failed = |e: std::io::Error| unusable(upstream, &what).because(e);
    let mut text = read(cert).map_err(failed)?;
    text.push(b'\n');
    text.extend(read(key).map_err(failed)?);
    // The parser's own words could repeat a part of the key.
    Identity::from_pem(&text).map_err(|_| unusable(upstream, &what))
}

#[expect(clippy::disallowed_methods, reason = "a few kilobytes, before anything is served")]
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    std::fs::read(path)
}
