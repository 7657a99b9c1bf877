//! What stands where nothing is written.
//!
//! One `Default` per concern. `config/pierhead.yaml` shows the same values to people, and a test
//! holds the two together.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::units::{Free, Ratio, Size, Span};
use super::{
    AdminListen, Auth, Cache, Config, Hosted, Listen, Log, LogFormat, RateLimit, Server, Traces,
    Upstream, WELL_KNOWN,
};

/// The upstream that is meant by a request that names no registry, where it is configured.
pub const DEFAULT_UPSTREAM: &str = "docker.io";

impl Default for Config {
    fn default() -> Self {
        let upstreams = WELL_KNOWN
            .iter()
            .filter_map(|(name, ..)| Some(((*name).to_owned(), Upstream::named(name)?)));
        Self {
            listen: vec![Listen::default()],
            admin: AdminListen::at(super::admin::usual()),
            cache: Cache::default(),
            default_upstream: Some(DEFAULT_UPSTREAM.to_owned()),
            upstreams: upstreams.collect::<BTreeMap<_, _>>(),
            clients: None,
            hosted: Hosted::default(),
            server: Server::default(),
            log: Log::default(),
            traces: Traces::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5000));
        Self { address, tls: None, serves: Vec::new(), anonymous: false, url: None }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            path: PathBuf::from("./pierhead-data"),
            max_size: Size::gib(100),
            min_free: Free::percent(5),
            memory: Size::mib(256),
            max_age: None,
            scrub_rate: Size::mib(4),
        }
    }
}

/// An upstream without a name has no endpoint either: [`Upstream::named`] gives a usable one.
impl Default for Upstream {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            aliases: Vec::new(),
            hosts: Vec::new(),
            tag_ttl: Span::secs(60),
            cooldown: Span::secs(0),
            pins: BTreeMap::new(),
            auth: Auth::Anonymous,
            allow: Vec::new(),
            deny: Vec::new(),
            prefetch: true,
            segments: 4,
            push: false,
            realms: Vec::new(),
            private: None,
            connect_timeout: Span::secs(5),
            response_timeout: Span::secs(15),
            stall_timeout: Span::secs(30),
            probe: None,
            ratelimit: RateLimit::default(),
            max_connections: None,
            max_requests_per_second: None,
            bandwidth: None,
            ca: None,
            cert: None,
            key: None,
            insecure: false,
            proxy: None,
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { reserve: 10 }
    }
}

impl Upstream {
    /// The pins, read; what is no digest was refused before.
    #[must_use]
    pub fn pins(&self) -> std::collections::HashMap<String, crate::digest::Digest> {
        let read = |(tag, digest): (&String, &String)| {
            Some((tag.clone(), crate::digest::Digest::parse(digest).ok()?))
        };
        self.pins.iter().filter_map(read).collect()
    }

    /// The upstream that `NAME: {}` stands for: the well-known endpoint and aliases, or
    /// `https://NAME`. `None` where the name cannot stand in a URL.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (endpoint, aliases) = well_known(name);
        Some(Self {
            endpoints: vec![url::Url::parse(&endpoint).ok()?],
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            ..Self::default()
        })
    }
}

/// The endpoint and the aliases that a name stands for where the configuration gives none.
pub(super) fn well_known(name: &str) -> (String, &'static [&'static str]) {
    match WELL_KNOWN.iter().find(|(known, ..)| *known == name) {
        Some((_, endpoint, aliases)) => ((*endpoint).to_owned(), aliases),
        None => (format!("https://{name}"), &[]),
    }
}

impl Default for Hosted {
    fn default() -> Self {
        Self {
            repositories: Vec::new(),
            sparse: false,
            max_blob_size: Size::gib(0),
            immutable: Vec::new(),
            quotas: Vec::new(),
            gc_grace: Span::secs(7 * 24 * 3600),
            gc_interval: Span::secs(3600),
            upload_expiry: Span::secs(24 * 3600),
            events: Vec::new(),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: 0,
            max_connections: 20_000,
            max_connections_per_address: 20_000,
            max_fills_per_caller: 1_000,
            header_timeout: Span::secs(15),
            idle_timeout: Span::secs(60),
            send_timeout: Span::secs(60),
            drain_timeout: Span::secs(30),
            upgrade_timeout: Span::secs(60),
        }
    }
}

impl Default for Traces {
    fn default() -> Self {
        Self { otlp: None, ratio: Ratio::TENTH, headers: BTreeMap::new() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned(), access: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;

    /// What the built-in file says beyond the defaults: it hosts names of one component.
    fn built_in() -> Config {
        let hosted = Hosted { repositories: vec!["*".to_owned()], ..Hosted::default() };
        Config { hosted, ..Config::default() }
    }

    #[test]
    fn the_built_in_configuration_is_the_default() {
        let Loaded { config, warnings, .. } =
            Config::load(None, [], &crate::config::Overrides::default()).unwrap();
        let json = |config: &Config| serde_json::to_value(config).unwrap();
        assert_eq!(json(&config), json(&built_in()));
        assert!(warnings.is_empty());
    }

    #[test]
    fn the_built_in_configuration_names_every_key() {
        let text = crate::config::init();
        let json = serde_json::to_value(Config::default()).unwrap();
        let hub = &json["upstreams"]["docker.io"];
        let sections = [
            &json,
            &json["cache"],
            &json["hosted"],
            &json["server"],
            &json["log"],
            hub,
            &hub["ratelimit"],
        ];
        let keys = sections.into_iter().flat_map(|section| section.as_object().unwrap().keys());
        let others = ["private", "username", "password", "password_file", "max_connections"];
        let more = ["max_requests_per_second", "bandwidth", "ca", "cert", "key", "proxy", "probe"];
        for key in keys.map(String::as_str).chain(others).chain(more) {
            let named =
                |line: &str| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key}:"));
            assert!(text.lines().any(named), "{key}");
        }
    }

    #[test]
    fn the_values_behind_a_mark_are_the_defaults() {
        // Takes the mark off every `# key: value` that the sample calls a default.
        let examples = ["username", "password", "password_file", "private", "bandwidth", "probe"];
        let examples = [examples.as_slice(), &["max_requests_per_second"]].concat();
        let open = |line: &str| {
            let bare = line.trim_start();
            let Some((key, value)) = bare.strip_prefix("# ").and_then(|rest| rest.split_once(": "))
            else {
                return line.to_owned();
            };
            let is_key = key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if !is_key || value.contains(' ') && !value.starts_with('[') || examples.contains(&key)
            {
                return line.to_owned();
            }
            format!("{}{key}: {value}", &line[..line.len() - bare.len()])
        };
        let text: Vec<String> = crate::config::init().lines().map(open).collect();
        let loaded =
            Config::parse("opened", &text.join("\n")).unwrap_or_else(|faults| panic!("{faults}"));
        let json = |config: &Config| serde_json::to_value(config).unwrap();
        assert_eq!(json(&loaded.config), json(&built_in()));
        let opened = loaded.origins.keys().filter(|path| path.len() > 1).count();
        assert!(opened > 20, "only {opened} keys were found");
    }
}
