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
    /// The service's public keys, a JWKS document. Read again whenever it changes.
    pub jwks: PathBuf,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must name.
    pub audience: String,
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
