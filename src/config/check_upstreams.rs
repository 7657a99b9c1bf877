//! What is wrong with upstreams: names that clash, endpoints that lead nowhere, unusable logins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use url::{Host, Url};

use super::check::{Checker, Path, path};
use super::de::nearest;
use super::hosts;
use super::secret;
use super::{Config, Upstream};
use crate::digest::Digest;
use crate::limits::SEGMENTS_MAX;
use crate::name::{Repository, Tag};

impl Checker<'_> {
    /// Runs every check of upstreams.
    pub(super) fn upstreams(&mut self, config: &Config) {
        let none = config.upstreams.is_empty();
        let text = "no upstream is named, so nothing could be pulled; add one, for example \
                    `docker.io: {}`";
        self.fault_if_empty(none, &path(["upstreams"]), text);
        let mut claims = Claims::default();
        for (name, upstream) in &config.upstreams {
            let at = path(["upstreams", name]);
            match hosts::check(name) {
                Ok(()) => self.upstream(name, upstream, config),
                Err(why) => {
                    let text = format!("`{name}` is no name for an upstream: {why}");
                    self.fault_at_key(&at, &text);
                }
            }
            self.claim(&mut claims, name, upstream);
        }
        self.default_upstream(config);
    }

    fn upstream(&mut self, name: &str, upstream: &Upstream, config: &Config) {
        let above = path(["upstreams", name]);
        let spans = [
            ("connect_timeout", upstream.connect_timeout),
            ("response_timeout", upstream.response_timeout),
            ("stall_timeout", upstream.stall_timeout),
        ];
        self.spans(&above, &spans);
        self.endpoints(name, upstream, config);
        self.bounds(name, upstream);
        self.segments(name, upstream);
        self.tls(name, upstream);
        self.pins(name, upstream);
        if let Some(probe) = upstream.probe {
            self.spans(&above, &[("probe", probe)]);
        }
        self.auth(name, upstream, config);
        for (key, patterns) in [("allow", &upstream.allow), ("deny", &upstream.deny)] {
            for (index, pattern) in patterns.iter().enumerate() {
                if let Some(text) = hosts::pattern(pattern, name) {
                    self.fault(&[path(["upstreams", name, key, &index.to_string()])], &text);
                }
            }
        }
        for (key, all) in [
            ("aliases", &upstream.aliases),
            ("hosts", &upstream.hosts),
            ("realms", &upstream.realms),
        ] {
            for (index, host) in all.iter().enumerate() {
                if let Err(why) = hosts::check(host) {
                    let at = path(["upstreams", name, key, &index.to_string()]);
                    self.fault(&[at], &format!("`{host}` is no host: {why}"));
                }
            }
        }
    }

    fn bounds(&mut self, name: &str, upstream: &Upstream) {
        let bounds = [
            ("max_connections", upstream.max_connections == Some(0)),
            ("max_requests_per_second", upstream.max_requests_per_second == Some(0)),
            ("bandwidth", upstream.bandwidth.is_some_and(|size| size.bytes() == 0)),
        ];
        for (key, _) in bounds.into_iter().filter(|(_, none)| *none) {
            let text = format!(
                "with `{key}` at zero nothing gets through; write a larger one, or remove the key"
            );
            self.fault(&[path(["upstreams", name, key])], &text);
        }
    }

    fn segments(&mut self, name: &str, upstream: &Upstream) {
        if upstream.segments == 0 || upstream.segments > SEGMENTS_MAX {
            let text = format!(
                "`segments` is {}; write 1 to fetch a blob by one transfer, or up to {SEGMENTS_MAX}",
                upstream.segments
            );
            self.fault(&[path(["upstreams", name, "segments"])], &text);
        }
    }

    fn pins(&mut self, name: &str, upstream: &Upstream) {
        for (tag, digest) in &upstream.pins {
            let at = path(["upstreams", name, "pins", tag]);
            let parts = tag.rsplit_once(':');
            let lawful = parts.is_some_and(|(repository, tag)| {
                Repository::parse(repository).is_ok() && Tag::parse(tag).is_ok()
            });
            if !lawful {
                let text = format!("`{tag}` is no tag of a repository; write REPOSITORY:TAG");
                self.fault_at_key(&at, &text);
            } else if name == "docker.io" && !tag.contains('/') {
                let text = format!("official images are in library/; write library/{tag}");
                self.fault_at_key(&at, &text);
            }
            if Digest::parse(digest).is_err() {
                let text = "this is no digest; write sha256: and 64 hexadecimal digits";
                self.fault(&[at], text);
            }
        }
    }

    fn tls(&mut self, name: &str, upstream: &Upstream) {
        let at = |key: &str| path(["upstreams", name, key]);
        for (key, file) in [("ca", &upstream.ca), ("cert", &upstream.cert), ("key", &upstream.key)]
        {
            if let Some(wrong) = file.as_deref().and_then(secret::wrong_pem) {
                self.fault(&[at(key)], &wrong);
            }
        }
        match (&upstream.cert, &upstream.key) {
            (Some(_), None) => self.fault(&[at("cert")], "the key of `cert` is missing; add `key`"),
            (None, Some(_)) => {
                self.fault(&[at("key")], "the certificate of `key` is missing; add `cert`");
            }
            _ => {}
        }
        if upstream.insecure {
            let text = format!(
                "anybody on the way can pose as {name}, and gets its login; better name its certificate in `ca`"
            );
            self.warn(&at("insecure"), &text);
        }
    }

    fn endpoints(&mut self, name: &str, upstream: &Upstream, config: &Config) {
        let at = |index: usize| path(["upstreams", name, "endpoints", &index.to_string()]);
        let mut seen = BTreeSet::new();
        for (index, url) in upstream.endpoints.iter().enumerate() {
            if !seen.insert(url.as_str()) {
                self.fault(&[at(index)], &format!("{url} is listed twice; keep one"));
            }
            if config.listen.iter().any(|listen| leads_to(url, listen.address)) {
                let text = format!(
                    "{url} is this mirror itself, which would ask itself for ever; name another \
                     registry"
                );
                self.fault(&[at(index), path(["upstreams", name]), path(["listen"])], &text);
            }
            if upstream.private == Some(false) && is_near(url) {
                let text = format!(
                    "{url} is private or on this machine, so `private: false` rules it out; \
                     remove `private`"
                );
                self.fault(&[path(["upstreams", name, "private"]), at(index)], &text);
            }
        }
        let text = "there is no endpoint to ask; write one, or remove the key for the usual one";
        let none = upstream.endpoints.is_empty();
        self.fault_if_empty(none, &path(["upstreams", name, "endpoints"]), text);
    }

    /// One name, one origin: notes all names of an upstream and refuses those of another one.
    fn claim(&mut self, claims: &mut Claims, name: &str, upstream: &Upstream) {
        let list = |key: &str, all: &[String]| -> Vec<(String, Path)> {
            let at = |index: usize| path(["upstreams", name, key, &index.to_string()]);
            all.iter().enumerate().map(|(index, host)| (host.to_lowercase(), at(index))).collect()
        };
        let own = [(name.to_lowercase(), path(["upstreams", name]))];
        let names = own
            .into_iter()
            .chain(list("aliases", &upstream.aliases))
            .chain(list("hosts", &upstream.hosts));
        for (host, at) in names {
            match claims.0.get(&host) {
                Some((owner, _)) if owner == name => {}
                Some((owner, place)) => {
                    let is = if *owner == host {
                        "is an upstream itself".to_owned()
                    } else {
                        format!("already stands for the upstream `{owner}`")
                    };
                    let text = format!("`{host}` {is}; remove it from one of the two");
                    match at.len() {
                        2 => self.fault_at_key(&at, &text),
                        _ => self.fault(&[at, place.clone()], &text),
                    }
                }
                None => drop(claims.0.insert(host, (name.to_owned(), at))),
            }
        }
    }

    fn default_upstream(&mut self, config: &Config) {
        let Some(name) = &config.default_upstream else { return };
        if config.upstreams.contains_key(name) {
            return;
        }
        let alias = config.upstreams.iter().find(|(_, upstream)| upstream.aliases.contains(name));
        let meant = alias.map(|(known, _)| known.as_str());
        let remedy =
            match meant.or_else(|| nearest(name, config.upstreams.keys().map(String::as_str))) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("add `{name}: {{}}` to them"),
            };
        let text = format!("`{name}` is not among the upstreams; {remedy}");
        self.fault(&[path(["default_upstream"]), path(["upstreams", name])], &text);
    }
}

/// Who goes by which name, and where that is written.
#[derive(Default)]
struct Claims(BTreeMap<String, (String, Path)>);

/// Whether an endpoint is certainly the socket itself. Names other than `localhost` are not looked
/// up: a check must not depend on the network.
fn leads_to(url: &Url, listen: SocketAddr) -> bool {
    let ip: IpAddr = match url.host() {
        Some(Host::Ipv4(ip)) => ip.into(),
        Some(Host::Ipv6(ip)) => ip.into(),
        Some(Host::Domain("localhost")) => Ipv4Addr::LOCALHOST.into(),
        _ => return false,
    };
    let covered = listen.ip() == ip || (listen.ip().is_unspecified() && ip.is_loopback());
    covered && listen.port() != 0 && url.port_or_known_default() == Some(listen.port())
}

/// Whether an endpoint names an address of this machine or of a private network.
pub(super) fn is_near(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_private(),
        Some(Host::Ipv6(ip)) => ip.is_loopback() || ip.is_unique_local(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::check::tests::told;

    #[test]
    fn upstreams_that_cannot_work_are_found() {
        for (upstreams, wanted) in [
            (
                "{}",
                "1:12: no upstream is named, so nothing could be pulled; add one, for example `docker.io: {}`",
            ),
            (
                "{GHCR.io: }",
                "1:13: `GHCR.io` is no name for an upstream: it has capital letters; write ghcr.io",
            ),
            (
                "{'https://ghcr.io': }",
                "1:13: `https://ghcr.io` is no name for an upstream: it is a URL; write the host alone: ghcr.io",
            ),
            (
                "{x.io: {endpoints: []}}",
                "1:31: there is no endpoint to ask; write one, or remove the key for the usual one",
            ),
            (
                "{x.io: {endpoints: ['https://a.io', 'https://a.io/']}}",
                "1:48: https://a.io/ is listed twice; keep one",
            ),
            (
                "{x.io: {endpoints: ['http://localhost:5000']}}",
                "1:32: http://localhost:5000/ is this mirror itself, which would ask itself for ever; name another registry",
            ),
            (
                "{x.io: {endpoints: ['http://10.0.0.5'], private: false}}",
                "1:61: http://10.0.0.5/ is private or on this machine, so `private: false` rules it out; remove `private`",
            ),
            (
                "{x.io: {aliases: [X.io], hosts: [''], realms: [a/b]}}",
                "1:30: `X.io` is no host: it has capital letters; write x.io\n\
                 1:45: `` is no host: it is empty; write a host such as ghcr.io\n\
                 1:59: `a/b` is no host: it has a path; write the host alone: a",
            ),
            (
                "{x.io: {aliases: [y.io]}, y.io: }",
                "1:38: `y.io` already stands for the upstream `x.io`; remove it from one of the two",
            ),
            (
                "{x.io: {hosts: [m.io]}, y.io: {hosts: [m.io]}}",
                "1:51: `m.io` already stands for the upstream `x.io`; remove it from one of the two",
            ),
            ("{x.io: {aliases: [z.io], hosts: [x.io, z.io]}}", ""),
            ("{docker.io: , index.docker.io: }", ""),
            (
                "{x.io: {allow: ['', x.io/a], deny: [A]}}",
                "1:28: the pattern is empty and matches nothing; write one such as library/* or remove it\n\
                 1:32: patterns are matched without the registry's name; write a\n\
                 1:48: `A` matches nothing: names are lower case, tags do not count, and only `*` and `**` stand for others; write one such as library/*",
            ),
            (
                "{x.io: {max_connections: 0, bandwidth: 0, cert: /nowhere, insecure: true}}",
                "1:37: with `max_connections` at zero nothing gets through; write a larger one, or remove the key\n\
                 1:51: with `bandwidth` at zero nothing gets through; write a larger one, or remove the key\n\
                 1:60: the file /nowhere cannot be used (No such file or directory (os error 2)); check the path and its permissions\n\
                 1:60: the key of `cert` is missing; add `key`",
            ),
            (
                "{docker.io: {pins: {'alpine:3': sha256:12, 'a b': x}}}",
                "1:32: official images are in library/; write library/alpine:3\n\
                 1:44: this is no digest; write sha256: and 64 hexadecimal digits\n\
                 1:55: `a b` is no tag of a repository; write REPOSITORY:TAG\n\
                 1:62: this is no digest; write sha256: and 64 hexadecimal digits",
            ),
            (
                "{x.io: {insecure: true}}",
                "1:30: anybody on the way can pose as x.io, and gets its login; better name its certificate in `ca`",
            ),
            (
                "{x.io: {proxy: 'u:p@x'}}",
                "1:27: this is no URL of a proxy; write one such as http://proxy.example.com:3128",
            ),
            (
                "{x.io: {tag_ttl: 0s, stall_timeout: 0s}}",
                "1:48: with `stall_timeout` at zero nothing gets through; write a duration such as 15s",
            ),
        ] {
            assert_eq!(told(&format!("upstreams: {upstreams}")), wanted, "{upstreams}");
        }
    }

    #[test]
    fn the_default_upstream_is_one_of_them() {
        for (text, wanted) in [
            (
                "default_upstream: index.docker.io",
                "1:19: `index.docker.io` is not among the upstreams; did you mean `docker.io`?",
            ),
            (
                "default_upstream: ghcr.oi",
                "1:19: `ghcr.oi` is not among the upstreams; did you mean `ghcr.io`?",
            ),
            (
                "default_upstream: registry.example.com\nupstreams: {a.io: }",
                "1:19: `registry.example.com` is not among the upstreams; add `registry.example.com: {}` to them",
            ),
            ("upstreams: {a.io: }", ""),
        ] {
            assert_eq!(told(text), wanted, "{text}");
        }
    }
}
