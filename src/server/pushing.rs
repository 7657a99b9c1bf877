//! A push to an upstream's name: by whose rights, and passed on.

use pingora::protocols::http::ServerSession;

use super::{Mirror, Origin, Request};
use crate::doors::Caller;
use crate::error::{Error, Kind, Result};
use crate::receive::Incoming;
use crate::respond::Answer;
use crate::rights::Asker;
use crate::route::{Push, Route, Target};
use crate::store::Place;
use crate::through::Pusher;

impl Mirror {
    /// Passes a push on to its upstream, which judges it where the caller's own credentials go along;
    /// where ours do, the rules have judged.
    pub(super) async fn pushed_through(
        &self,
        (push, route, target): (&Push, &Route, &Target),
        (origin, caller): (&Origin, &Caller),
        place: &Place,
        request: &Request,
        session: &mut ServerSession,
    ) -> Result<Answer> {
        let asker = caller.asker(&place.upstream);
        let upstream = match &origin.rights {
            Some(rights) => rights.pusher(&origin.upstream, place, asker)?,
            None => std::sync::Arc::clone(&origin.upstream),
        };
        let user = match (&origin.rights, asker) {
            (Some(_), Asker::Known(login)) => format!("login {}", *login.username),
            _ => {
                caller.actor.user.as_deref().map(|user| format!("user {user}")).unwrap_or_default()
            }
        };
        let pusher = Pusher {
            upstream,
            place,
            target,
            namespace: route.namespace.as_deref(),
            user,
            doors: &self.doors,
            query: request.query.as_deref(),
        };
        let push = self.lawful_push(push, target, (origin, caller));
        let mut body = Incoming::new(session, self.config.server.send_timeout.get());
        let answer = self.through.answer(&push, &pusher, &mut body).await;
        answer.map_err(|error| refused(error, place, origin.rights.is_some(), asker))
    }

    /// The same push, without a mount from where the caller may not read.
    fn lawful_push(
        &self,
        push: &Push,
        target: &Target,
        (origin, caller): (&Origin, &Caller),
    ) -> Push {
        let Push::Start(start) = push else { return push.clone() };
        let own = origin.rights.is_some();
        let mut start = self.doors.lawful_upstream(caller, target, start, own);
        start.mount = start.mount.filter(|(_, from)| {
            from.as_ref().is_none_or(|from| origin.allowed.permits(from.as_str()))
        });
        Push::Start(start)
    }
}

/// What the caller is told of an upstream's no to its credentials.
fn refused(error: Error, place: &Place, own: bool, asker: Asker<'_>) -> Error {
    let is_known = matches!(asker, Asker::Known(_));
    match error.kind() {
        Kind::Unauthorized if own => error,
        // Our login, or nobody's: the caller's would make no difference.
        Kind::Unauthorized => error.with_kind(Kind::Denied),
        Kind::Denied if own && !is_known => {
            let text = format!("log in to push to {} of {}", place.repository, place.upstream);
            Error::new(Kind::Unauthorized, text).because(error)
        }
        _ => error,
    }
}
