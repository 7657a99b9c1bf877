//! Challenges and bearer tokens (distribution specification, "Token authentication").

use std::fmt;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use serde::Deserialize;
use url::Url;

use super::address::Reach;
use super::redirect::literal;
use crate::error::{Error, Kind, Result};
use crate::limits::TOKEN_LIFE_DEFAULT;

/// What an upstream wants to see before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from its token service.
    Bearer(Bearer),
}

/// A bearer challenge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bearer {
    /// The token service.
    pub realm: Url,
    /// For whom tokens are made out; nvcr.io names none.
    pub service: Option<String>,
    /// What the token is to allow; GCR names none on `/v2/`.
    pub scope: Option<String>,
}

impl Challenge {
    /// Reads all challenges of an answer, in whatever number of headers they came. A bearer
    /// challenge is preferred: it can be met without credentials too.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let known: Vec<Self> = values
            .flat_map(|v| http_auth::parse_challenges(v).unwrap_or_default())
            .filter_map(|c| Self::known(&c))
            .collect();
        known.iter().find(|c| matches!(c, Self::Bearer(_))).or(known.first()).cloned()
    }

    fn known(challenge: &http_auth::ChallengeRef<'_>) -> Option<Self> {
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let param = |name: &str| {
            let found = challenge.params.iter().find(|(k, _)| k.eq_ignore_ascii_case(name));
            found.map(|(_, v)| v.to_unescaped())
        };
        let realm = Url::parse(&param("realm")?).ok()?;
        Some(Self::Bearer(Bearer { realm, service: param("service"), scope: param("scope") }))
    }
}

impl Bearer {
    /// The scope for `actions` on `repository`: as challenged, where that is not about some repository
    /// (ECR Public wants `aws`), else the specification's.
    pub fn scope_for(&self, repository: &str, actions: &str) -> String {
        match &self.scope {
            Some(scope) if !scope.starts_with("repository:") && !scope.starts_with("registry:") => {
                scope.clone()
            }
            _ => format!("repository:{repository}:{actions}"),
        }
    }

    /// Whether a token may be fetched from this realm for an upstream at `endpoint`.
    ///
    /// Credentials go to the endpoint's own host, its registrable domain, or a host that is
    /// configured or well known, over https unless the endpoint itself has none. Asked
    /// anonymously, a realm elsewhere costs nothing but must not lead to an address nearer than
    /// the endpoint.
    ///
    /// # Errors
    /// `BadUpstream` that says what is wrong with the realm and how to allow it.
    pub fn permit(
        &self,
        upstream: &str,
        endpoint: &Url,
        reach: Reach,
        named: &[String],
        secret: bool,
    ) -> Result<()> {
        let refuse = |why: &str| {
            let text = format!("the token service {} that {upstream} names {why}", self.realm);
            Err(Error::new(Kind::BadUpstream, text))
        };
        match (endpoint.scheme(), self.realm.scheme()) {
            ("https", "http") => return refuse("is on plain http"),
            (_, "http" | "https") => {}
            _ => return refuse("is not on http"),
        }
        if !self.realm.username().is_empty() || self.realm.password().is_some() {
            return refuse("has credentials in it");
        }
        let (Some(home), Some(host)) = (endpoint.host_str(), self.realm.host_str()) else {
            return refuse("has no host");
        };
        if home == host || named.iter().any(|n| n == host) || is_sibling(home, host) {
            return Ok(());
        }
        if secret {
            return refuse(&format!(
                "is on a foreign host: credentials are not sent there; if it is right, add {host} to the upstream's `realms`"
            ));
        }
        match literal(&self.realm) {
            Some(ip) if !reach.may_name(ip) => refuse("is at an address that it must not lead to"),
            _ => Ok(()),
        }
    }

    /// The URL to get a token from.
    pub fn url(&self, scope: &str, account: Option<&str>) -> Url {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                query.append_pair("scope", scope);
            }
            if let Some(account) = account {
                query.append_pair("account", account);
            }
        }
        url
    }
}

/// Whether two hosts share a registrable domain. Where none can be determined (an address, a
/// single label, a bare suffix) they do not.
fn is_sibling(a: &str, b: &str) -> bool {
    let domain = |h: &str| {
        (h.parse::<std::net::IpAddr>().is_err() && !h.starts_with('['))
            .then(|| psl::domain_str(h).map(str::to_owned))
            .flatten()
    };
    matches!((domain(a), domain(b)), (Some(a), Some(b)) if a == b)
}

/// A token and how long it may be used.
#[derive(Clone)]
pub struct Token {
    /// The secret.
    pub value: String,
    /// From when on it is fetched anew: nine tenths of its life, counted from its receipt.
    pub renew_at: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl Token {
    /// Reads a token service's answer, received at `now`.
    ///
    /// # Errors
    /// `BadUpstream` where it is not the JSON that the specification asks for, or holds no token
    /// that can stand in a header.
    pub fn read(body: &[u8], now: Instant) -> Result<Self> {
        let bad =
            |why: &str| Error::new(Kind::BadUpstream, format!("the token service's answer {why}"));
        let reply: Reply = serde_json::from_slice(body)
            .map_err(|e| bad("is not the JSON of a token").because(e))?;
        let value = reply
            .token
            .filter(|t| !t.is_empty())
            .or(reply.access_token)
            .filter(|t| !t.is_empty())
            .ok_or_else(|| bad("holds no token"))?;
        if !value.bytes().all(|b| (0x21..0x7f).contains(&b)) {
            return Err(bad("holds a token that cannot stand in a header"));
        }
        let stated = reply
            .expires_in
            .filter(|s| s.is_finite() && *s > 0.0)
            .map(|s| Duration::from_secs_f64(s.min(86_400.0)));
        let life = stated.unwrap_or_default().max(TOKEN_LIFE_DEFAULT);
        Ok(Self { value, renew_at: now + life.mul_f64(0.9) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for v in values {
            headers.append(WWW_AUTHENTICATE, v.parse().unwrap());
        }
        Challenge::read(&headers)
    }

    fn bearer(realm: &str) -> Bearer {
        Bearer { realm: Url::parse(realm).unwrap(), service: None, scope: None }
    }

    #[test]
    fn the_challenges_of_real_registries() {
        let Some(Challenge::Bearer(hub)) = read(&[
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#,
        ]) else {
            panic!("no challenge")
        };
        assert_eq!(hub.service.as_deref(), Some("registry.docker.io"));
        assert_eq!(hub.scope_for("library/debian", "pull"), "repository:library/debian:pull");
        let Some(Challenge::Bearer(ecr)) = read(&[
            r#"Bearer realm="https://public.ecr.aws/token/",service="public.ecr.aws",scope="aws""#,
        ]) else {
            panic!("no challenge")
        };
        assert_eq!(ecr.scope_for("a/b", "pull"), "aws");
        assert!(matches!(
            read(&[r#"bearer realm="https://gcr.io/v2/token""#]),
            Some(Challenge::Bearer(_))
        ));
        assert_eq!(
            read(&[r#"Basic realm="x",service="ecr.amazonaws.com""#]),
            Some(Challenge::Basic)
        );
        assert!(matches!(
            read(&["Negotiate", r#"Bearer realm="https://a.test/t""#]),
            Some(Challenge::Bearer(_))
        ));
        assert_eq!(read(&["rubbish,,==", ""]), None);
        assert_eq!(read(&[r#"Bearer realm="not a url""#]), None);
    }

    #[test]
    fn cve_2019_10214_t16_credentials_go_only_where_they_belong() {
        let hub = Url::parse("https://registry-1.docker.io").unwrap();
        let permit = |realm: &str, secret| {
            bearer(realm).permit("hub", &hub, Reach::Public, &["named.test".into()], secret).is_ok()
        };
        assert!(permit("https://auth.docker.io/token", true));
        assert!(permit("https://named.test/token", true));
        assert!(
            !permit("https://evil.test/token", true) && permit("https://evil.test/token", false)
        );
        assert!(!permit("http://auth.docker.io/token", false));
        assert!(
            !permit("https://169.254.169.254/token", false)
                && !permit("https://127.0.0.1/t", false)
        );
        assert!(!permit("https://user:pw@auth.docker.io/token", false));
        let single = Url::parse("https://registry").unwrap();
        assert!(bearer("https://other/t").permit("x", &single, Reach::Private, &[], true).is_err());
        let suffix = Url::parse("https://a.github.io").unwrap();
        assert!(
            bearer("https://b.github.io/t").permit("x", &suffix, Reach::Public, &[], true).is_err()
        );
        let local = Url::parse("http://127.0.0.1:5000").unwrap();
        assert!(
            bearer("http://127.0.0.1:5001/t")
                .permit("x", &local, Reach::Loopback, &[], true)
                .is_ok()
        );
        assert!(
            bearer("http://127.0.0.2:5001/t")
                .permit("x", &local, Reach::Loopback, &[], true)
                .is_err()
        );
    }

    #[test]
    fn tokens_come_under_two_names_and_may_lack_a_life() {
        let now = Instant::now();
        let life = |body: &str| Token::read(body.as_bytes(), now).unwrap().renew_at - now;
        assert_eq!(life(r#"{"token":"a"}"#), Duration::from_secs(54));
        assert_eq!(life(r#"{"access_token":"a","expires_in":300}"#), Duration::from_secs(270));
        assert_eq!(life(r#"{"token":"a","expires_in":-5}"#), Duration::from_secs(54));
        for bad in ["", "<html>", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, "[]"] {
            assert_eq!(
                Token::read(bad.as_bytes(), now).unwrap_err().kind(),
                Kind::BadUpstream,
                "{bad}"
            );
        }
    }
}
