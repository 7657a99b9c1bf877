//! Pushing through: one request with its body, passed on as it comes and sent once.
//!
//! Nothing is sent twice but what has no body, or one that is held whole; so credentials are met before a
//! body is begun. Redirects are not followed, and an upload goes on at no other host than where it began.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::{mpsc, oneshot};
use url::Url;

use super::Upstream;
use super::access::Access;
use super::answer::read_up_to;
use super::ask::{self, Ask, Object};
use super::endpoint::Endpoint;
use super::redirect::authority;
use crate::error::{Error, Kind, Result};
use crate::limits::{ANSWER_WITHIN, ERROR_BODY_BYTES_MAX, LOCATION_BYTES_MAX, PUSHED_WITHIN};

/// Pieces of a body between the client's socket and the upstream's.
const PIECES_WAITING_MAX: usize = 2;

/// Where an upload goes on: an endpoint, and what it called the upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The endpoint, as it is configured.
    pub endpoint: String,
    /// Path and query there, as the endpoint gave them.
    pub target: String,
}

/// One request that changes something upstream.
#[derive(Debug)]
pub struct Order {
    /// What is asked.
    pub ask: Ask,
    /// Where an upload goes on, and what is added to its query; else `ask.path` says where to.
    pub session: Option<(Session, Option<(&'static str, String)>)>,
    /// Headers that go along.
    pub headers: HeaderMap,
}

/// A request's body.
#[derive(Debug)]
pub enum Cargo {
    /// None, or one that is held.
    Held(Bytes),
    /// One that is still coming, and how long it says it is.
    Coming(Arriving, Option<u64>),
}

/// The end of a body that the upstream's connection takes from.
#[derive(Debug)]
pub struct Arriving {
    pieces: mpsc::Receiver<Option<Bytes>>,
    ended: Option<oneshot::Sender<()>>,
    end: oneshot::Receiver<()>,
}

/// The end of a body that pieces are put in at. Dropped before its end, it breaks the body off: the
/// upstream never sees a clean end of what is not whole.
#[derive(Debug)]
pub struct Feeder {
    pieces: mpsc::Sender<Option<Bytes>>,
}

/// A body that is passed on piece by piece.
pub fn passage() -> (Feeder, Arriving) {
    let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let (ended, end) = oneshot::channel();
    (Feeder { pieces: sender }, Arriving { pieces, ended: Some(ended), end })
}

impl Feeder {
    /// Hands over the next piece, once there is room for it; `false`: no more are taken, and the
    /// answer says why.
    ///
    /// # Errors
    /// `Unavailable` where none is taken for as long as `patience`.
    pub async fn piece(&self, piece: Bytes, patience: Duration) -> Result<bool> {
        self.put(Some(piece), patience).await
    }

    /// Says that the body is whole.
    ///
    /// # Errors
    /// As for a piece.
    pub async fn end(self, patience: Duration) -> Result<bool> {
        self.put(None, patience).await
    }

    async fn put(&self, piece: Option<Bytes>, patience: Duration) -> Result<bool> {
        match tokio::time::timeout(patience, self.pieces.send(piece)).await {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => Err(Error::new(Kind::Unavailable, "the upstream takes no more of the body")),
        }
    }
}

impl Arriving {
    fn into_body(self) -> (reqwest::Body, oneshot::Receiver<()>) {
        let Self { pieces, ended, end } = self;
        let stream =
            futures_util::stream::unfold((pieces, ended), |(mut pieces, mut ended)| async {
                match pieces.recv().await {
                    Some(Some(piece)) => Some((Ok(piece), (pieces, ended))),
                    Some(None) => {
                        // Nobody waits any more where this fails.
                        let _ = ended.take().map(|ended| ended.send(()));
                        None
                    }
                    None => {
                        Some((Err(io::Error::from(io::ErrorKind::BrokenPipe)), (pieces, ended)))
                    }
                }
            });
        (reqwest::Body::wrap_stream(stream), end)
    }
}

/// What an upstream answered to a push: no outage, and no question for credentials.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers: hostile input.
    pub headers: HeaderMap,
    /// The body, where it is short.
    pub body: Bytes,
    /// Where the upload goes on, where the answer says so.
    pub session: Option<Session>,
}

impl Upstream {
    /// Sends what changes something, once. To the first endpoint, since others may be copies of it,
    /// or to the one where the upload began.
    ///
    /// Dropping the future cuts the connection while a body is on its way.
    ///
    /// # Errors
    /// `Unavailable` where the upstream breaks off, is not there, or thinks for too long;
    /// `Unauthorized` where it wants other credentials, `Denied` where its token service does,
    /// `NoLogin` where ours cannot be had; `BadUpstream` where it redirects, or leads the
    /// upload elsewhere.
    pub async fn push(&self, order: &Order, cargo: Cargo) -> Result<Reply> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let endpoint = self.endpoint_of(order)?;
        let url = place(endpoint, order)?;
        let _place = self.manners.enter(&order.ask, deadline).await?;
        let started = Instant::now();
        let outcome = match cargo {
            Cargo::Held(body) => self.push_held(endpoint, &url, order, body, deadline).await,
            Cargo::Coming(body, length) => {
                self.push_once(endpoint, &url, order, (body, length), deadline).await
            }
        };
        let kind = order.ask.object.as_str();
        match &outcome {
            Ok(reply) => {
                endpoint.has_spoken.store(true, Ordering::Relaxed);
                endpoint.health.succeeded(started.elapsed(), Instant::now());
                let took = started.elapsed();
                let (name, at) = (&self.name, &endpoint.authority);
                self.metrics.upstream_request(name, at, kind, reply.status, took);
            }
            Err(_) => self.metrics.upstream_error(&self.name, &endpoint.authority, kind),
        }
        outcome
    }

    fn endpoint_of(&self, order: &Order) -> Result<&Endpoint> {
        let found = match &order.session {
            None => self.endpoints.first(),
            Some((session, _)) => {
                self.endpoints.iter().find(|e| e.url.as_str() == session.endpoint)
            }
        };
        found.ok_or_else(|| {
            let text = format!("{} is no longer asked where this upload began", self.name);
            Error::new(Kind::BlobUploadUnknown, text)
        })
    }

    /// With a body that is held, so that a challenge can be met and what has ended be renewed.
    async fn push_held(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        order: &Order,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply> {
        let account = self.account()?;
        let mut renewed = false;
        let mut turns = 0;
        loop {
            let shown =
                self.access.show(&self.wire, account, endpoint, &order.ask, deadline).await?;
            let mut request = self.request(url, order, shown.authorization.as_ref());
            // A length is told of an empty body as well: some registries insist.
            if !matches!(order.ask.method, Method::GET | Method::HEAD | Method::DELETE) {
                request = request.header(CONTENT_LENGTH, body.len());
            }
            let sent = self.wire.deliver(request.body(body.clone()), url, PUSHED_WITHIN);
            let response = sent.await?;
            turns += 1;
            let status = response.status();
            let learnt = status == StatusCode::UNAUTHORIZED
                && Access::learn(endpoint, response.headers(), &shown);
            let ended = !renewed && shown.may_have_ended(status);
            renewed |= ended;
            let fresh = ended && self.access.forget(account.1, &shown).await;
            if turns >= super::TURNS_MAX || !(learnt || fresh) {
                return self.reply(endpoint, url, order, response).await;
            }
        }
    }

    /// With a body that is still coming, which can be sent only once.
    async fn push_once(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        order: &Order,
        (body, length): (Arriving, Option<u64>),
        deadline: Instant,
    ) -> Result<Reply> {
        let account = self.account()?;
        self.hear(endpoint, deadline).await?;
        let shown = self.access.show(&self.wire, account, endpoint, &order.ask, deadline).await?;
        let (body, ended) = body.into_body();
        let mut request = self.request(url, order, shown.authorization.as_ref());
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        let too_late = async {
            // Where the body breaks off instead of ending, so does the request.
            let _ = ended.await;
            tokio::time::sleep(PUSHED_WITHIN).await;
        };
        let response = tokio::select! {
            sent = self.wire.deliver(request.body(body), url, Duration::MAX) => sent?,
            () = too_late => {
                let text = format!("{} did not answer to a push in time", self.name);
                return Err(Error::new(Kind::Unavailable, text));
            }
        };
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            Access::learn(endpoint, response.headers(), &shown);
        }
        if shown.may_have_ended(status) && self.access.forget(account.1, &shown).await {
            let text = format!("the login for {} has ended; push once more", self.name);
            return Err(Error::new(Kind::Unavailable, text));
        }
        self.reply(endpoint, url, order, response).await
    }

    /// Hears the challenge of an endpoint that has not been pushed to, before a body is sent there.
    async fn hear(&self, endpoint: &Endpoint, deadline: Instant) -> Result<()> {
        let known = endpoint.has_spoken.load(Ordering::Relaxed);
        if known || endpoint.challenge.read().is_some() {
            return Ok(());
        }
        let url = endpoint.join("")?;
        let request = self.wire.clients.own().get(url.clone());
        let response = self.wire.exchange(request, &url, deadline).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            Access::learn(endpoint, response.headers(), &super::access::Shown::default());
        }
        Ok(())
    }

    fn account(&self) -> Result<(usize, &super::credentials::Credentials)> {
        let none = || Error::new(Kind::NoLogin, format!("{} has no account", self.name));
        self.accounts.first().ok_or_else(none)
    }

    fn request(
        &self,
        url: &Url,
        order: &Order,
        authorization: Option<&http::HeaderValue>,
    ) -> reqwest::RequestBuilder {
        let client = self.wire.clients.own();
        let mut request = client
            .request(order.ask.method.clone(), url.clone())
            .headers(order.headers.clone())
            .header(ACCEPT, order.ask.accept)
            .header(ACCEPT_ENCODING, "identity");
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        request
    }

    async fn reply(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        order: &Order,
        response: reqwest::Response,
    ) -> Result<Reply> {
        let (status, headers) = (response.status(), response.headers().clone());
        tracing::debug!(upstream = %self.name, %status, method = %order.ask.method, "push answered");
        if status.is_redirection() {
            let text = format!("{} redirects a push, which is not followed", self.name);
            return Err(Error::new(Kind::BadUpstream, text));
        }
        let body = read_up_to(response, ERROR_BODY_BYTES_MAX, Duration::from_secs(2)).await;
        let body = Bytes::from(body.unwrap_or_default());
        if status == StatusCode::UNAUTHORIZED || status.is_server_error() {
            let said = ask::message(&body);
            let error = order.ask.failure(&self.name, status, &headers, said.as_deref());
            let refused = status == StatusCode::UNAUTHORIZED;
            return Err(if refused { error.with_kind(Kind::Unauthorized) } else { error });
        }
        let goes_on = order.ask.object == Object::Upload
            && (status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE)
            && status != StatusCode::CREATED;
        let location = headers.get(http::header::LOCATION).filter(|_| goes_on);
        let session = match location {
            None => None,
            Some(location) => {
                let location = location.to_str().unwrap_or_default();
                Some(session(&self.name, endpoint, url, location)?)
            }
        };
        Ok(Reply { status, headers, body, session })
    }
}

/// Where a request goes.
fn place(endpoint: &Endpoint, order: &Order) -> Result<Url> {
    let Some((session, more)) = &order.session else { return endpoint.join(&order.ask.path) };
    // Never joined: a path may begin with two slashes, and would be read as another host.
    let mut url = endpoint.url.clone();
    let (path, query) = session.target.split_once('?').unzip();
    url.set_path(path.unwrap_or(&session.target));
    url.set_query(query);
    if let Some((key, value)) = more {
        url.query_pairs_mut().append_pair(key, value);
    }
    Ok(url)
}

/// What is kept of a `Location`: path and query, once it is known to lead to the endpoint itself. A
/// registry behind a proxy may not know its own scheme, so only host and port count.
fn session(upstream: &str, endpoint: &Endpoint, from: &Url, location: &str) -> Result<Session> {
    let refuse = |why: &str| {
        let text = format!("{upstream} ({}) leads the upload {why}", endpoint.authority);
        Error::new(Kind::BadUpstream, text)
    };
    if location.is_empty() || location.len() > LOCATION_BYTES_MAX {
        return Err(refuse("to a Location that is empty or too long"));
    }
    let url = from.join(location).map_err(|_| refuse("to something that is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
        return Err(refuse("to a scheme that is not HTTP"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("to a URL with credentials in it"));
    }
    if url.host() != endpoint.url.host() || url.port() != endpoint.url.port() {
        return Err(refuse(&format!("to {}, and it goes to no other host", authority(&url))));
    }
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    Ok(Session { endpoint: endpoint.url.to_string(), target })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(endpoint: &str, location: &str) -> Result<String> {
        let endpoint = Endpoint::new(&Url::parse(endpoint).unwrap(), None);
        let from = endpoint.join("a/blobs/uploads/").unwrap();
        session("x", &endpoint, &from, location).map(|session| session.target)
    }

    #[test]
    fn an_upload_goes_on_where_it_began() {
        for (endpoint, location, target) in [
            (
                "https://a.test",
                "/v2/a/blobs/uploads/1?_state=x%2By==&b=",
                "/v2/a/blobs/uploads/1?_state=x%2By==&b=",
            ),
            ("https://a.test", "https://a.test/up/1", "/up/1"),
            ("https://a.test", "https://a.test:443/up/1", "/up/1"),
            ("https://a.test", "http://a.test/up/1", "/up/1"),
            ("https://a.test:8443/base", "https://a.test:8443/base/v2/1", "/base/v2/1"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000/v2/1?q=a b", "/v2/1?q=a%20b"),
            ("http://a.test", "1?x=/../", "/v2/a/blobs/uploads/1?x=/../"),
            ("http://a.test", "//a.test/x", "/x"),
        ] {
            assert_eq!(go(endpoint, location).unwrap(), target, "{location}");
        }
    }

    #[test]
    fn and_nowhere_else() {
        let long = format!("/{}", "a".repeat(LOCATION_BYTES_MAX));
        for (endpoint, location) in [
            ("https://a.test", "https://b.test/up/1"),
            ("https://a.test", "//b.test/up/1"),
            ("https://a.test", "https://a.test:8443/up/1"),
            ("https://a.test:8443", "https://a.test/up/1"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/up/1"),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5000/up/1"),
            ("https://a.test", "https://u:p@a.test/up/1"),
            ("https://a.test", "file:///etc/passwd"),
            ("https://a.test", "https://a.test.evil.test/"),
            ("https://a.test", "https://169.254.169.254/"),
            ("https://a.test", &long),
            ("https://a.test", ""),
        ] {
            assert_eq!(go(endpoint, location).unwrap_err().kind(), Kind::BadUpstream, "{location}");
        }
    }

    #[test]
    fn what_is_added_to_a_query_leaves_the_rest_as_it_was() {
        let endpoint = Endpoint::new(&Url::parse("http://a.test/base").unwrap(), None);
        let target = "/v2/1?_state=x%2By==&b=&c".to_owned();
        let session = Session { endpoint: endpoint.url.to_string(), target };
        let repository = crate::name::Repository::parse("a").unwrap();
        let order = Order {
            ask: Ask::ping(&repository),
            session: Some((session, Some(("digest", "sha256:00".to_owned())))),
            headers: HeaderMap::new(),
        };
        let url = place(&endpoint, &order).unwrap();
        assert_eq!(url.as_str(), "http://a.test/v2/1?_state=x%2By==&b=&c&digest=sha256%3A00");
        for target in ["//evil.test/x", "/\\evil.test/x", "/x", "//evil.test/x?a=//b"] {
            let session = Session { endpoint: String::new(), target: target.to_owned() };
            let order = Order {
                ask: Ask::ping(&repository),
                session: Some((session, None)),
                headers: HeaderMap::new(),
            };
            assert_eq!(place(&endpoint, &order).unwrap().host_str(), Some("a.test"), "{target}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_not_ended_is_broken_off() {
        let (feeder, arriving) = passage();
        let patience = Duration::from_secs(5);
        assert!(feeder.piece(Bytes::from_static(b"a"), patience).await.unwrap());
        drop(feeder);
        let (body, _end) = arriving.into_body();
        let response = http::Response::new(body);
        assert!(reqwest::Response::from(response).bytes().await.is_err());
        let (feeder, arriving) = passage();
        assert!(feeder.piece(Bytes::from_static(b"a"), patience).await.unwrap());
        assert!(feeder.end(patience).await.unwrap());
        let (body, end) = arriving.into_body();
        let whole = reqwest::Response::from(http::Response::new(body)).bytes().await.unwrap();
        assert_eq!(whole, "a");
        end.await.unwrap();
    }
}
