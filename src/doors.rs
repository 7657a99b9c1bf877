//! Who is at the door: one address as its clients see it, and what they show there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderValue};

use crate::cache::Cache;
use crate::config::{Act, Auth, Config};
use crate::error::{Error, Kind, Result};
use crate::issuer::Issuer;
use crate::pass::{By, Claims, Grant, Keys, Login, SERVICE, opens};
use crate::people::People;
use crate::respond::{Answer, Body};
use crate::route::Target;
use crate::rules::{Actor, Rules, qualified};
use crate::scope::{Asked, Password, basic, lawful};

mod caller;
mod lawful;
mod secrets;

pub use self::caller::{Caller, Door, Knock};
use self::secrets::random;
pub use self::secrets::{inherit_secret, own_secret, random_key};

/// The longest `Authorization` that is looked at.
const AUTHORIZATION_BYTES_MAX: usize = 20 * 1024;

/// What a caller may show.
enum Shown<'k> {
    Password(Password),
    Token(&'k str),
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
        let people = secrets::people(config, before.map(|(doors, _)| doors))?;
        let issuer = secrets::issuer(config, before.map(|(doors, _)| doors))?;
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
        if door.is_anonymous() {
            return false;
        }
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
        match Self::shown(knock)? {
            Some(Shown::Password(login)) => self.by_password(door, knock, login).await,
            Some(Shown::Token(token)) => self.by_token(token).await,
            None => Ok(Self::by_certificate(knock)),
        }
    }

    /// What stands in `Authorization`.
    fn shown(knock: &Knock) -> Result<Option<Shown<'_>>> {
        let refuse = |why: &str| Error::new(Kind::Unauthorized, why);
        let Some(shown) = &knock.authorization else { return Ok(None) };
        if shown.len() > AUTHORIZATION_BYTES_MAX {
            return Err(refuse("the credentials are too long"));
        }
        let (scheme, rest) = shown.split_once(' ').unwrap_or((shown.as_str(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            let login = basic(rest).ok_or_else(|| refuse("the Basic credentials are malformed"))?;
            return Ok(Some(Shown::Password(login)));
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Some(Shown::Token(rest.trim())));
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
                return Err(wrong_password());
            }
            return Ok(Caller::known(Some(username.as_str().into()), By::Htpasswd));
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

    async fn by_token(&self, token: &str) -> Result<Caller> {
        let now = now();
        let claims = match (self.keys.read(token, now), &self.issuer) {
            (Ok(claims), _) => claims,
            (Err(error), None) => return Err(error),
            (Err(_), Some(issuer)) => {
                let said = issuer.believe(token, now).await?;
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
        if claims.by == By::Htpasswd && !self.stands(&claims) {
            let text = "this user is gone, or has another password by now; log in again";
            return Err(Error::new(Kind::Unauthorized, text));
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

    /// Whether the user's entry is still what the token was given for.
    fn stands(&self, claims: &Claims) -> bool {
        let entry = self.people.as_ref().and_then(|people| people.entry(&claims.sub));
        entry.is_some_and(|entry| self.keys.is_of(claims, &entry))
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

    /// Whether somebody may tell the mirror itself what to do: one of our users by his password, or
    /// whoever has a token of somebody else's service, where a rule says so.
    ///
    /// # Errors
    /// `Unauthorized` where what was shown is not believed, `Denied` where it is not enough.
    pub async fn administers(&self, knock: &Knock) -> Result<()> {
        let nobody = || Error::new(Kind::Unauthorized, "log in as somebody who may administer");
        // No upstream's credentials are taken here, so none can be sent on.
        let caller = match (&self.people, Self::shown(knock)?) {
            (Some(people), Some(Shown::Password((user, password)))) => {
                if !people.verify(&user, &password).await? {
                    return Err(wrong_password());
                }
                Caller::known(Some(user.as_str().into()), By::Htpasswd)
            }
            (_, Some(Shown::Token(token))) => self.by_token(token).await?,
            _ => return Err(nobody()),
        };
        // Tokens of ours are for repositories.
        if caller.access.is_none() && self.rules.permit(&caller.actor, Act::Admin, "_admin") {
            return Ok(());
        }
        Err(Error::new(Kind::Denied, "no rule lets this user administer the mirror"))
    }

    /// Whether anybody could show a password or a token at all.
    pub fn know_users(&self) -> bool {
        self.people.is_some() || self.issuer.is_some()
    }

    /// Seals a text for `whom`, so that nobody else can read, change or use it.
    ///
    /// # Errors
    /// `Internal` where there is no randomness.
    pub fn seal(&self, text: &str, whom: &str) -> Result<String> {
        self.keys.seal_text(text, whom, *random::<12>()?)
    }

    /// The text that was sealed for `whom`.
    pub fn unseal(&self, sealed: &str, whom: &str) -> Option<String> {
        self.keys.open_text(sealed, whom)
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
        let (user, by) = (caller.actor.user.as_deref(), caller.by.unwrap_or(By::Nothing));
        let people = self.people.as_ref().filter(|_| by == By::Htpasswd);
        let entry = people.zip(user).and_then(|(people, user)| people.entry(user));
        let grant = Grant {
            user,
            by,
            entry: entry.as_deref(),
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

fn wrong_password() -> Error {
    Error::new(Kind::Unauthorized, "the user name or password is wrong")
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
