//! Who may come in, as far as it takes the mirror to say: log-ins, our token service, and the right
//! to what is asked for.

use std::sync::Arc;

use http::{Method, header};
use pingora::protocols::http::ServerSession;

use super::{Account, Mirror, Origin, Request};
use crate::answer;
use crate::config::Act;
use crate::doors::{Caller, Door};
use crate::error::{Error, Kind, Result};
use crate::respond::{self, Answer};
use crate::rights::Asker;
use crate::route::{Action, Push, Target};
use crate::scope::{ASK_BYTES_MAX, Asked};
use crate::store::Place;
use crate::transport::Peer;
use crate::upstream::Upstream;

impl Mirror {
    /// The answer to a request, or the error in its place, with the challenge that may help.
    pub(super) async fn reply(
        &self,
        door: &Door,
        session: &mut ServerSession,
        request: &Request,
        account: &mut Account,
    ) -> Answer {
        let outcome = if request.path == "/token" {
            account.kind = "token";
            let within = self.config.server.header_timeout.get();
            let form = match request.method {
                Method::POST => respond::read_body(session, ASK_BYTES_MAX, within).await,
                _ => None,
            };
            self.token(door, request, form.as_deref().map(Vec::as_slice), account).await
        } else {
            self.answer(door, request, session, account).await
        };
        let outcome = outcome.map_err(|error| door.without_challenge(error));
        self.count_decision(door, request, outcome.as_ref().err().map(Error::kind));
        match outcome {
            Ok(answer) => answer,
            Err(error) => {
                super::log_failure(request, &error);
                let mut answer = answer::error(&error, &request.user_agent, &request.method);
                if error.kind() == Kind::Unauthorized {
                    let scope = account.scope.as_deref();
                    let challenge = self.doors.challenge(door, &request.knock, scope);
                    answer.header(header::WWW_AUTHENTICATE, challenge);
                }
                answer
            }
        }
    }

    /// Counts what was decided about whoever asks, where anything is to be decided.
    fn count_decision(&self, door: &Door, request: &Request, refusal: Option<Kind>) {
        let guarded = || self.doors.guard(door, request.knock.host.as_deref());
        let decision = match refusal {
            Some(Kind::Unauthorized) if request.knock.authorization.is_some() => "refused",
            Some(Kind::Unauthorized) => "challenged",
            Some(Kind::Denied) => "denied",
            _ if guarded() => "allowed",
            _ => return,
        };
        self.metrics.auth_decided(decision);
    }

    /// `GET /v2/`. Credentials that only an upstream can judge are judged here, since this is what
    /// `docker login` and its like look at.
    pub(super) async fn ping(&self, caller: &Caller) -> Result<Answer> {
        if let Some(login) = caller.login()
            && let Some(origin) = self.origins.get(&login.upstream)
            && let Some(rights) = &origin.rights
        {
            match rights.check(&origin.upstream, login).await {
                Err(e) if e.is_outage() => {
                    tracing::warn!(error = ?e, "credentials go unchecked for now");
                }
                other => other?,
            }
        }
        Ok(answer::ping())
    }

    /// `/token`: our own token service.
    pub(super) async fn token(
        &self,
        door: &Door,
        request: &Request,
        form: Option<&[u8]>,
        account: &mut Account,
    ) -> Result<Answer> {
        let text = match (&request.method, form) {
            (&Method::GET, _) => request.query.as_deref().unwrap_or_default(),
            (&Method::POST, Some(form)) => std::str::from_utf8(form)
                .map_err(|e| Error::new(Kind::BadRequest, "the form is not UTF-8").because(e))?,
            (&Method::POST, None) => {
                return Err(Error::new(Kind::BadRequest, "the form is too long or broke off"));
            }
            _ => {
                let text = "a token is had by GET or POST";
                return Err(Error::new(Kind::Unsupported, text).allowing("GET, POST"));
            }
        };
        let mut asked = Asked::read(text, request.method == Method::POST)?;
        let caller = self.doors.asks_for_token(door, &request.knock, &mut asked).await?;
        account.user.clone_from(&caller.actor.user);
        self.ping(&caller).await?;
        self.doors.grant(&caller, asked)
    }

    /// Decides whether something hosted may be asked for, and in a mount also what it is taken from.
    pub(super) fn admit_hosted(
        &self,
        door: &Door,
        caller: &Caller,
        target: &Target,
        action: &Action,
    ) -> Result<()> {
        if !door.serves("hosted") {
            return Err(Error::new(Kind::NameUnknown, "nothing is hosted at this address"));
        }
        self.doors.allow(caller, target, act_of(action))
    }

    /// Decides whether a request may be answered at all, before anything is looked up.
    pub(super) fn admit(
        &self,
        door: &Door,
        caller: &Caller,
        target: &Target,
        act: Act,
    ) -> Result<&Origin> {
        let served = self.origins.get(&target.upstream).filter(|_| door.serves(&target.upstream));
        let origin = served.ok_or_else(|| {
            Error::new(
                Kind::NameUnknown,
                format!("no upstream is configured for {}", target.upstream),
            )
        })?;
        self.doors.allow(caller, target, act)?;
        if origin.allowed.permits(target.repository.as_str()) {
            return Ok(origin);
        }
        Err(Error::new(
            Kind::Denied,
            format!(
                "{} of {} is not open to {} through this mirror",
                target.repository,
                target.upstream,
                act.as_str()
            ),
        ))
    }
}

impl Origin {
    /// The upstream as it is asked for this caller, once the right to this is proven.
    pub(super) async fn for_caller(
        &self,
        asker: (Asker<'_>, bool),
        place: &Place,
        action: &Action,
    ) -> Result<Arc<Upstream>> {
        match &self.rights {
            None => Ok(Arc::clone(&self.upstream)),
            Some(rights) => rights.admit(&self.upstream, place, asker, action).await,
        }
    }
}

/// The user that the connection's certificate names.
pub(super) fn certificate(session: &ServerSession) -> Option<Arc<str>> {
    session.digest()?.ssl_digest.as_ref()?.extension.get::<Peer>()?.user.clone()
}

/// What the rules call it.
pub(super) fn act_of(action: &Action) -> Act {
    match action {
        Action::Push(Push::DeleteManifest(_) | Push::DeleteBlob(_)) => Act::Delete,
        Action::Push(_) => Act::Push,
        _ => Act::Pull,
    }
}
