//! Who stands at a door, and what he has shown there.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::begun::Beginner;
use crate::config;
use crate::error::{Error, Kind};
use crate::pass::{Access, By, Login};
use crate::rights::Asker;
use crate::rules::Actor;

/// One address that clients connect to.
#[derive(Clone, Debug, Default)]
pub struct Door {
    serves: HashSet<String>,
    tls: bool,
    anonymous: bool,
    url: Option<String>,
}

/// What a request shows of its sender. Printed, it shows nothing.
#[derive(Clone, Default)]
pub struct Knock {
    /// `Host`.
    pub host: Option<String>,
    /// `Authorization`.
    pub authorization: Option<Zeroizing<String>>,
    /// Where it came from.
    pub address: Option<IpAddr>,
    /// The user that a client certificate names.
    pub certificate: Option<Arc<str>>,
}

impl fmt::Debug for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Knock({:?})", self.host)
    }
}

/// Who it is.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// For the rules.
    pub actor: Actor,
    pub(super) by: Option<By>,
    pub(super) login: Option<Login>,
    /// What the token that was shown is limited to.
    pub(super) access: Option<Vec<Access>>,
    /// Whether it was a token: none is had by another.
    pub(super) by_token: bool,
    /// Whether anything was shown at all.
    pub(super) shown: bool,
}

impl Caller {
    /// Somebody who has shown who he is.
    pub(super) fn known(user: Option<Arc<str>>, by: By) -> Self {
        let actor = Actor { user, groups: Vec::new() };
        Self { actor, by: Some(by), shown: true, ..Self::default() }
    }

    /// How the caller stands towards an upstream that passes credentials through.
    pub fn asker(&self, upstream: &str) -> Asker<'_> {
        match &self.login {
            Some(login) if *login.upstream == *upstream => Asker::Known(login),
            _ if self.shown => Asker::Nobody,
            _ => Asker::Unasked,
        }
    }

    /// Whose downloads this caller's are.
    pub fn beginner(&self, knock: &Knock) -> Beginner {
        match &self.actor.user {
            Some(user) => Beginner::User(Arc::clone(user)),
            None => Beginner::Address(knock.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
        }
    }

    /// The credentials for an upstream, if any came along.
    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }
}

impl Door {
    /// As configured.
    pub fn new(listen: &config::Listen) -> Self {
        Self {
            serves: listen.serves.iter().cloned().collect(),
            tls: listen.tls.is_some(),
            anonymous: listen.anonymous,
            url: listen.url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
        }
    }

    /// Whether an upstream is reached through this address.
    pub fn serves(&self, upstream: &str) -> bool {
        self.serves.is_empty() || self.serves.contains(upstream)
    }

    /// Whether nobody is asked who he is.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous
    }

    /// What is said here instead of a challenge: to log in is for another address.
    pub fn without_challenge(&self, error: Error) -> Error {
        if !self.anonymous || error.kind() != Kind::Unauthorized {
            return error;
        }
        let text = "this is not for everybody, and nobody logs in at this address; use the one that asks for a login";
        Error::new(Kind::Denied, text).because(error)
    }

    /// The base URL by which a client knows this address. A `Host` that is none is not repeated.
    pub(super) fn url(&self, host: Option<&str>) -> String {
        if let Some(url) = &self.url {
            return url.clone();
        }
        let lawful = |b: u8| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b);
        let host = host.filter(|h| !h.is_empty() && h.len() <= 255 && h.bytes().all(lawful));
        format!("{}://{}", if self.tls { "https" } else { "http" }, host.unwrap_or("localhost"))
    }
}
