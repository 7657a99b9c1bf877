//! One upstream registry: its endpoints, its tokens, and one question answered by them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE};
use http::{HeaderValue, Method, StatusCode};
use url::Url;

use self::access::Access;
use self::accounts::{Accounts, Limit, Turn};
use self::address::Reach;
use self::answer::read_up_to;
use self::ask::{Ask, Object};
use self::client::Clients;
use self::endpoint::Endpoint;
use self::manners::{Manners, Place};
use self::wire::Wire;
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::limits::{ANSWER_WITHIN, ERROR_BODY_BYTES_MAX, REDIRECTS_MAX};
use crate::metrics::Metrics;

mod access;
mod accounts;
#[cfg(feature = "cloud-auth")]
mod acr;
pub mod address;
mod answer;
pub mod ask;
mod budget;
mod client;
#[cfg(feature = "cloud-auth")]
mod cloud;
pub mod credentials;
mod docker;
#[cfg(feature = "cloud-auth")]
mod ecr;
mod endpoint;
#[cfg(feature = "cloud-auth")]
mod gcp;
mod health;
mod helper;
pub mod keys;
mod manners;
pub mod push;
pub mod redirect;
pub mod token;
mod wire;

pub use self::answer::Answer;

/// Requests to one endpoint for one question: one to hear its challenge, one to meet it, one with
/// what was held renewed.
const TURNS_MAX: u32 = 3;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Something is held that may stand in: each endpoint once, then give up.
    Brief,
    /// Nothing is held: again after a pause, for as long as a client waits.
    Full,
    /// It would only help another request: each endpoint once, and a limit that is met so is told
    /// to nobody, since it may not hold for the others.
    Spare,
}

pub use crate::flight::Who;

/// Callers whose limits are remembered; some hundred bytes each.
const LIMITS_MAX: u64 = 10_000;

/// How long a limit is remembered behind the caller's last request: longer than any pause.
const LIMITS_KEPT: Duration = Duration::from_secs(2 * 3600);

/// An upstream registry.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    endpoints: Arc<Vec<Endpoint>>,
    wire: Arc<Wire>,
    access: Access,
    accounts: Accounts,
    anonymous: bool,
    who: Who,
    /// Whose limits have been reached of late, by callers; their credentials are not kept.
    limits: moka::sync::Cache<[u8; 32], Arc<Limit>>,
    manners: Arc<Manners>,
    stall_timeout: Duration,
    segments: usize,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// Sets up an upstream; nothing is dialled.
    ///
    /// # Errors
    /// `Internal` where the HTTP client cannot be built.
    pub fn new(name: &str, config: &config::Upstream, metrics: Arc<Metrics>) -> Result<Self> {
        let name: Arc<str> = name.into();
        Ok(Self {
            endpoints: Arc::new(
                config.endpoints.iter().map(|url| Endpoint::new(url, config.private)).collect(),
            ),
            wire: Arc::new(Wire {
                upstream: Arc::clone(&name),
                clients: Clients::new(&name, config)?,
                response_timeout: config.response_timeout.get(),
            }),
            access: Access::new(&name, config.realms.clone()),
            accounts: Accounts::new(
                &name,
                &config.auth,
                &config.endpoints,
                config.ratelimit.reserve,
            )?,
            who: None,
            limits: moka::sync::Cache::builder()
                .max_capacity(LIMITS_MAX)
                .time_to_idle(LIMITS_KEPT)
                .build(),
            anonymous: config.auth.accounts().iter().all(|a| *a == config::Auth::Anonymous),
            manners: Arc::new(Manners::new(&name, config)),
            stall_timeout: config.stall_timeout.get(),
            segments: config.segments,
            metrics,
            name,
        })
    }

    /// The same upstream, asked with a caller's own credentials. What was learnt of its endpoints
    /// is shared; tokens are kept apart by `who`, the credentials' keyed hash. One who `pushes` gets
    /// tokens for that.
    ///
    /// # Errors
    /// Never in practice: nothing is set up for a name and a password.
    pub fn as_caller(
        &self,
        username: &str,
        password: &str,
        who: [u8; 32],
        pushes: bool,
    ) -> Result<Arc<Self>> {
        let password = config::Password::Inline(password.to_owned());
        let auth = config::Auth::Static { username: username.to_owned(), password };
        Ok(Arc::new(Self {
            name: Arc::clone(&self.name),
            endpoints: Arc::clone(&self.endpoints),
            wire: Arc::clone(&self.wire),
            access: self.access.for_caller(who, pushes),
            accounts: Accounts::new(&self.name, &auth, &[], 0)?
                .limited_by(&self.limits.get_with(who, Arc::default)),
            who: Some(who),
            limits: self.limits.clone(),
            anonymous: false,
            manners: Arc::clone(&self.manners),
            stall_timeout: self.stall_timeout,
            segments: self.segments,
            metrics: Arc::clone(&self.metrics),
        }))
    }

    /// Whether it is asked without credentials, so that all it shows is public.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous
    }

    /// By whose credentials it is asked.
    pub fn who(&self) -> Who {
        self.who
    }

    /// The configured name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Asks every endpoint now and then whether it is there, for as long as the upstream is used:
    /// one that is down is tried last before a pull has found out, and first again once it is back.
    pub fn watch(self: &Arc<Self>, every: Duration) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(upstream) = weak.upgrade() else { return };
                for endpoint in upstream.endpoints.iter() {
                    upstream.probe(endpoint).await;
                }
            }
        });
    }

    async fn probe(&self, endpoint: &Endpoint) {
        let started = Instant::now();
        let Ok(url) = endpoint.join("") else { return };
        let request = self.wire.clients.own().get(url.clone());
        let answer = self.wire.exchange(request, &url, started + ANSWER_WITHIN).await;
        // A refusal is an answer too: it is there.
        let up = answer.is_ok_and(|answer| !answer.status().is_server_error());
        self.metrics.upstream_up(&self.name, &endpoint.authority, up);
        if up {
            endpoint.health.succeeded(started.elapsed(), Instant::now());
        } else {
            endpoint.health.broke(Instant::now());
        }
    }

    /// How long a transfer may rest.
    pub fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    /// Whether little is left of the upstream's limit, so that what nobody waits for is left out.
    pub fn is_low(&self) -> bool {
        self.accounts.are_low()
    }

    /// How many transfers may fetch one blob.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Whether so many requests are under way that others would wait for places.
    pub fn is_crowded(&self) -> bool {
        self.manners.are_crowded()
    }

    /// Asks the endpoints in turn, healthy ones first, until one answers. Dropping the future drops
    /// the request; nothing is left behind.
    ///
    /// # Errors
    /// The answer of the upstream where it is a refusal or an absence; else an outage, in which
    /// every endpoint was tried.
    pub async fn ask(&self, ask: &Ask, patience: Patience) -> Result<Answer> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let (mut round, mut limited) = (0, 0);
        loop {
            let turn = self.accounts.turn(ask, patience, deadline).await?;
            let place = self.manners.enter(ask, deadline).await?;
            let error = match self.ask_each(ask, &turn, deadline).await {
                Ok(mut answer) => {
                    turn.answered();
                    answer.place = place;
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if error.kind() == Kind::TooManyRequests && patience == Patience::Spare {
                return Err(error);
            }
            if error.kind() == Kind::TooManyRequests {
                // Told to all who ask as this account; another may answer at once, else the turn waits.
                turn.limited(error.wait());
                limited += 1;
                if limited > self.accounts.count() {
                    return Err(error);
                }
                continue;
            }
            if !error.is_outage() {
                turn.answered();
            }
            drop((turn, place));
            let pause = health::pause(round);
            let tries_left = round + 1 < health::ROUNDS_MAX && error.kind() == Kind::Unavailable;
            if patience != Patience::Full
                || !tries_left
                || Instant::now() + pause + Duration::from_secs(1) > deadline
            {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            round += 1;
        }
    }

    async fn ask_each(&self, ask: &Ask, turn: &Turn<'_>, deadline: Instant) -> Result<Answer> {
        let mut worst: Option<Error> = None;
        for endpoint in self.order() {
            let started = Instant::now();
            let outcome = self.attempt(endpoint, ask, turn, deadline).await;
            let answered = || endpoint.health.succeeded(started.elapsed(), Instant::now());
            let error = match outcome {
                Ok(answer) => {
                    answered();
                    self.metrics.upstream_up(&self.name, &endpoint.authority, true);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if error.kind() == Kind::NoLogin {
                return Err(error); // no endpoint's fault, and no other one would do better
            }
            if error.is_outage() {
                endpoint.health.failed(Instant::now());
                self.metrics.upstream_up(&self.name, &endpoint.authority, false);
                tracing::warn!(upstream = %self.name, endpoint = %endpoint.authority, error = ?error, "upstream endpoint failed");
            } else {
                answered();
            }
            if error.kind() == Kind::Denied && !self.anonymous {
                tracing::warn!(upstream = %self.name, error = %error, "upstream refuses our login");
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

    /// The endpoints as they are to be tried: as configured, slow ones later, broken ones last.
    fn order(&self) -> Vec<&Endpoint> {
        let now = Instant::now();
        let best = self.endpoints.iter().filter_map(|e| e.health.latency(now)).min();
        let mut order: Vec<_> =
            self.endpoints.iter().map(|e| (e.health.place(best, now), e)).collect();
        order.sort_by_key(|(place, _)| *place);
        order.into_iter().map(|(_, endpoint)| endpoint).collect()
    }

    /// One endpoint, with its challenge met and what has ended renewed once.
    async fn attempt(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        turn: &Turn<'_>,
        deadline: Instant,
    ) -> Result<Answer> {
        let started = Instant::now();
        let mut renewed = false;
        let mut turns = 0;
        let response = loop {
            let shown = self.access.show(&self.wire, turn.who(), endpoint, ask, deadline).await?;
            let authorization = shown.authorization.as_ref();
            let sent = self.send(endpoint, ask, authorization, deadline).await;
            let response = sent.inspect_err(|_| {
                self.metrics.upstream_error(&self.name, &endpoint.authority, ask.object.as_str());
            })?;
            turns += 1;
            let status = response.status();
            let learnt = status == StatusCode::UNAUTHORIZED
                && Access::learn(endpoint, response.headers(), &shown);
            let ended = !renewed && shown.may_have_ended(status);
            renewed |= ended;
            let fresh = ended && self.access.forget(turn.who().1, &shown).await;
            if turns >= TURNS_MAX || !(learnt || fresh) {
                break response;
            }
        };
        let status = response.status();
        self.metrics.upstream_request(
            &self.name,
            &endpoint.authority,
            ask.object.as_str(),
            status,
            started.elapsed(),
        );
        self.metrics.rate_limit(&self.name, response.headers());
        self.accounts.note(turn, response.headers());
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
            health: Arc::clone(&endpoint.health),
            pace: self.manners.pace(),
            waiting: None,
            place: Place::default(),
        })
    }

    /// Sends a question and follows its redirects.
    async fn send(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<reqwest::Response> {
        let mut url = endpoint.join(&ask.path)?;
        let mut client = self.wire.clients.own();
        let mut method = ask.method.clone();
        let mut at_home = true;
        let mut reach = endpoint.reach();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = client
                .request(method.clone(), url.clone())
                .header(ACCEPT, ask.accept)
                .header(ACCEPT_ENCODING, "identity");
            let probing = method != ask.method && ask.object == Object::Blob;
            match ask.range_header() {
                Some(range) => request = request.header(RANGE, range),
                None if probing => request = request.header(RANGE, "bytes=0-0"),
                None => {}
            }
            if let Some(value) = authorization.filter(|_| at_home) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let response = self.wire.exchange(request, &url, deadline).await?;
            let address = response.remote_addr().filter(|_| !self.wire.clients.are_proxied());
            if let Some(from) = address.and_then(|a| Reach::of(a.ip())) {
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
            if self.wire.clients.is_proxy(&hop.url) {
                let text = format!("{} redirects to this mirror's own proxy", self.name);
                return Err(Error::new(Kind::BadUpstream, text));
            }
            at_home &= hop.same_origin;
            if !hop.same_origin {
                client = if self.is_own(&hop.url) {
                    self.wire.clients.own()
                } else {
                    self.wire.clients.named_by(reach)
                };
                // A URL signed for GET answers 403 to HEAD: of a blob one byte tells as much.
                let signed = hop.url.query().is_some();
                if ask.object == Object::Blob || (ask.object == Object::Manifest && signed) {
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

    fn is_own(&self, url: &Url) -> bool {
        self.endpoints.iter().any(|e| e.url.origin() == url.origin())
    }
}
