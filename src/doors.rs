//! Who is at the door: one address as its clients see it, and what they show there.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderValue};
use zeroize::Zeroizing;

use crate::begun::Beginner;
use crate::cache::Cache;
use crate::config::{self, Act, Auth, Config};
use crate::error::{Error, Kind, Result};
use crate::issuer::Issuer;
use crate::pass::{Access, By, Grant, Keys, Login, SERVICE, opens};
use crate::people::People;
use crate::respond::{Answer, Body};
use crate::rights::Asker;
use crate::route::{Action, Push, Start, Target};
use crate::rules::{Actor, Rules, qualified};
use crate::scope::{Asked, Password, basic, lawful};

mod secrets;

use secrets::random;
pub use secrets::random_key;

/// The longest `Authorization` that is looked at.
const AUTHORIZATION_BYTES_MAX: usize = 20 * 1024;

/// One address that clients connect to.
#[derive(Clone, Debug, Default)]
pub struct Door {
    serves: HashSet<String>,
    tls: bool,
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
    by: Option<By>,
    login: Option<Login>,
    /// What the token that was shown is limited to.
    access: Option<Vec<Access>>,
    /// Whether it was a token: none is had by another.
    by_token: bool,
    /// Whether anything was shown at all.
    shown: bool,
}

impl Caller {
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
            url: listen.url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
        }
    }

    /// Whether an upstream is reached through this address.
    pub fn serves(&self, upstream: &str) -> bool {
        self.serves.is_empty() || self.serves.contains(upstream)
    }

    /// The base URL by which a client knows this address. A `Host` that is none is not repeated.
    fn url(&self, host: Option<&str>) -> String {
        if let Some(url) = &self.url {
            return url.clone();
        }
        let lawful = |b: u8| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b);
        let host = host.filter(|h| !h.is_empty() && h.len() <= 255 && h.bytes().all(lawful));
        format!("{}://{}", if self.tls { "https" } else { "http" }, host.unwrap_or("localhost"))
    }
}

/// Everybody who may come in, and how.
#[derive(Debug)]
pub struct Doors {
    rules: Rules,
    people: Option<Arc<People>>,
    issuer: Option<Arc<Issuer>>,
    keys: Arc<Keys>,
    token_life: u64,
    /// The upstreams that pass credentials through.
    passing: HashSet<Arc<str>>,
    /// Whose a host of ours is.
    hosts: HashMap<String, Arc<str>>,
    default: Option<String>,
}

impl Doors {
    /// As configured; keys that are not are random.
    ///
    /// # Errors
    /// Where the file of users is bad, or there is no randomness.
    pub fn new(config: &Config) -> Result<Self> {
        Self::renewed(config, None)
    }

    /// As configured now: users stay logged in, and tokens stay good, where what they rest on is
    /// as it was in `before`.
    ///
    /// # Errors
    /// As `new`.
    pub fn renewed(config: &Config, before: Option<(&Self, &Config)>) -> Result<Self> {
        let clients = config.clients.as_ref();
        let bad = |why: String| Error::new(Kind::Internal, why);
        let people = secrets::people(config, before.map(|(doors, _)| doors))?;
        let issuer = match clients.and_then(|c| c.jwt.as_ref()) {
            Some(jwt) => Some(Arc::new(Issuer::load(jwt).map_err(bad)?)),
            None => None,
        };
        let keys = secrets::keys(config, before)?;
        let named = config.upstreams.iter().map(|(name, u)| (Arc::<str>::from(name.as_str()), u));
        let (mut passing, mut hosts) = (HashSet::new(), HashMap::new());
        for (name, upstream) in named {
            for host in &upstream.hosts {
                hosts.insert(host.to_ascii_lowercase(), Arc::clone(&name));
            }
            if matches!(upstream.auth, Auth::Passthrough(_)) {
                passing.insert(name);
            }
        }
        Ok(Self {
            rules: Rules::new(clients),
            people,
            issuer,
            keys,
            token_life: clients.map_or(300, |c| c.token_ttl.get().as_secs()),
            passing,
            hosts,
            default: config.default_upstream.clone(),
        })
    }

    /// The file of users, to be read again.
    pub fn people(&self) -> Option<&Arc<People>> {
        self.people.as_ref()
    }

    /// Somebody else's token service, whose keys are to be read again.
    pub fn issuer(&self) -> Option<&Arc<Issuer>> {
        self.issuer.as_ref()
    }

    /// Whether anything behind this address and host is not for everybody.
    pub fn guard(&self, door: &Door, host: Option<&str>) -> bool {
        let passing = match self.by_host(host) {
            Some(upstream) => self.passing.contains(upstream),
            None => self.passing.iter().any(|upstream| door.serves(upstream)),
        };
        passing || !self.rules.are_absent()
    }

    /// The upstream that credentials shown here are for, where they are not our own users': one
    /// upstream's credentials must never reach another.
    fn bound(&self, door: &Door, host: Option<&str>) -> Option<&Arc<str>> {
        if let Some(upstream) = self.by_host(host) {
            return self.passing.get(upstream);
        }
        let mut served = self.passing.iter().filter(|upstream| door.serves(upstream));
        match (served.next(), served.next()) {
            (only, None) => only,
            _ => self.passing.get(self.default.as_deref()?).filter(|u| door.serves(u)),
        }
    }

    fn by_host(&self, host: Option<&str>) -> Option<&Arc<str>> {
        let host = host?.to_ascii_lowercase();
        let bare = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        self.hosts.get(&host).or_else(|| self.hosts.get(bare))
    }

    /// Finds out who it is.
    ///
    /// # Errors
    /// `Unauthorized` where something was shown and is not believed.
    pub async fn enter(&self, door: &Door, knock: &Knock) -> Result<Caller> {
        // A mirror of public registries wants nobody's credentials, and believes none.
        if !self.guard(door, knock.host.as_deref()) {
            return Ok(Caller::default());
        }
        let Some(shown) = &knock.authorization else {
            return Ok(Self::by_certificate(knock));
        };
        let refuse = |why: &str| Error::new(Kind::Unauthorized, why);
        if shown.len() > AUTHORIZATION_BYTES_MAX {
            return Err(refuse("the credentials are too long"));
        }
        let (scheme, rest) = shown.split_once(' ').unwrap_or((shown.as_str(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            let login = basic(rest).ok_or_else(|| refuse("the Basic credentials are malformed"))?;
            return self.by_password(door, knock, login).await;
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.by_token(rest.trim());
        }
        Err(refuse("this way to log in is not known here; use Basic or Bearer"))
    }

    fn by_certificate(knock: &Knock) -> Caller {
        let user = knock.certificate.clone();
        let by = user.as_ref().map(|_| By::Certificate);
        Caller { actor: Actor { user, groups: Vec::new() }, by, ..Caller::default() }
    }

    /// By name and password: our own user's, or else the caller's at an upstream.
    async fn by_password(
        &self,
        door: &Door,
        knock: &Knock,
        (username, password): Password,
    ) -> Result<Caller> {
        let bound = self.bound(door, knock.host.as_deref());
        let known = self.people.as_ref().is_some_and(|people| people.know(&username));
        if let Some(people) = &self.people
            && (known || bound.is_none())
        {
            if !people.verify(&username, &password).await? {
                return Err(Error::new(Kind::Unauthorized, "the user name or password is wrong"));
            }
            let actor = Actor { user: Some(username.as_str().into()), groups: Vec::new() };
            return Ok(Caller { actor, by: Some(By::Htpasswd), shown: true, ..Caller::default() });
        }
        let Some(upstream) = bound else {
            return Err(Error::new(
                Kind::Unauthorized,
                "nothing here is opened by a user name and a password",
            ));
        };
        let login = Login { upstream: Arc::clone(upstream), username, password };
        // Who has a certificate as well is still the one it names.
        Ok(Caller { login: Some(login), shown: true, ..Self::by_certificate(knock) })
    }

    fn by_token(&self, token: &str) -> Result<Caller> {
        let now = now();
        let claims = match (self.keys.read(token, now), &self.issuer) {
            (Ok(claims), _) => claims,
            (Err(error), None) => return Err(error),
            (Err(_), Some(issuer)) => {
                let said = issuer.read(token, now)?;
                let (actor, access) = (said.actor, said.access);
                return Ok(Caller {
                    actor,
                    access,
                    by_token: true,
                    shown: true,
                    ..Caller::default()
                });
            }
        };
        let gone = claims.by == By::Htpasswd
            && !self.people.as_ref().is_some_and(|people| people.know(&claims.sub));
        if gone {
            return Err(Error::new(Kind::Unauthorized, "this user is no longer known"));
        }
        let user = (!claims.sub.is_empty()).then(|| claims.sub.as_str().into());
        Ok(Caller {
            actor: Actor { user, groups: Vec::new() },
            by: Some(claims.by),
            login: self.keys.open(&claims)?,
            access: Some(claims.access),
            by_token: true,
            shown: true,
        })
    }

    /// Whether `GET /v2/` is answered: where anything is guarded, only to who has shown something.
    ///
    /// # Errors
    /// `Unauthorized`, for the challenge that clients read here and nowhere else.
    pub fn ping(&self, door: &Door, knock: &Knock, caller: &Caller) -> Result<()> {
        let known = caller.shown || caller.actor.user.is_some();
        if known || !self.guard(door, knock.host.as_deref()) {
            return Ok(());
        }
        Err(Error::new(Kind::Unauthorized, "log in, or ask for an anonymous token"))
    }

    /// Whether the rules and the caller's token allow something, before anything is looked up.
    ///
    /// # Errors
    /// `Unauthorized` where logging in may help, else `Denied`.
    pub fn allow(&self, caller: &Caller, target: &Target, act: Act) -> Result<()> {
        let names = spellings(target);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Some(access) = &caller.access
            && !opens(access, &names, act.as_str())
        {
            return Err(Error::new(
                Kind::Unauthorized,
                format!("the token does not open {} to {}", names[0], act.as_str()),
            ));
        }
        let upstream = (!target.is_hosted()).then_some(&*target.upstream);
        let name = qualified(upstream, target.repository.as_str());
        if self.rules.permit(&caller.actor, act, &name) {
            return Ok(());
        }
        match &caller.actor.user {
            None => Err(Error::new(
                Kind::Unauthorized,
                format!("log in to {} {name}: it is not for everybody", act.as_str()),
            )),
            Some(user) => Err(Error::new(
                Kind::Denied,
                format!(
                    "no rule lets {user} {} {name}; ask whoever runs this mirror",
                    act.as_str()
                ),
            )),
        }
    }

    /// Whether someone may see which repositories there are: those of others are among them.
    ///
    /// # Errors
    /// `Unauthorized` or `Denied` where rules are in force and he may not administer.
    pub fn list(&self, caller: &Caller) -> Result<()> {
        let all =
            self.rules.are_absent() || self.rules.permit(&caller.actor, Act::Admin, "_catalog");
        if all {
            return Ok(());
        }
        let kind = if caller.actor.user.is_some() { Kind::Denied } else { Kind::Unauthorized };
        Err(Error::new(kind, "the list of all repositories is for those who may administer"))
    }

    /// The same action, without a mount from where the caller may not read: what is not readable is
    /// not there, and the upload begins as if it were not.
    pub fn lawful(&self, caller: &Caller, action: &Action) -> Action {
        let Action::Push(Push::Start(start)) = action else { return action.clone() };
        let may = match &start.mount {
            Some((_, Some(from))) => self.may_take(caller, from.as_str()),
            // Wherever it may be: in a repository that others alone may read, too.
            Some((_, None)) => self.rules.are_absent(),
            None => true,
        };
        let mount = start.mount.clone().filter(|_| may);
        Action::Push(Push::Start(Start { mount, ..start.clone() }))
    }

    fn may_take(&self, caller: &Caller, from: &str) -> bool {
        let opened = caller.access.as_ref().is_none_or(|list| opens(list, &[from], "pull"));
        opened && self.rules.permit(&caller.actor, Act::Pull, from)
    }

    /// The one challenge: the same realm and service whatever is asked for.
    pub fn challenge(&self, door: &Door, knock: &Knock, scope: Option<&str>) -> HeaderValue {
        let url = door.url(knock.host.as_deref());
        let mut text = format!("Bearer realm=\"{url}/token\",service=\"{SERVICE}\"");
        if let Some(scope) = scope {
            text.push_str(",scope=\"");
            text.push_str(scope);
            text.push('"');
            if knock.authorization.is_some() {
                text.push_str(",error=\"insufficient_scope\"");
            }
        }
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Bearer"))
    }

    /// Who asks for a token: by what stands in the form, else in the header.
    ///
    /// # Errors
    /// `Unauthorized` where that is not believed; `PathUnknown` where nobody needs a token.
    pub async fn asks_for_token(
        &self,
        door: &Door,
        knock: &Knock,
        asked: &mut Asked,
    ) -> Result<Caller> {
        if !self.guard(door, knock.host.as_deref()) {
            return Err(Error::new(Kind::PathUnknown, "no token is needed here"));
        }
        match asked.password.take() {
            Some(login) => {
                let wrong = || Error::new(Kind::Unauthorized, "the user name is malformed");
                self.by_password(door, knock, lawful(login).ok_or_else(wrong)?).await
            }
            None => self.enter(door, knock).await,
        }
    }

    /// Makes a token. It names what was asked for; what of that is allowed is decided when it is
    /// used, so that a right that is withdrawn is gone at once.
    ///
    /// # Errors
    /// `Denied` where a token is shown to get another one, which would make it live for ever.
    pub fn grant(&self, caller: &Caller, asked: Asked) -> Result<Answer> {
        if caller.by_token {
            return Err(Error::new(Kind::Denied, "a token does not open the token service"));
        }
        let now = now();
        let grant = Grant {
            user: caller.actor.user.as_deref(),
            by: caller.by.unwrap_or(By::Nothing),
            access: asked.access,
            login: caller.login.as_ref(),
        };
        let token = self.keys.issue(grant, now, self.token_life, *random::<12>()?)?;
        let issued = jiff::Timestamp::from_second(i64::try_from(now).unwrap_or_default());
        let body = serde_json::json!({
            "token": token,
            "access_token": token,
            "expires_in": self.token_life,
            "issued_at": issued.unwrap_or_default().to_string(),
        });
        let body = Body::Bytes(Bytes::from(body.to_string()));
        let mut answer = Answer::new(StatusCode::OK, body, Cache::None);
        answer.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer.header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(answer)
    }
}

/// The name as it stood in the path, and with or without the `library/` of Docker Hub.
fn spellings(target: &Target) -> Vec<String> {
    let within = target.prefix.strip_prefix("/v2/").unwrap_or_default();
    let name = format!("{within}{}", target.repository);
    let short = target.repository.as_str().strip_prefix("library/");
    let short = short.filter(|_| &*target.upstream == "docker.io");
    std::iter::once(name).chain(short.map(|short| format!("{within}{short}"))).collect()
}

/// The scope that a token must have been asked for with.
pub fn scope(target: &Target, act: Act) -> String {
    let actions = if act == Act::Push { "pull,push" } else { act.as_str() };
    format!("repository:{}:{actions}", spellings(target)[0])
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
