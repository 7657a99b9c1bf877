//! One upstream registry: its endpoints, its tokens, and one question answered by them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE};
use http::{Method, StatusCode};
use url::Url;

use self::address::Reach;
use self::answer::read_up_to;
use self::ask::{Ask, Object};
use self::client::Clients;
use self::credentials::Credentials;
use self::endpoint::Endpoint;
use self::token::{Bearer, Challenge, Token};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::limits::{ANSWER_WITHIN, ERROR_BODY_BYTES_MAX, REDIRECTS_MAX, TOKEN_BYTES_MAX};
use crate::metrics::Metrics;

pub mod address;
mod answer;
pub mod ask;
mod client;
pub mod credentials;
mod endpoint;
mod health;
pub mod redirect;
pub mod token;

pub use self::answer::Answer;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Something is held that may stand in: each endpoint once, then give up.
    Brief,
    /// Nothing is held: again after a pause, for as long as a client waits.
    Full,
}

/// Whose credentials an upstream is asked with: a keyed hash of them, or ours.
pub type Who = Option<[u8; 32]>;

/// Tokens by whose they are, realm, service and scope.
type Tokens = moka::future::Cache<(Who, Bearer, String), Token>;

/// An upstream registry.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    endpoints: Arc<Vec<Endpoint>>,
    clients: Arc<Clients>,
    credentials: Credentials,
    who: Who,
    /// One fetch for any number of waiters.
    tokens: Tokens,
    realms: Vec<String>,
    response_timeout: Duration,
    stall_timeout: Duration,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// Sets up an upstream; nothing is dialled.
    ///
    /// # Errors
    /// `Internal` where the HTTP client cannot be built.
    pub fn new(name: &str, config: &config::Upstream, metrics: Arc<Metrics>) -> Result<Self> {
        let tokens =
            moka::future::Cache::builder().max_capacity(10_000).expire_after(TokenLife).build();
        Ok(Self {
            name: name.into(),
            endpoints: Arc::new(config.endpoints.iter().map(Endpoint::new).collect()),
            clients: Arc::new(Clients::new(config.connect_timeout.get())?),
            credentials: Credentials::new(config.auth.clone()),
            who: None,
            tokens,
            realms: config.realms.clone(),
            response_timeout: config.response_timeout.get(),
            stall_timeout: config.stall_timeout.get(),
            metrics,
        })
    }

    /// The same upstream, asked with a caller's own credentials. What was learnt of its endpoints
    /// is shared; tokens are kept apart by `who`, the credentials' keyed hash.
    pub fn as_caller(&self, username: &str, password: &str, who: [u8; 32]) -> Arc<Self> {
        let password = config::Password::Inline(password.to_owned());
        let auth = config::Auth::Static { username: username.to_owned(), password };
        Arc::new(Self {
            name: Arc::clone(&self.name),
            endpoints: Arc::clone(&self.endpoints),
            clients: Arc::clone(&self.clients),
            credentials: Credentials::new(auth),
            who: Some(who),
            tokens: self.tokens.clone(),
            realms: self.realms.clone(),
            response_timeout: self.response_timeout,
            stall_timeout: self.stall_timeout,
            metrics: Arc::clone(&self.metrics),
        })
    }

    /// The configured name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Asks the endpoints in turn, healthy ones first, until one answers. Dropping the future drops
    /// the request; nothing is left behind.
    ///
    /// # Errors
    /// The answer of the upstream where it is a refusal or an absence; else an outage, in which
    /// every endpoint was tried.
    pub async fn ask(&self, ask: &Ask, patience: Patience) -> Result<Answer> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut round = 0;
        loop {
            let error = match self.ask_each(ask, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = health::pause(
                round,
                error.wait().filter(|_| error.kind() == Kind::TooManyRequests),
            );
            let tries_left = round + 1 < health::ROUNDS_MAX
                && error.is_outage()
                && error.kind() != Kind::BadUpstream;
            if patience == Patience::Brief
                || !tries_left
                || Instant::now() + pause + Duration::from_secs(1) > deadline
            {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            round += 1;
        }
    }

    async fn ask_each(&self, ask: &Ask, deadline: Instant) -> Result<Answer> {
        let mut order: Vec<&Endpoint> = self.endpoints.iter().collect();
        order.sort_by_key(|e| e.health.is_open(Instant::now()));
        let mut worst: Option<Error> = None;
        for endpoint in order {
            let error = match self.attempt(endpoint, ask, deadline).await {
                Ok(answer) => {
                    endpoint.health.succeeded();
                    self.metrics.upstream_up(&self.name, &endpoint.authority, true);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if error.is_outage() {
                endpoint.health.failed(Instant::now());
                self.metrics.upstream_up(&self.name, &endpoint.authority, false);
                tracing::warn!(upstream = %self.name, endpoint = %endpoint.authority, error = ?error, "upstream endpoint failed");
            } else {
                endpoint.health.succeeded();
            }
            worst = Some(match worst.take() {
                Some(before) if before.is_outage() => before,
                _ => error,
            });
        }
        Err(worst.unwrap_or_else(|| {
            Error::new(Kind::Unavailable, format!("{} has no endpoints", self.name))
        }))
    }

    /// One endpoint, with its token renewed once where it is refused.
    async fn attempt(&self, endpoint: &Endpoint, ask: &Ask, deadline: Instant) -> Result<Answer> {
        let started = Instant::now();
        let known = endpoint.challenge.read().clone();
        let mut response = self.send(endpoint, ask, known.as_ref(), deadline).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) = Challenge::read(response.headers())
        {
            let challenge = self.learn(endpoint, known, challenge, ask).await;
            response = self.send(endpoint, ask, Some(&challenge), deadline).await?;
        }
        let status = response.status();
        self.metrics.upstream_request(
            &self.name,
            &endpoint.authority,
            ask.object.as_str(),
            status,
            started.elapsed(),
        );
        self.metrics.rate_limit(&self.name, response.headers());
        if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            let headers = response.headers().clone();
            let body = read_up_to(response, ERROR_BODY_BYTES_MAX, Duration::from_secs(2))
                .await
                .unwrap_or_default();
            return Err(ask.failure(&self.name, status, &headers, ask::message(&body).as_deref()));
        }
        if ask.object != Object::Referrers && ask::is_web_page(response.headers()) {
            return Err(Error::new(
                Kind::BadUpstream,
                format!(
                    "{} answered with a web page instead of the {}",
                    self.name,
                    ask.object.as_str()
                ),
            ));
        }
        Ok(Answer {
            response,
            stall_timeout: self.stall_timeout,
            upstream: Arc::clone(&self.name),
            metrics: Arc::clone(&self.metrics),
        })
    }

    /// Takes in a challenge after a 401. Where one was known, its token has been refused: it is
    /// dropped, and the realm that was known first is asked again.
    async fn learn(
        &self,
        endpoint: &Endpoint,
        known: Option<Challenge>,
        fresh: Challenge,
        ask: &Ask,
    ) -> Challenge {
        match (known, fresh) {
            (Some(Challenge::Bearer(known)), Challenge::Bearer(fresh)) => {
                let key = (self.who, known.clone(), ask.scope(&known));
                self.tokens.invalidate(&key).await;
                Challenge::Bearer(Bearer { scope: known.scope.or(fresh.scope), ..known })
            }
            (_, fresh) => {
                *endpoint.challenge.write() = Some(fresh.clone());
                fresh
            }
        }
    }

    /// Sends a question and follows its redirects.
    async fn send(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        challenge: Option<&Challenge>,
        deadline: Instant,
    ) -> Result<reqwest::Response> {
        let authorization = self.authorization(endpoint, ask, challenge, deadline).await?;
        let mut url = endpoint.join(&ask.path)?;
        let mut client = self.clients.own();
        let mut method = ask.method.clone();
        let mut at_home = true;
        let mut reach = endpoint.reach();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = client
                .request(method.clone(), url.clone())
                .header(ACCEPT, ask.accept)
                .header(ACCEPT_ENCODING, "identity");
            let probing = method == Method::GET && ask.method == Method::HEAD;
            match ask.range_header() {
                Some(range) => request = request.header(RANGE, range),
                None if probing => request = request.header(RANGE, "bytes=0-0"),
                None => {}
            }
            if let Some(value) = authorization.as_ref().filter(|_| at_home) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let response = self.exchange(request, &url, deadline).await?;
            if let Some(from) = response.remote_addr().and_then(|a| Reach::of(a.ip())) {
                reach = from;
                if at_home {
                    endpoint.set_reach(from);
                }
            }
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED
            {
                return self.unless_expired(response, at_home);
            }
            let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
            if response.status() == StatusCode::SEE_OTHER && ask.object == Object::Referrers {
                return Ok(response); // GHCR sends askers to a web page: its way to lack the API
            }
            let hop = redirect::next(&self.name, &url, reach, location)?;
            at_home &= hop.same_origin;
            if !hop.same_origin {
                client = if self.is_own(&hop.url) {
                    self.clients.own()
                } else {
                    self.clients.named_by(reach)
                };
                // A URL signed for GET answers 403 to HEAD: one byte tells as much.
                if ask.object == Object::Blob {
                    method = Method::GET;
                }
            }
            url = hop.url;
        }
        Err(Error::new(
            Kind::BadUpstream,
            format!("{} redirects more than {REDIRECTS_MAX} times for {}", self.name, ask.path),
        ))
    }

    /// Storage that a registry redirects to gives no verdict on rights or existence: its 4xx means
    /// that a presigned URL has expired or was made badly, and the registry is to be asked anew.
    fn unless_expired(
        &self,
        response: reqwest::Response,
        at_home: bool,
    ) -> Result<reqwest::Response> {
        let status = response.status();
        if at_home || !matches!(status.as_u16(), 400..=410) {
            return Ok(response);
        }
        let host = redirect::authority(response.url());
        Err(Error::new(
            Kind::Unavailable,
            format!("{} redirects to {host}, which answered {status}", self.name),
        ))
    }

    /// One request, with a deadline for the head of its answer.
    async fn exchange(
        &self,
        request: reqwest::RequestBuilder,
        url: &Url,
        deadline: Instant,
    ) -> Result<reqwest::Response> {
        let left = deadline.saturating_duration_since(Instant::now()).min(self.response_timeout);
        let host = redirect::authority(url);
        let unavailable = |why: &str| {
            Error::new(Kind::Unavailable, format!("{} cannot be reached: {host} {why}", self.name))
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

    fn is_own(&self, url: &Url) -> bool {
        self.endpoints.iter().any(|e| e.url.origin() == url.origin())
    }

    /// The `Authorization` for a question, by what the endpoint is known to want.
    async fn authorization(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        challenge: Option<&Challenge>,
        deadline: Instant,
    ) -> Result<Option<http::HeaderValue>> {
        let sensitive = |text: String| {
            let mut value = http::HeaderValue::from_str(&text)
                .map_err(|e| Error::internal("credentials cannot stand in a header", e))?;
            value.set_sensitive(true);
            Ok(Some(value))
        };
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => match self.credentials.login()? {
                Some(login) => sensitive(login.basic()),
                None => Ok(None),
            },
            Some(Challenge::Bearer(bearer)) => {
                let key = (self.who, bearer.clone(), ask.scope(bearer));
                let scope = key.2.clone();
                let token = self
                    .tokens
                    .try_get_with(key, self.fetch_token(endpoint, bearer, scope, deadline))
                    .await
                    .map_err(|e| Error::clone(&e))?;
                sensitive(format!("Bearer {}", token.value))
            }
        }
    }

    /// Asks the token service. By GET with Basic: POST is missing or broken on many.
    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        bearer: &Bearer,
        scope: String,
        deadline: Instant,
    ) -> Result<Token> {
        let login = self.credentials.login()?;
        bearer.permit(
            &self.name,
            &endpoint.url,
            endpoint.reach(),
            &self.realms,
            login.is_some(),
        )?;
        let url = bearer.url(&scope, login.as_ref().map(|l| l.username.as_str()));
        let home = url.host() == endpoint.url.host()
            || self.realms.iter().any(|r| Some(r.as_str()) == url.host_str());
        let client =
            if home { self.clients.own() } else { self.clients.named_by(endpoint.reach()) };
        let mut request = client.get(url.clone()).header(ACCEPT, "application/json");
        if let Some(login) = &login {
            request = request.header(AUTHORIZATION, login.basic());
        }
        let response = self.exchange(request, &url, deadline).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body =
            read_up_to(response, TOKEN_BYTES_MAX, self.response_timeout).await.map_err(|e| {
                Error::new(
                    Kind::Unavailable,
                    format!("the token service of {} broke off", self.name),
                )
                .because(e)
            })?;
        let name = format!("the token service of {}", self.name);
        match status.as_u16() {
            200 => Token::read(&body, Instant::now()).map_err(|e| {
                Error::new(Kind::BadUpstream, format!("{}: {e}", self.name)).because(e)
            }),
            401 | 403 => Err(Error::new(
                Kind::Denied,
                format!(
                    "{name} refuses {} ({status}): it does not exist, or the upstream's `auth` needs credentials that may read it",
                    scope.split(':').nth(1).unwrap_or(&scope)
                ),
            )),
            429 => {
                let error = Error::new(Kind::TooManyRequests, format!("{name} limits requests"));
                Err(match ask::retry_after(&headers, std::time::SystemTime::now()) {
                    Some(wait) => error.retry_after(wait),
                    None => error,
                })
            }
            500..=599 => Err(Error::new(Kind::Unavailable, format!("{name} answered {status}"))),
            _ => Err(Error::new(
                Kind::BadUpstream,
                format!("{name} answered {status}, which is not expected"),
            )),
        }
    }
}

/// Tokens leave the cache when they are due for renewal.
struct TokenLife;

impl moka::Expiry<(Who, Bearer, String), Token> for TokenLife {
    fn expire_after_create(
        &self,
        _: &(Who, Bearer, String),
        token: &Token,
        now: Instant,
    ) -> Option<Duration> {
        Some(token.renew_at.saturating_duration_since(now))
    }
}
