//! What is shown to an upstream so that it lets us in: by its challenge, with our credentials.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use url::form_urlencoded;

use super::Who;
use super::answer::read_up_to;
use super::ask::{self, Ask};
use super::credentials::{Credentials, Current, Login};
use super::endpoint::Endpoint;
use super::token::{Bearer, Challenge, Token};
use super::wire::Wire;
use crate::error::{Error, Kind, Result};
use crate::limits::TOKEN_BYTES_MAX;

/// Whose token, and for what.
type Key = ((Who, usize), Bearer, String);

/// What one account may show.
#[derive(Debug)]
pub(super) struct Access {
    upstream: Arc<str>,
    /// Tokens by account, realm, service and scope; one fetch for any number of waiters.
    tokens: moka::future::Cache<Key, Token>,
    realms: Vec<String>,
    who: Who,
    /// Whether the caller is about to push.
    pushes: bool,
}

/// What was shown with a request.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The header, where there is one.
    pub(super) authorization: Option<HeaderValue>,
    /// The challenge that it met.
    challenge: Option<Challenge>,
    /// What it was made of, and may be out of date.
    made_of: Option<MadeOf>,
}

#[derive(Debug)]
enum MadeOf {
    Token(Key, String),
    Login(Login),
}

impl Shown {
    /// Whether a refusal with this status may mean that what was shown has ended. ECR answers 400
    /// and 403 to a password that has.
    pub(super) fn may_have_ended(&self, status: StatusCode) -> bool {
        match self.made_of {
            Some(MadeOf::Token(..)) => status == StatusCode::UNAUTHORIZED,
            Some(MadeOf::Login(_)) => matches!(status.as_u16(), 400 | 401 | 403),
            None => false,
        }
    }
}

impl Access {
    pub(super) fn new(upstream: &Arc<str>, realms: Vec<String>) -> Self {
        let tokens =
            moka::future::Cache::builder().max_capacity(10_000).expire_after(TokenLife).build();
        Self { upstream: Arc::clone(upstream), tokens, realms, who: None, pushes: false }
    }

    /// The same for a caller's own credentials, whose tokens are kept apart; they are good for pushing
    /// too where the caller is about to.
    pub(super) fn for_caller(&self, who: [u8; 32], pushes: bool) -> Self {
        Self {
            upstream: Arc::clone(&self.upstream),
            tokens: self.tokens.clone(),
            realms: self.realms.clone(),
            who: Some(who),
            pushes,
        }
    }

    /// The `Authorization` of an account for a question, by what the endpoint is known to want.
    pub(super) async fn show(
        &self,
        wire: &Wire,
        (account, credentials): (usize, &Credentials),
        endpoint: &Endpoint,
        ask: &Ask,
        deadline: Instant,
    ) -> Result<Shown> {
        let challenge = endpoint.challenge.read().clone();
        match challenge.clone() {
            None => Ok(Shown::default()),
            Some(Challenge::Basic) => {
                let Current { login, held } = credentials.login(deadline).await?;
                match login {
                    None => Ok(Shown { challenge, ..Shown::default() }),
                    Some(Login::Identity { .. }) => Err(Error::new(
                        Kind::NoLogin,
                        format!(
                            "{} wants a user and a password, and the login at hand is an identity token; log in with a password",
                            self.upstream
                        ),
                    )),
                    Some(Login::Basic { username, password }) => Ok(Shown {
                        authorization: Some(basic(&username, &password)?),
                        challenge,
                        made_of: held.then_some(MadeOf::Login(Login::Basic { username, password })),
                    }),
                }
            }
            Some(Challenge::Bearer(bearer)) => {
                let scope = ask.scope(&bearer, self.pushes);
                let key = ((self.who, account), bearer, scope);
                let entry = self
                    .tokens
                    .entry_by_ref(&key)
                    .or_try_insert_with(self.token(wire, credentials, endpoint, &key, deadline))
                    .await
                    .map_err(|e| Error::clone(&e))?;
                let held = !entry.is_fresh();
                let token = entry.into_value().value;
                Ok(Shown {
                    authorization: Some(sensitive(&format!("Bearer {token}"))?),
                    challenge,
                    made_of: held.then_some(MadeOf::Token(key, token)),
                })
            }
        }
    }

    /// Drops what was refused, so that it is fetched anew, unless another request has done so.
    /// Returns whether it is worth asking again.
    pub(super) async fn forget(&self, credentials: &Credentials, shown: &Shown) -> bool {
        match &shown.made_of {
            Some(MadeOf::Token(key, refused)) => {
                if self.tokens.get(key).await.is_some_and(|held| held.value == *refused) {
                    self.tokens.invalidate(key).await;
                }
                true
            }
            Some(MadeOf::Login(login)) => credentials.forget(login).await,
            None => false,
        }
    }

    /// Takes in the challenge of a 401. What was known first stays, where it can: nvcr.io names
    /// another realm once a token has expired, and that one refuses anonymous callers. Returns
    /// whether there is now something else to show than before.
    pub(super) fn learn(endpoint: &Endpoint, headers: &HeaderMap, shown: &Shown) -> bool {
        let mut known = endpoint.challenge.write();
        if *known == shown.challenge
            && let Some(fresh) = Challenge::read(headers)
        {
            let learnt = match (known.take(), fresh) {
                (Some(Challenge::Bearer(old)), Challenge::Bearer(new)) => {
                    Challenge::Bearer(Bearer { scope: old.scope.or(new.scope), ..old })
                }
                (_, fresh) => fresh,
            };
            *known = Some(learnt);
        }
        *known != shown.challenge
    }

    /// Fetches a token; where a held login is refused, once more with a fresh one.
    async fn token(
        &self,
        wire: &Wire,
        credentials: &Credentials,
        endpoint: &Endpoint,
        (_, bearer, scope): &Key,
        deadline: Instant,
    ) -> Result<Token> {
        let Current { login, held } = credentials.login(deadline).await?;
        let error = match self.ask(wire, login.as_ref(), endpoint, bearer, scope, deadline).await {
            Err(error) if held && error.kind() == Kind::Denied => error,
            other => return other,
        };
        let Some(refused) = login else { return Err(error) };
        if !credentials.forget(&refused).await {
            return Err(error);
        }
        let Current { login, .. } = credentials.login(deadline).await?;
        if login.as_ref() == Some(&refused) {
            return Err(error);
        }
        self.ask(wire, login.as_ref(), endpoint, bearer, scope, deadline).await
    }

    /// Asks the token service. By GET with Basic: POST is missing or broken on many, and only
    /// identity tokens need it.
    async fn ask(
        &self,
        wire: &Wire,
        login: Option<&Login>,
        endpoint: &Endpoint,
        bearer: &Bearer,
        scope: &str,
        deadline: Instant,
    ) -> Result<Token> {
        let (upstream, reach) = (&self.upstream, endpoint.reach());
        bearer.permit(upstream, &endpoint.url, reach, &self.realms, login.is_some())?;
        let home = bearer.realm.host() == endpoint.url.host()
            || self.realms.iter().any(|r| Some(r.as_str()) == bearer.realm.host_str());
        let client = if home { wire.clients.own() } else { wire.clients.named_by(reach) };
        let request = match login {
            Some(Login::Identity { token }) => {
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", bearer.service.as_deref().unwrap_or_default())
                    .append_pair("scope", scope)
                    .append_pair("client_id", "pierhead")
                    .append_pair("refresh_token", token)
                    .finish();
                let kind = "application/x-www-form-urlencoded";
                client.post(bearer.realm.clone()).header("content-type", kind).body(form)
            }
            Some(Login::Basic { username, password }) => client
                .get(bearer.url(scope, Some(username)))
                .header(AUTHORIZATION, basic(username, password)?),
            None => client.get(bearer.url(scope, None)),
        };
        let request = request.header(ACCEPT, "application/json");
        let response = wire.exchange(request, &bearer.realm, deadline).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let name = format!("the token service of {upstream}");
        let body = read_up_to(response, TOKEN_BYTES_MAX, wire.response_timeout)
            .await
            .map_err(|e| Error::new(Kind::Unavailable, format!("{name} broke off")).because(e))?;
        if status == StatusCode::OK {
            return Token::read(&body, Instant::now())
                .map_err(|e| Error::new(Kind::BadUpstream, format!("{upstream}: {e}")).because(e));
        }
        Err(refusal(&name, status, &headers, scope))
    }
}

/// What a token service's status means.
fn refusal(name: &str, status: StatusCode, headers: &HeaderMap, scope: &str) -> Error {
    match status.as_u16() {
        401 | 403 => Error::new(
            Kind::Denied,
            format!(
                "{name} refuses {} ({status}): it does not exist, or the upstream's `auth` needs credentials that may read it",
                scope.split(':').nth(1).unwrap_or(scope)
            ),
        ),
        429 => {
            let error = Error::new(Kind::TooManyRequests, format!("{name} limits requests"));
            match ask::retry_after(headers, std::time::SystemTime::now()) {
                Some(wait) => error.retry_after(wait),
                None => error,
            }
        }
        408 | 500..=599 => Error::new(Kind::Unavailable, format!("{name} answered {status}")),
        _ => Error::new(
            Kind::BadUpstream,
            format!("{name} answered {status}, which is not expected"),
        ),
    }
}

fn basic(username: &str, password: &str) -> Result<HeaderValue> {
    sensitive(&http_auth::basic::encode_credentials(username, password))
}

fn sensitive(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|e| Error::internal("credentials cannot stand in a header", e))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Tokens leave the cache when they are due for renewal.
struct TokenLife;

impl moka::Expiry<Key, Token> for TokenLife {
    fn expire_after_create(&self, _: &Key, token: &Token, now: Instant) -> Option<Duration> {
        Some(token.renew_at.saturating_duration_since(now))
    }
}
