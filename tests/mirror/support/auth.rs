//! How a scripted registry lets people in.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use parking_lot::Mutex;
use serde_json::json;

use super::fault::{error, value};
use super::reply::Reply;
use super::scripted::posted;

#[derive(Clone, Debug)]
pub(crate) enum Auth {
    Open,
    Basic(Account),
    Bearer(Bearer),
    /// People who may each read some repositories, by tokens.
    People(People),
}

#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Account {
    pub(crate) fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned() }
    }

    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// Token authentication. In the texts `{realm}`, `{scope}` and `{token}` are filled in.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    /// Each is one `WWW-Authenticate` header.
    pub(crate) challenges: Vec<String>,
    /// Where tokens are had. None: at this registry's own `/token`.
    pub(crate) realm: Option<String>,
    /// What the token service says.
    pub(crate) reply: String,
    /// The scope a token must have been asked for with; empty: any.
    pub(crate) scope: String,
    /// Who gets tokens. None: everybody.
    pub(crate) account: Option<Account>,
    /// Tokens are handed out, but open nothing.
    pub(crate) empty: bool,
    /// The refresh token that gets tokens by POST. None: POST is unknown here.
    pub(crate) refresh: Option<String>,
}

impl Bearer {
    /// As Docker Hub does it.
    pub(crate) fn usual() -> Self {
        Self {
            challenges: vec![
                r#"Bearer realm="{realm}",service="registry.test",scope="{scope}""#.to_owned(),
            ],
            realm: None,
            reply: r#"{"token":"{token}","access_token":"{token}","expires_in":300}"#.to_owned(),
            scope: "repository:{repository}:pull".to_owned(),
            account: None,
            empty: false,
            refresh: None,
        }
    }

    pub(crate) fn challenge(mut self, challenge: &str) -> Self {
        self.challenges = vec![challenge.to_owned()];
        self
    }

    pub(crate) fn reply(mut self, reply: &str) -> Self {
        reply.clone_into(&mut self.reply);
        self
    }
}

/// People, and what each may read.
#[derive(Clone, Debug, Default)]
pub(crate) struct People {
    accounts: Vec<Account>,
    /// Repository and user; nobody's name stands for everybody.
    readers: Vec<(String, String)>,
    /// The same for who may write there.
    writers: Vec<(String, String)>,
    /// The status for those who may not: 401 or 404.
    pub(crate) refusal: u16,
}

impl People {
    pub(crate) fn new(accounts: &[Account]) -> Self {
        Self { accounts: accounts.to_vec(), refusal: 401, ..Self::default() }
    }

    pub(crate) fn let_read(&mut self, user: &str, repository: &str) {
        self.readers.push((repository.to_owned(), user.to_owned()));
    }

    pub(crate) fn let_write(&mut self, user: &str, repository: &str) {
        self.writers.push((repository.to_owned(), user.to_owned()));
        self.let_read(user, repository);
    }

    fn may_write(&self, user: &str, repository: &str) -> bool {
        self.writers.iter().any(|(name, writer)| name == repository && writer == user)
    }

    pub(crate) fn revoke(&mut self, user: &str, repository: &str) {
        self.readers.retain(|(name, reader)| !(name == repository && reader == user));
    }

    fn may_read(&self, user: &str, repository: &str) -> bool {
        repository.is_empty()
            || self
                .readers
                .iter()
                .any(|(name, reader)| name == repository && (reader == user || reader.is_empty()))
    }

    /// The user of Basic credentials; empty without any. None: they are wrong.
    fn user(&self, given: &str) -> Option<String> {
        if given.is_empty() {
            return Some(String::new());
        }
        let known = self.accounts.iter().find(|account| account.basic() == given);
        known.map(|account| account.user.clone())
    }
}

/// The tokens in force: token to the scopes it was asked for with. A registry and its token
/// service on another host share one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens(Arc<Mutex<HashMap<String, Vec<String>>>>);

impl Tokens {
    /// From now on no token handed out so far is worth anything.
    pub(crate) fn revoke(&self) {
        for scopes in self.0.lock().values_mut() {
            scopes.clear();
        }
    }

    fn issue(&self, scopes: Vec<String>) -> String {
        let mut tokens = self.0.lock();
        let token = format!("token-{}.from_the~test+service/==", tokens.len());
        tokens.insert(token.clone(), scopes);
        token
    }

    fn user(&self, token: &str) -> Option<String> {
        let tokens = self.0.lock();
        let scopes = tokens.get(token)?;
        scopes.iter().find_map(|scope| scope.strip_prefix("user:")).map(str::to_owned)
    }

    fn opens(&self, token: &str, scope: &str) -> bool {
        let tokens = self.0.lock();
        let scopes = tokens.get(token).map(Vec::as_slice).unwrap_or_default();
        scopes.iter().any(|granted| scope.is_empty() || granted == scope)
    }
}

impl Auth {
    /// None: come in. Some: what to answer in place of what was asked for.
    pub(crate) fn refuse(
        &self,
        tokens: &Tokens,
        request: &Parts,
        repository: &str,
    ) -> Option<Reply> {
        let given = text(&request.headers, AUTHORIZATION.as_str());
        match self {
            Self::Open => None,
            Self::People(people) => {
                let token = given.strip_prefix("Bearer ").unwrap_or_default();
                let actions = match request.method {
                    Method::GET | Method::HEAD => "pull",
                    Method::DELETE => "delete",
                    _ => "pull,push",
                };
                let scope = format!("repository:{repository}:{actions}");
                let user = tokens.user(token);
                let more = format!("repository:{repository}:pull,push");
                let open = repository.is_empty()
                    || tokens.opens(token, &scope)
                    || (actions == "pull" && tokens.opens(token, &more));
                let may = |user: &str| match actions {
                    "pull" => people.may_read(user, repository),
                    _ => people.may_write(user, repository),
                };
                match user {
                    Some(user) if open && may(&user) => None,
                    Some(_) if open => Some(error(people.refusal)),
                    _ => {
                        let host = text(&request.headers, "host");
                        let challenge = format!(
                            r#"Bearer realm="http://{host}/token",service="registry.test",scope="{scope}""#
                        );
                        Some(error(401).header(WWW_AUTHENTICATE, &challenge))
                    }
                }
            }
            Self::Basic(account) if given == account.basic() => None,
            Self::Basic(_) => {
                Some(error(401).header(WWW_AUTHENTICATE, r#"Basic realm="registry.test""#))
            }
            Self::Bearer(bearer) => {
                let scope = bearer.scope.replace("{repository}", repository);
                let token = given.strip_prefix("Bearer ").unwrap_or_default();
                if tokens.opens(token, &scope) {
                    return None;
                }
                let own = format!("http://{}/token", text(&request.headers, "host"));
                let realm = bearer.realm.as_deref().unwrap_or(&own);
                let mut reply = error(401);
                for challenge in &bearer.challenges {
                    let filled = challenge.replace("{realm}", realm).replace("{scope}", &scope);
                    reply.headers.append(WWW_AUTHENTICATE, value(&filled));
                }
                Some(reply)
            }
        }
    }

    /// Answers `/token`.
    pub(crate) fn token(&self, tokens: &Tokens, request: &Parts) -> Reply {
        if let Self::People(people) = self {
            let given = text(&request.headers, AUTHORIZATION.as_str());
            let Some(user) = people.user(given) else { return error(401) };
            let query = request.uri.query().unwrap_or_default();
            let scopes = url::form_urlencoded::parse(query.as_bytes())
                .filter(|(name, _)| name == "scope")
                .map(|(_, scope)| scope.into_owned())
                .chain([format!("user:{user}")])
                .collect();
            let token = tokens.issue(scopes);
            let body = json!({"token": token, "expires_in": 300}).to_string();
            return Reply::text(200, "application/json", &body);
        }
        let Self::Bearer(bearer) = self else {
            return error(404);
        };
        let form = posted(request);
        let query = if request.method == Method::POST {
            if !bearer.refresh.as_deref().is_some_and(|token| refreshes(&form, token)) {
                return error(if bearer.refresh.is_some() { 401 } else { 404 });
            }
            form.as_ref()
        } else {
            let given = text(&request.headers, AUTHORIZATION.as_str());
            if bearer.account.as_ref().is_some_and(|account| account.basic() != given) {
                return error(401);
            }
            request.uri.query().unwrap_or_default().as_bytes()
        };
        let scopes = url::form_urlencoded::parse(query)
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, scopes)| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .chain(["any".to_owned()])
            .collect();
        let token = tokens.issue(if bearer.empty { Vec::new() } else { scopes });
        let token = json!(token).to_string();
        let reply = bearer.reply.replace("\"{token}\"", &token);
        Reply::text(200, "application/json", &reply)
    }
}

/// Whether a form asks for a token by this refresh token.
fn refreshes(form: &[u8], token: &str) -> bool {
    let fields: HashMap<_, _> = url::form_urlencoded::parse(form).into_owned().collect();
    fields.get("grant_type").is_some_and(|grant| grant == "refresh_token")
        && fields.get("refresh_token").is_some_and(|given| given == token)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
