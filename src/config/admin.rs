//! Where the mirror is watched and told what to do, and who may.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::read::{address, socket};

/// The shortest token that nobody guesses.
const TOKEN_BYTES_MIN: usize = 24;

/// A token is a line.
const FILE_BYTES_MAX: u64 = 4096;

/// The admin address. `IP:PORT` alone is its short form.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct AdminListen {
    /// `IP:PORT`; port 0 takes a free one.
    #[schemars(with = "String")]
    pub address: SocketAddr,
    /// A file whose first line opens the admin API to whoever shows it, as Bearer or as the password of
    /// Basic. Read again whenever it changes. Without it, this machine alone may use the API, and
    /// users whom a rule lets `admin`.
    pub token_file: Option<PathBuf>,
    /// Whether metrics too are only for those who may use the API. Default `false`.
    #[schemars(default)]
    pub guard_metrics: bool,
}

impl AdminListen {
    /// An address without a token.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, token_file: None, guard_metrics: false }
    }
}

impl Serialize for AdminListen {
    /// As short as it can be written.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::at(self.address) {
            return self.address.serialize(serializer);
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("address", &self.address)?;
        if let Some(file) = &self.token_file {
            map.serialize_entry("token_file", file)?;
        }
        map.serialize_entry("guard_metrics", &self.guard_metrics)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for AdminListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = AdminListen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as 127.0.0.1:5001 or a map with the key address")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<AdminListen, E> {
        address(text).map(AdminListen::at).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<AdminListen, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AdminListen, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            #[serde(deserialize_with = "socket", default = "usual")]
            address: SocketAddr,
            token_file: Option<PathBuf>,
            #[serde(default)]
            guard_metrics: bool,
        }
        let Form { address, token_file, guard_metrics } =
            Form::deserialize(MapAccessDeserializer::new(map))?;
        Ok(AdminListen { address, token_file, guard_metrics })
    }
}

/// The address where none is written.
pub(super) fn usual() -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 5001))
}

pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let long = generator.subschema_for::<AdminListen>();
    let text = json_schema!({ "type": "string", "examples": ["127.0.0.1:5001"] });
    json_schema!({ "anyOf": [text, long] })
}

/// Reads the token of a file: its first line.
///
/// # Errors
/// One sentence that says what is wrong and what to do. The token is not repeated.
#[expect(clippy::disallowed_methods, reason = "a line, at start and when it changes")]
pub fn token(path: &Path) -> Result<Zeroizing<String>, String> {
    let fail = |why: &dyn fmt::Display| {
        format!(
            "the token of {} cannot be used ({why}); write one there with `openssl rand -base64 32`",
            path.display()
        )
    };
    let about = std::fs::metadata(path).map_err(|e| fail(&e))?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(fail(&"it is no file of a fitting size"));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| fail(&e))?);
    let token = text.lines().next().unwrap_or_default().trim();
    if token.len() < TOKEN_BYTES_MIN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let why = format!("it is not at least {TOKEN_BYTES_MIN} letters, digits and signs");
        return Err(fail(&why));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> AdminListen {
        Config::parse("f", text).unwrap_or_else(|faults| panic!("{faults}")).config.admin
    }

    #[test]
    fn both_forms_are_read_and_written() {
        assert_eq!(read("admin: 0.0.0.0:9"), AdminListen::at("0.0.0.0:9".parse().unwrap()));
        assert_eq!(read("listen: 127.0.0.1:1"), AdminListen::at(usual()));
        let long = read("admin: {address: 0.0.0.0:9, guard_metrics: true}");
        assert!(long.guard_metrics && long.address.port() == 9);
        assert_eq!(read("admin: {guard_metrics: true}").address, usual());
        let short = serde_json::to_value(AdminListen::at(usual())).unwrap();
        assert_eq!(short, "127.0.0.1:5001");
        assert!(Config::parse("f", "admin: {addres: x}").is_err());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test writes the file that is read")]
    fn only_tokens_that_nobody_guesses_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for (text, good) in [
            ("0123456789abcdef0123456789abcdef\nmore", true),
            ("short", false),
            ("", false),
            ("words with spaces in between them", false),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(token(&file).is_ok(), good, "{text}");
        }
        let config = format!("admin: {{token_file: {}}}", folder.path().join("none").display());
        let faults = Config::parse("f", &config).unwrap_err().to_string();
        assert!(faults.contains("openssl rand"), "{faults}");
    }
}
