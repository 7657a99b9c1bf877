//! With which credentials an upstream is asked, and how that is written.
//!
//! No password is ever printed, neither by a refusal nor by `Debug` nor by `Serialize`.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::clients::Passthrough;
use super::read;

/// What stands where a secret would.
pub(super) const HIDDEN: &str = "<hidden>";

/// With which credentials an upstream is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// None of our own: public content only.
    #[default]
    Anonymous,
    /// A fixed user.
    Static {
        /// The name to log in with.
        username: String,
        /// Where the password comes from.
        password: Password,
    },
    /// What `docker login` has left: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    DockerConfig,
    /// The answers of `docker-credential-NAME`.
    Helper(String),
    /// Amazon ECR, by the credentials that AWS programs find.
    Ecr(Ecr),
    /// Google, by the metadata server or a service account's key.
    Gcp(Gcp),
    /// Azure, by a service principal, a workload identity or a managed identity.
    Acr(Acr),
    /// The caller's own, by whose right he is answered.
    Passthrough(Passthrough),
    /// Several accounts: the next one is taken where the limit of one is reached.
    Several(Vec<Auth>),
}

/// Where a password comes from. `Debug` and `Serialize` never show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// Written in the configuration, possibly through `${NAME}`.
    Inline(String),
    /// Read from a file, again whenever the file changes; trailing line ends are dropped.
    File(PathBuf),
}

/// The URL of a proxy. It may carry a user, whose password `Debug` and `Serialize` do not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy(pub url::Url);

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        if url.password().is_some() {
            let _ = url.set_password(Some("hidden")); // it has a host
        }
        f.write_str(url.as_str().trim_end_matches('/'))
    }
}

impl Serialize for Proxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for Proxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let known = ["http", "https", "socks5", "socks5h"];
        match url::Url::parse(&Cow::<str>::deserialize(deserializer)?) {
            Ok(url) if known.contains(&url.scheme()) && url.host().is_some() => Ok(Self(url)),
            // Not repeated, as it may hold a password.
            _ => Err(D::Error::custom(
                "this is no URL of a proxy; write one such as http://proxy.example.com:3128",
            )),
        }
    }
}

/// How to log in to Amazon ECR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ecr {
    /// The registry's region. Default: the one in its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// A role to take on first, by its ARN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The URL of ECR's API, where it is a VPC endpoint with a name of its own.
    #[serde(
        deserialize_with = "read::optional_endpoint",
        serialize_with = "read::write_optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub endpoint: Option<url::Url>,
}

/// How to log in to Google's registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gcp {
    /// The key of a service account, as JSON. Default: `$GOOGLE_APPLICATION_CREDENTIALS`, else the
    /// metadata server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// How to log in to Azure's registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Acr {
    /// The client id of a managed identity, where the machine has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
}

/// What `auth` may be, for every refusal.
const AUTH_FORMS: &str = "write `anonymous`, `passthrough`, `docker-config`, or a map with username and either \
                          password or password_file, or with one of helper, ecr, gcp, acr";

impl Auth {
    /// Every account, in the order in which they are used.
    pub fn accounts(&self) -> &[Self] {
        match self {
            Self::Several(all) => all,
            one => std::slice::from_ref(one),
        }
    }

    /// Who that is, for messages; never a secret.
    pub fn whose(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::Passthrough(_) => "each caller's own login".to_owned(),
            Self::Static { username, .. } => format!("`{username}`"),
            Self::DockerConfig => "the login of docker-config".to_owned(),
            Self::Helper(name) => format!("the login of docker-credential-{name}"),
            Self::Ecr(_) => "this machine's AWS identity".to_owned(),
            Self::Gcp(_) => "this machine's Google identity".to_owned(),
            Self::Acr(_) => "this machine's Azure identity".to_owned(),
            Self::Several(all) => all.iter().map(Self::whose).collect::<Vec<_>>().join(" or "),
        }
    }
}

/// The region in an ECR registry's name: `123.dkr.ecr.eu-central-1.amazonaws.com` and its like.
pub fn ecr_region(name: &str) -> Option<&str> {
    if name == "public.ecr.aws" {
        return Some("us-east-1"); // the only one that hands out tokens for it
    }
    let mut labels = name.split('.').skip(1);
    match labels.next()? {
        "dkr" => labels.next().filter(|label| label.starts_with("ecr"))?,
        label if label.starts_with("dkr-ecr") => label,
        _ => return None,
    };
    labels.next().filter(|region| region.contains('-'))
}

impl<'de> Deserialize<'de> for Auth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AuthVisitor)
    }
}

struct AuthVisitor;

impl<'de> Visitor<'de> for AuthVisitor {
    type Value = Auth;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`anonymous`, `docker-config`, a map with a login, or a list of them")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Auth, E> {
        match word {
            "anonymous" => Ok(Auth::Anonymous),
            "docker-config" => Ok(Auth::DockerConfig),
            "ecr" | "gcp" | "acr" => Err(E::custom(format!("write it as a map: {{{word}: {{}}}}"))),
            "helper" => Err(E::custom("write it as a map with the helper's name: {helper: NAME}")),
            "passthrough" => Ok(Auth::Passthrough(Passthrough::default())),
            // Not repeated: `user:password` is a likely slip.
            _ => Err(E::custom(format!("this is no way to log in; {AUTH_FORMS}"))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Auth, A::Error> {
        AuthForm::deserialize(MapAccessDeserializer::new(map))?.auth().map_err(A::Error::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Auth, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = list.next_element::<Auth>()? {
            if matches!(one, Auth::Passthrough(_)) {
                return Err(A::Error::custom("passthrough is no account of ours; write it alone"));
            }
            if matches!(one, Auth::Several(_)) {
                return Err(A::Error::custom("a list in a list of accounts; write one list"));
            }
            all.push(one);
        }
        if all.is_empty() {
            return Err(A::Error::custom(format!("the list of accounts is empty; {AUTH_FORMS}")));
        }
        Ok(Auth::Several(all))
    }
}

/// Every key that may stand in the map; which of them go together is for [`AuthForm::auth`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthForm {
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    helper: Option<String>,
    passthrough: Option<Passthrough>,
    ecr: Option<Ecr>,
    gcp: Option<Gcp>,
    acr: Option<Acr>,
}

impl AuthForm {
    fn auth(self) -> Result<Auth, String> {
        let fixed = [
            ("username", self.username.is_some()),
            ("password", self.password.is_some()),
            ("password_file", self.password_file.is_some()),
        ];
        let fixed = fixed.into_iter().find(|(_, given)| *given).map(|(key, _)| key);
        let ways = [
            self.helper.map(|name| ("helper", Auth::Helper(name))),
            self.passthrough.map(|how| ("passthrough", Auth::Passthrough(how))),
            self.ecr.map(|ecr| ("ecr", Auth::Ecr(ecr))),
            self.gcp.map(|gcp| ("gcp", Auth::Gcp(gcp))),
            self.acr.map(|acr| ("acr", Auth::Acr(acr))),
        ];
        let mut ways = ways.into_iter().flatten();
        if let Some((key, auth)) = ways.next() {
            return match fixed.or(ways.next().map(|(other, _)| other)) {
                Some(other) => Err(format!(
                    "both {key} and {other} are given; keep one, or make them a list of accounts"
                )),
                None => Ok(auth),
            };
        }
        let username = self.username.ok_or("the key `username` is missing; add it")?;
        let password = match (self.password, self.password_file) {
            (Some(text), None) => Password::Inline(text),
            (None, Some(path)) => Password::File(path),
            (None, None) => {
                return Err("the password is missing; add password or password_file".to_owned());
            }
            (Some(_), Some(_)) => {
                return Err("both password and password_file are given; keep one".to_owned());
            }
        };
        Ok(Auth::Static { username, password })
    }
}

impl Serialize for Auth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn one<S: Serializer>(s: S, key: &str, value: &impl Serialize) -> Result<S::Ok, S::Error> {
            let mut map = s.serialize_map(Some(1))?;
            map.serialize_entry(key, value)?;
            map.end()
        }
        match self {
            Self::Anonymous => serializer.serialize_str("anonymous"),
            Self::DockerConfig => serializer.serialize_str("docker-config"),
            Self::Passthrough(how) => one(serializer, "passthrough", how),
            Self::Helper(name) => one(serializer, "helper", name),
            Self::Ecr(ecr) => one(serializer, "ecr", ecr),
            Self::Gcp(gcp) => one(serializer, "gcp", gcp),
            Self::Acr(acr) => one(serializer, "acr", acr),
            Self::Several(all) => serializer.collect_seq(all),
            Self::Static { username, password } => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("username", username)?;
                match password {
                    Password::Inline(_) => map.serialize_entry("password", HIDDEN)?,
                    Password::File(path) => map.serialize_entry("password_file", path)?,
                }
                map.end()
            }
        }
    }
}

impl JsonSchema for Auth {
    fn schema_name() -> Cow<'static, str> {
        "Auth".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = |what: &str| json_schema!({ "type": "string", "description": what });
        let passthrough = generator.subschema_for::<Passthrough>();
        let (ecr, gcp, acr) = (
            generator.subschema_for::<Ecr>(),
            generator.subschema_for::<Gcp>(),
            generator.subschema_for::<Acr>(),
        );
        let map = |key: &str, value: Schema| {
            json_schema!({
                "type": "object",
                "properties": { (key): value },
                "required": [key],
                "additionalProperties": false,
            })
        };
        let one = json_schema!({ "oneOf": [
            { "const": "anonymous", "description": "None of our own: public content only." },
            { "const": "passthrough", "description": "The caller's own." },
            { "const": "docker-config", "description": "What `docker login` has left." },
            {
                "description": "A fixed user.",
                "type": "object",
                "properties": {
                    "username": text("The name to log in with."),
                    "password": text("The password, best as ${NAME}."),
                    "password_file": text("A file that holds the password."),
                },
                "required": ["username"],
                "oneOf": [{ "required": ["password"] }, { "required": ["password_file"] }],
                "additionalProperties": false,
            },
            map("helper", text("The program docker-credential-NAME, by NAME.")),
            map("passthrough", passthrough),
            map("ecr", ecr),
            map("gcp", gcp),
            map("acr", acr),
        ] });
        json_schema!({
            "description": "With which credentials an upstream is asked.",
            "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }],
        })
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => write!(f, "Inline({HIDDEN})"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let auth =
            Auth::Static { username: "u".into(), password: Password::Inline("hunter2".into()) };
        let text = format!("{auth:?} {}", serde_json::to_string(&auth).unwrap());
        assert!(text.contains(HIDDEN) && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_proxys_password_is_never_printed() {
        let proxy: Proxy = serde_json::from_str(r#""http://u:hunter2@p.test:3128""#).unwrap();
        let text = format!("{proxy:?} {}", serde_json::to_string(&proxy).unwrap());
        assert!(text.contains("p.test:3128") && !text.contains("hunter2"), "{text}");
        assert!(serde_json::from_str::<Proxy>(r#""u:hunter2@p.test""#).is_err());
    }

    #[test]
    fn the_region_stands_in_the_name() {
        for (name, region) in [
            ("123.dkr.ecr.eu-central-1.amazonaws.com", Some("eu-central-1")),
            ("123.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("123.dkr-ecr.eu-west-1.on.aws", Some("eu-west-1")),
            ("123.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("public.ecr.aws", Some("us-east-1")),
            ("registry.example.com", None),
            ("localhost", None),
        ] {
            assert_eq!(ecr_region(name), region, "{name}");
        }
    }

    #[test]
    fn every_form_is_read_and_written_alike() {
        for text in [
            r#""anonymous""#,
            r#""docker-config""#,
            r#"{"helper":"ecr-login"}"#,
            r#"{"ecr":{}}"#,
            r#"{"ecr":{"region":"eu-central-1","role":"arn:aws:iam::1:role/pull"}}"#,
            r#"{"gcp":{"key_file":"/k.json"}}"#,
            r#"{"acr":{}}"#,
            r#"["anonymous",{"username":"u","password_file":"/p"}]"#,
        ] {
            let auth: Auth = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&auth).unwrap(), text);
        }
        for text in ["[]", r#"[["anonymous"]]"#, r#"{"helper":"a","gcp":{}}"#, r#""ecr""#] {
            assert!(serde_json::from_str::<Auth>(text).is_err(), "{text}");
        }
    }
}
