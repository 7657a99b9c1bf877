//! How addresses and endpoints are written: the short forms beside the long ones.
//!
//! Every refusal says what to write instead, as it is all that an operator sees.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::{Listen, Tls};

// --- addresses ---------------------------------------------------------------------------------

/// Reads `IP:PORT`.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.trim_start_matches(':');
    let remedy = if port.parse::<u16>().is_ok() {
        format!("write 127.0.0.1:{port} for this machine alone or 0.0.0.0:{port} for all")
    } else if let Some(port) = text.strip_prefix("localhost:") {
        format!("write 127.0.0.1:{port}")
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        format!("add the port: {}", SocketAddr::new(ip, 5000))
    } else {
        "write IP:PORT, for example 127.0.0.1:5000".to_owned()
    };
    Err(format!("`{text}` is not an address; {remedy}"))
}

/// For a field that is one address.
pub(super) fn socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    address(&Cow::<str>::deserialize(deserializer)?).map_err(D::Error::custom)
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListenVisitor)
    }
}

struct ListenVisitor;

impl<'de> Visitor<'de> for ListenVisitor {
    type Value = Listen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as 127.0.0.1:5000 or a map with the key address")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Listen, E> {
        let address = address(text).map_err(E::custom)?;
        Ok(Listen { address, ..Listen::default() })
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Listen, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Listen, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            #[serde(deserialize_with = "socket")]
            address: SocketAddr,
            tls: Option<Tls>,
            #[serde(default)]
            serves: Vec<String>,
            #[serde(default)]
            anonymous: bool,
            url: Option<String>,
        }
        let Form { address, tls, serves, anonymous, url } =
            Form::deserialize(MapAccessDeserializer::new(map))?;
        let url = url.map(|url| endpoint(&url).map_err(A::Error::custom)).transpose()?;
        Ok(Listen { address, tls, serves, anonymous, url })
    }
}

/// For `listen`: one entry or a list of them.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Listen>, D::Error> {
    struct Many;

    impl<'de> Visitor<'de> for Many {
        type Value = Vec<Listen>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address such as 127.0.0.1:5000 or a list of them")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<Listen>, E> {
            ListenVisitor.visit_str(text).map(|one| vec![one])
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<Vec<Listen>, E> {
            ListenVisitor.visit_u64(number).map(|one| vec![one])
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<Listen>, A::Error> {
            ListenVisitor.visit_map(map).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Listen>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(Many)
}

pub(super) fn one_or_many_schema(generator: &mut SchemaGenerator) -> Schema {
    let one = generator.subschema_for::<Listen>();
    let text = json_schema!({ "type": "string", "examples": ["127.0.0.1:5000"] });
    let item = json_schema!({ "anyOf": [text, one] });
    json_schema!({ "anyOf": [text, one, { "type": "array", "items": item, "minItems": 1 }] })
}

// --- endpoints ---------------------------------------------------------------------------------

/// Reads the base URL of a registry.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    if !text.contains("://") {
        return Err(format!("`{text}` is not a URL; write https://{text}"));
    }
    // Checked before anything repeats the text, as this is where people put passwords.
    let authority =
        text.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
    if authority.contains('@') {
        return Err(
            "the endpoint carries a user; move it to `auth: {username, password}`".to_owned()
        );
    }
    let url = Url::parse(text).map_err(|error| {
        format!("`{text}` is not a URL ({error}); write one such as https://registry.example.com")
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "`{}` is no scheme for a registry; write https:// or http://",
            url.scheme()
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "`{text}` has a query or a fragment; write the URL up to its path only"
        ));
    }
    if url.path().trim_end_matches('/').ends_with("/v2") {
        return Err(format!("`{text}` ends in /v2, which is added to every request; leave it off"));
    }
    Ok(url)
}

/// For a list of endpoints.
pub(super) fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Url>, D::Error> {
    struct Endpoint(Url);

    impl<'de> Deserialize<'de> for Endpoint {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            endpoint(&Cow::<str>::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
        }
    }

    let all = Vec::<Endpoint>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|Endpoint(url)| url).collect())
}

/// For a URL that may be absent.
pub(super) fn optional_endpoint<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Url>, D::Error> {
    let text = Option::<Cow<'_, str>>::deserialize(deserializer)?;
    text.map(|text| endpoint(&text).map_err(D::Error::custom)).transpose()
}

#[expect(clippy::ref_option, reason = "serde hands a field over as it is")]
pub(super) fn write_optional<S: Serializer>(
    url: &Option<Url>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    url.as_ref().map(|url| url.as_str().trim_end_matches('/')).serialize(serializer)
}

pub(super) fn write_endpoints<S: Serializer>(
    all: &[Url],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    // `url` ends an empty path in a slash, which nobody writes.
    serializer.collect_seq(all.iter().map(|url| match url.path() {
        "/" => url.as_str().trim_end_matches('/'),
        _ => url.as_str(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_refused_with_what_to_write() {
        assert_eq!(address("[::1]:5000").unwrap().port(), 5000);
        for (text, remedy) in [
            (":5000", "write 127.0.0.1:5000 for this machine alone or 0.0.0.0:5000 for all"),
            ("5000", "write 127.0.0.1:5000 for this machine alone or 0.0.0.0:5000 for all"),
            ("localhost:5000", "write 127.0.0.1:5000"),
            ("0.0.0.0", "add the port: 0.0.0.0:5000"),
            ("::", "add the port: [::]:5000"),
            ("mirror.example.com:5000", "write IP:PORT, for example 127.0.0.1:5000"),
        ] {
            assert_eq!(address(text).unwrap_err(), format!("`{text}` is not an address; {remedy}"));
        }
    }

    #[test]
    fn endpoints_are_base_urls() {
        for good in
            ["https://ghcr.io", "http://10.0.0.5:5000", "https://host/artifactory/api/docker/hub"]
        {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for (text, why) in [
            ("ghcr.io", "write https://ghcr.io"),
            ("registry:5000", "write https://registry:5000"),
            ("ftp://ghcr.io", "`ftp` is no scheme"),
            ("https://", "is not a URL"),
            ("https://ghcr.io/v2/", "leave it off"),
            ("https://ghcr.io?a=b", "query"),
            ("https://ghcr.io#a", "fragment"),
        ] {
            let error = endpoint(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let error = endpoint("https://user:hunter2@ghcr.io").unwrap_err();
        assert!(error.contains("auth:") && !error.contains("hunter2"), "{error}");
    }
}
