//! What is asked of our token service: by query or by form, as the distribution specification has it.

use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};
use crate::pass::{Access, SERVICE};

/// The longest query or form that is read.
pub const ASK_BYTES_MAX: usize = 16 * 1024;

/// Scopes in one request; clients that mount from elsewhere ask for a handful.
const SCOPES_MAX: usize = 64;

/// A user name and a password.
pub type Password = (Zeroizing<String>, Zeroizing<String>);

/// A request to the token service.
#[derive(Default)]
pub struct Asked {
    /// What the token is to open.
    pub access: Vec<Access>,
    /// The login in a form, if any.
    pub password: Option<Password>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Asked({:?})", self.access)
    }
}

impl Asked {
    /// Reads a query (`form` is false) or a form.
    ///
    /// # Errors
    /// `BadRequest` for what is too long, twice there, for another service, or another grant.
    pub fn read(text: &str, form: bool) -> Result<Self> {
        let bad = |why: &str| Error::new(Kind::BadRequest, why.to_owned());
        if text.len() > ASK_BYTES_MAX {
            return Err(bad("the request for a token is too long"));
        }
        let mut asked = Self::default();
        let [mut service, mut username, mut password, mut grant] = [const { None }; 4];
        for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
            let place = match &*key {
                "scope" => {
                    for scope in value.split(' ').filter(|s| !s.is_empty()) {
                        asked.access.extend(access(scope));
                        if asked.access.len() > SCOPES_MAX {
                            return Err(bad("too many scopes are asked for at once"));
                        }
                    }
                    continue;
                }
                "service" => &mut service,
                "username" if form => &mut username,
                "password" if form => &mut password,
                "grant_type" if form => &mut grant,
                _ => continue,
            };
            if place.replace(Zeroizing::new(value.into_owned())).is_some() {
                return Err(bad("a parameter is given twice"));
            }
        }
        if service.is_some_and(|s| !s.is_empty() && s.as_str() != SERVICE) {
            return Err(bad("this token service is for another service than the one asked for"));
        }
        if form && grant.is_none_or(|g| g.as_str() != "password") {
            return Err(bad("only grant_type=password is known here"));
        }
        if form {
            let (Some(username), Some(password)) = (username, password) else {
                return Err(bad("username and password are missing"));
            };
            asked.password = Some((username, password));
        }
        Ok(asked)
    }
}

/// `repository:NAME:ACTIONS`; other kinds open nothing here.
fn access(scope: &str) -> Option<Access> {
    let rest = scope.strip_prefix("repository:")?;
    let (name, actions) = rest.rsplit_once(':')?;
    let lawful = |b: u8| b.is_ascii_alphanumeric() || b"._-/:[]".contains(&b);
    if name.is_empty() || name.len() > 512 || !name.bytes().all(lawful) {
        return None;
    }
    let known = |action: &&str| ["pull", "push", "delete", "*"].contains(action);
    let mut actions: Vec<String> = actions.split(',').filter(known).map(str::to_owned).collect();
    actions.sort_unstable();
    actions.dedup();
    Some(Access { kind: "repository".to_owned(), name: name.to_owned(), actions })
}

/// Reads the credentials of a Basic `Authorization`.
pub fn basic(encoded: &str) -> Option<Password> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = Zeroizing::new(String::from_utf8(bytes).ok()?);
    let (username, password) = text.split_once(':')?;
    lawful((Zeroizing::new(username.to_owned()), Zeroizing::new(password.to_owned())))
}

/// Whether a login can be one: it has a name, which no colon could move into the password, and
/// nothing that could end a header.
pub fn lawful(login: Password) -> Option<Password> {
    let (username, password) = &login;
    let good = !username.is_empty()
        && !username.contains(':')
        && !username.chars().chain(password.chars()).any(char::is_control);
    good.then_some(login)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_real_clients_ask_is_read() {
        let docker = "account=ci&client_id=docker&offline_token=true&service=pierhead";
        assert!(Asked::read(docker, false).unwrap().access.is_empty());
        let crane =
            "scope=repository%3Ateam%2Fapp%3Apull%2Cpush&scope=repository:b:pull&service=pierhead";
        let access = Asked::read(crane, false).unwrap().access;
        assert_eq!(
            (access[0].name.as_str(), access[0].actions.join(",")),
            ("team/app", "pull,push".to_owned())
        );
        assert_eq!(access[1].name, "b");
        let containerd = "grant_type=password&client_id=containerd-client&service=pierhead&scope=repository:a:pull+repository:b:push&username=ci&password=p%3Aw";
        let asked = Asked::read(containerd, true).unwrap();
        assert_eq!(asked.access.len(), 2);
        assert_eq!(asked.password.unwrap().1.as_str(), "p:w");
        let port = Asked::read("scope=repository:localhost:7000/app:pull", false).unwrap();
        assert_eq!(port.access[0].name, "localhost:7000/app");
    }

    #[test]
    fn hostile_requests_are_refused_or_bounded() {
        let many = "scope=repository:a:pull&".repeat(600);
        assert!(Asked::read(&many, false).is_err());
        assert!(Asked::read(&"x".repeat(20_000), false).is_err());
        assert!(Asked::read("service=other", false).is_err());
        assert!(Asked::read("service=pierhead&service=pierhead", false).is_err());
        assert!(Asked::read("grant_type=refresh_token&refresh_token=x", true).is_err());
        let odd =
            Asked::read("scope=registry:catalog:*&scope=repository:a%0d%0a:pull&scope=x", false);
        assert!(odd.unwrap().access.is_empty());
    }

    #[test]
    fn basic_is_split_at_the_first_colon() {
        let (user, password) = basic("Y2k6cDp3").unwrap();
        assert_eq!((user.as_str(), password.as_str()), ("ci", "p:w"));
        for bad in ["", "====", "Y2k=", "OnB3", "Y2k6cA0K"] {
            assert!(basic(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(text in "[ -~]{0,120}", form: bool) {
            let _ = Asked::read(&text, form);
            let _ = basic(&text);
        }
    }
}
