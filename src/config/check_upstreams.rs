//! What is wrong with upstreams: names that clash, endpoints that lead nowhere, unusable logins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use url::{Host, Url};

use super::check::{Checker, Path, path};
use super::de::nearest;
use super::hosts;
use super::secret;
use super::{Auth, Config, Password, Upstream};

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

    fn auth(&mut self, name: &str, upstream: &Upstream, config: &Config) {
        let Auth::Static { username, password } = &upstream.auth else { return };
        let at = path(["upstreams", name, "auth"]);
        let below = |key: &str| path(["upstreams", name, "auth", key]);
        if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
            let text =
                "a user's name cannot be empty or hold `:` or control characters; correct it";
            self.fault(&[below("username")], text);
        }
        let (key, wrong) = match password {
            Password::Inline(text) => ("password", secret::wrong(text)),
            Password::File(path) => ("password_file", secret::wrong_file(path)),
        };
        if let Some(wrong) = wrong {
            self.fault(&[below(key)], &wrong);
        }
        if let Some(url) =
            upstream.endpoints.iter().find(|url| url.scheme() == "http" && !is_near(url))
        {
            self.warn(&at, &format!("the password goes to {url} in the clear; use https"));
        }
        if let Some(open) = config.listen.iter().find(|listen| !listen.address.ip().is_loopback()) {
            let text = format!(
                "whoever reaches {} can read all that `{username}` may read at {name}; shut \
                 others out by a firewall",
                open.address
            );
            self.warn(&at, &text);
        }
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
fn is_near(url: &Url) -> bool {
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
                "{x.io: {tag_ttl: 0s, stall_timeout: 0s}}",
                "1:48: with `stall_timeout` at zero nothing gets through; write a duration such as 15s",
            ),
        ] {
            assert_eq!(told(&format!("upstreams: {upstreams}")), wanted, "{upstreams}");
        }
    }

    #[test]
    fn logins_that_cannot_work_are_found() {
        for (auth, wanted) in [
            (
                "{username: 'a:b', password: ''}",
                "1:37: a user's name cannot be empty or hold `:` or control characters; correct it\n\
                 1:54: the password is empty; write one, or `auth: anonymous`",
            ),
            (
                "{username: a, password: b, password_file: c}",
                "1:26: both password and password_file are given; keep one",
            ),
            (
                "{username: a, password_file: /nowhere/at/all}",
                "1:55: the password file /nowhere/at/all cannot be used (No such file or directory (os error 2)); check the path and its permissions",
            ),
            (
                "admin:hunter2",
                "1:26: this is no way to log in; write `anonymous`, `passthrough`, or a map with username and either password or password_file",
            ),
            (
                "{ecr: {region: x}}",
                "1:26: this version cannot do `ecr` yet; write `anonymous`, `passthrough`, or a map with username and either password or password_file",
            ),
        ] {
            assert_eq!(told(&format!("upstreams: {{x.io: {{auth: {auth}}}}}")), wanted, "{auth}");
        }
    }

    #[test]
    fn logins_that_many_could_use_are_warned_of() {
        let text = "listen: 0.0.0.0:5000\nupstreams:\n  x.io:\n    endpoints: ['http://x.io']\n    auth: {username: a, password: b}";
        assert_eq!(
            told(text),
            "5:11: the password goes to http://x.io/ in the clear; use https\n\
             5:11: whoever reaches 0.0.0.0:5000 can read all that `a` may read at x.io; shut others out by a firewall"
        );
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
