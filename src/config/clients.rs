//! Who may come in: sockets with TLS, users, rules. What is written, not what it leads to.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::auth::HIDDEN;
use super::units::Span;

/// TLS on one address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate with its chain, PEM. Read again whenever the file changes.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Further certificates, for other names; a client gets the one that fits the name it asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Pair>,
    /// Certificates of clients must come from one of these authorities, PEM. The common name of
    /// their subject is the user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Whether clients without a certificate are let in as well, to log in otherwise. Default
    /// `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub client_optional: bool,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The certificate with its chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

impl Tls {
    /// Every certificate, the one for unknown names first.
    pub fn pairs(&self) -> impl Iterator<Item = (&PathBuf, &PathBuf)> {
        std::iter::once((&self.cert, &self.key)).chain(self.also.iter().map(|p| (&p.cert, &p.key)))
    }
}

/// Who may come in. Where this section is present, whatever no rule allows is refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Clients {
    /// Users with their passwords, as `htpasswd -B` writes them. Read again whenever it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub htpasswd: Option<PathBuf>,
    /// Names for several users at once.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Who may do what.
    pub rules: Vec<Rule>,
    /// What signs our own tokens: at least 32 random characters, the same for all replicas.
    /// Default: random, new with each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_key: Option<Secret>,
    /// How long our own tokens live; at most `5m`. Default `5m`.
    pub token_ttl: Span,
    /// A token service of somebody else's, whose tokens are believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
}

/// Tokens of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The service's public keys, a JWKS document: a file, read again whenever it changes, or an `https`
    /// URL, fetched at start, each hour, and for a key that is not known yet. Keys that cannot be
    /// fetched anew stay.
    pub jwks: PathBuf,
    /// How long after one fetch of that URL the next may follow, whoever shows what. Default `30s`.
    #[serde(default = "fetch_after")]
    pub fetch_after: Span,
    /// Certificates that are trusted besides the system's for that URL, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Whether that URL may lead to private and loopback addresses. Default `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private: bool,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must name.
    pub audience: String,
}

fn fetch_after() -> Span {
    Span::secs(30)
}

impl Jwt {
    /// The URL that the keys are fetched from, where they are not in a file.
    pub fn url(&self) -> Option<url::Url> {
        let text = self.jwks.to_str().filter(|text| text.contains("://"))?;
        url::Url::parse(text).ok()
    }

    /// What is wrong with where the keys are, as far as it can be told without asking anybody.
    pub(super) fn fault(&self) -> Option<String> {
        let Some(url) = self.url() else {
            return super::jwks::load(&self.jwks).err();
        };
        let host = url.host();
        let near = match &host {
            Some(url::Host::Ipv4(ip)) => !is_public((*ip).into()),
            Some(url::Host::Ipv6(ip)) => !is_public((*ip).into()),
            Some(url::Host::Domain(name)) => *name == "localhost",
            None => false,
        };
        let wrong = if url.scheme() != "https" {
            "keys that come over anything but https are anybody's; write an https URL"
        } else if host.is_none() || !url.username().is_empty() || url.password().is_some() {
            "this is no URL of a document; write https://HOST/PATH without a user"
        } else if near && !self.private {
            "this is an address of the site's own; if it is right, add `private: true`"
        } else {
            return None;
        };
        Some(wrong.to_owned())
    }
}

/// Whether an address is nobody's own, as far as a written one goes; names are judged when they are
/// looked up.
fn is_public(ip: std::net::IpAddr) -> bool {
    match ip.to_canonical() {
        std::net::IpAddr::V4(ip) => {
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified())
        }
        std::net::IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local())
        }
    }
}

/// Who may do what.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Users by name; `anonymous` stands for everyone, `*` for everyone who has logged in.
    #[serde(default)]
    pub users: Vec<String>,
    /// Groups by name.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What they may do.
    pub actions: Vec<Act>,
    /// Patterns of repositories: `team/**` for hosted ones, `docker.io/**` for those of upstreams.
    pub repositories: Vec<String>,
}

/// What may be done to a repository.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Read.
    Pull,
    /// Add and replace.
    Push,
    /// Delete.
    Delete,
    /// Everything that concerns the mirror itself.
    Admin,
}

impl Act {
    /// The word in tokens, rules and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }
}

/// How `auth: passthrough` asks and remembers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Passthrough {
    /// How long the upstream's yes to a caller is believed; at most `5m`. Default `1m`.
    pub allow_ttl: Span,
    /// How long its no is believed; at most `10s`. Default `10s`.
    pub deny_ttl: Span,
    /// How long a repository is believed to be public. Default `10m`.
    pub public_ttl: Span,
    /// How long a yes is extended while the upstream is down. Default `0s`: not at all.
    pub stale_for: Span,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            htpasswd: None,
            groups: BTreeMap::new(),
            rules: Vec::new(),
            token_key: None,
            token_ttl: Span::secs(300),
            jwt: None,
        }
    }
}

impl Default for Passthrough {
    fn default() -> Self {
        Self {
            allow_ttl: Span::secs(60),
            deny_ttl: Span::secs(10),
            public_ttl: Span::secs(600),
            stale_for: Span::secs(0),
        }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text, for those who need it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}
