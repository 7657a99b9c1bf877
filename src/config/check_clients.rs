//! What is wrong with the doors: certificates, users, rules, and credentials that could go astray.

use super::check::{Checker, path};
use super::clients::{Clients, Tls};
use super::de::nearest;
use super::{Auth, Config, hosts, htpasswd, tls};

/// The shortest key that is as strong as the signatures it makes.
const TOKEN_KEY_BYTES_MIN: usize = 32;

/// Secrets that stand in documentation, ours among it.
const WELL_KNOWN_SECRETS: [&str; 4] = ["change-me", "changeme", "secret", "password"];

impl Checker<'_> {
    /// Runs every check of listeners and clients.
    pub(super) fn doors(&mut self, config: &Config) {
        for (index, listen) in config.listen.iter().enumerate() {
            let index = index.to_string();
            if let Some(tls) = &listen.tls {
                self.listener(&index, tls);
            }
            if listen.anonymous && listen.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) {
                let text = "an address that asks nobody who he is has no use for certificates of \
                            clients; remove `anonymous` or `client_ca`";
                self.fault(&[path(["listen", &index, "anonymous"])], text);
            }
            for (nth, name) in listen.serves.iter().enumerate() {
                if config.upstreams.contains_key(name) || name == "hosted" {
                    continue;
                }
                let remedy = match nearest(name, config.upstreams.keys().map(String::as_str)) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => "name one of them, or `hosted`".to_owned(),
                };
                let at = path(["listen", &index, "serves", &nth.to_string()]);
                self.fault(&[at], &format!("`{name}` is not among the upstreams; {remedy}"));
            }
        }
        if let Some(clients) = &config.clients {
            self.clients(clients, config);
        }
        self.passthrough(config);
        self.pushing(config);
    }

    /// Whoever may push with a login of ours has to be named.
    fn pushing(&mut self, config: &Config) {
        let open = config.listen.iter().find(|listen| !listen.address.ip().is_loopback());
        let Some(open) = open.filter(|_| config.clients.is_none()) else { return };
        for (name, upstream) in config.upstreams.iter().filter(|(_, upstream)| upstream.push) {
            let own = upstream
                .auth
                .accounts()
                .iter()
                .all(|one| matches!(one, Auth::Anonymous | Auth::Passthrough(_)));
            if !own {
                let text = format!(
                    "whoever reaches {} could push to {name} as {}; add `clients` with rules that say who may, or write `auth: passthrough`",
                    open.address,
                    upstream.auth.whose()
                );
                self.fault(&[path(["upstreams", name, "push"])], &text);
            }
        }
    }

    fn listener(&mut self, index: &str, settings: &Tls) {
        for (nth, (cert, key)) in settings.pairs().enumerate() {
            let at = match nth.checked_sub(1) {
                None => path(["listen", index, "tls", "cert"]),
                Some(nth) => path(["listen", index, "tls", "also", &nth.to_string(), "cert"]),
            };
            match tls::pair(cert, key) {
                Err(why) => self.fault(&[at], &why),
                Ok(pair) if tls::is_valid_now(&pair) == Some(false) => {
                    let text = format!(
                        "the certificate {} has expired or is not yet valid; renew it",
                        cert.display()
                    );
                    self.warn(&at, &text);
                }
                Ok(_) => {}
            }
        }
        if let Some(authority) = &settings.client_ca
            && let Err(why) = tls::authorities(authority)
        {
            self.fault(&[path(["listen", index, "tls", "client_ca"])], &why);
        }
    }

    fn clients(&mut self, clients: &Clients, config: &Config) {
        if let Some(file) = &clients.htpasswd
            && let Err(why) = htpasswd::load(file)
        {
            self.fault(&[path(["clients", "htpasswd"])], &why);
        }
        if let Some(jwt) = &clients.jwt
            && let Some(why) = jwt.fault()
        {
            self.fault(&[path(["clients", "jwt", "jwks"])], &why);
        }
        if let Some(jwt) = &clients.jwt
            && !(1..=3600).contains(&jwt.fetch_after.get().as_secs())
        {
            let text = "a strange token must not have us fetch keys all the time; write 1s to 1h";
            self.fault(&[path(["clients", "jwt", "fetch_after"])], text);
        }
        if let Some(key) = &clients.token_key {
            let at = [path(["clients", "token_key"])];
            let known = WELL_KNOWN_SECRETS.iter().any(|word| key.reveal().contains(word));
            if key.reveal().len() < TOKEN_KEY_BYTES_MIN || known {
                let text = format!(
                    "whoever guesses this key makes his own tokens; write at least {TOKEN_KEY_BYTES_MIN} random characters, for example of `openssl rand -base64 32`"
                );
                self.fault(&at, &text);
            }
        }
        let ttl = clients.token_ttl.get().as_secs();
        if !(10..=300).contains(&ttl) {
            let text = "a token must be worth fetching and soon be over; write 10s to 5m";
            self.fault(&[path(["clients", "token_ttl"])], text);
        }
        let text = "no rule allows anything to anybody; add one such as \
                    `{users: [anonymous], actions: [pull], repositories: [\"**\"]}`";
        self.fault_if_empty(clients.rules.is_empty(), &path(["clients", "rules"]), text);
        for (index, rule) in clients.rules.iter().enumerate() {
            let index = index.to_string();
            let at = |key: &str| path(["clients", "rules", &index, key]);
            if rule.users.is_empty() && rule.groups.is_empty() {
                let text = "this rule is for nobody; add `users` or `groups`";
                self.fault(&[path(["clients", "rules", &index])], text);
            }
            self.fault_if_empty(
                rule.actions.is_empty(),
                &at("actions"),
                "this rule allows nothing; write one of pull, push, delete, admin",
            );
            self.fault_if_empty(
                rule.repositories.is_empty(),
                &at("repositories"),
                "this rule is about no repository; write patterns such as team/**",
            );
            for (nth, pattern) in rule.repositories.iter().enumerate() {
                if let Some(text) = hosts::pattern(&unqualified(pattern, config), "") {
                    let nth = nth.to_string();
                    self.fault(&[path(["clients", "rules", &index, "repositories", &nth])], &text);
                }
            }
            for (nth, group) in rule.groups.iter().enumerate() {
                // Groups may also come from somebody else's tokens.
                if clients.jwt.is_none() && !clients.groups.contains_key(group) {
                    let text = format!("no group is called `{group}`; add it to `groups`");
                    let nth = nth.to_string();
                    self.fault(&[path(["clients", "rules", &index, "groups", &nth])], &text);
                }
            }
        }
    }

    /// Credentials for one upstream must never be taken for another's.
    fn passthrough(&mut self, config: &Config) {
        let passing: Vec<&String> = config
            .upstreams
            .iter()
            .filter(|(_, upstream)| matches!(upstream.auth, Auth::Passthrough(_)))
            .map(|(name, _)| name)
            .collect();
        for name in &passing {
            let Auth::Passthrough(settings) = &config.upstreams[*name].auth else { continue };
            let at = path(["upstreams", name, "auth"]);
            for (key, span, most) in [
                ("allow_ttl", settings.allow_ttl, 300),
                ("deny_ttl", settings.deny_ttl, 10),
                ("public_ttl", settings.public_ttl, 3600),
                ("stale_for", settings.stale_for, 86_400),
            ] {
                if span.get().as_secs() > most {
                    let text = format!(
                        "`{key}` is so long that a right that was withdrawn would go on; write at most {most}s"
                    );
                    self.fault(std::slice::from_ref(&at), &text);
                }
            }
            let open =
                config.listen.iter().find(|l| l.tls.is_none() && !l.address.ip().is_loopback());
            if let Some(open) = open {
                let text = format!(
                    "the credentials of callers come to {} in the clear; give it `tls`",
                    open.address
                );
                self.warn(&at, &text);
            }
        }
        if passing.len() > 1 {
            for name in &passing {
                let upstream = &config.upstreams[*name];
                let alone = config.listen.iter().any(|listen| {
                    listen.serves.contains(name)
                        && passing.iter().filter(|other| listen.serves.contains(other)).count() == 1
                });
                if upstream.hosts.is_empty()
                    && !alone
                    && config.default_upstream.as_ref() != Some(*name)
                {
                    let text = format!(
                        "several upstreams pass credentials through, and nothing tells which are for `{name}`; give it `hosts` or a listener that `serves` it"
                    );
                    self.fault(
                        &[path(["upstreams", name, "auth"]), path(["upstreams", name])],
                        &text,
                    );
                }
            }
        }
    }
}

/// A rule's pattern without an upstream's name before it, whose colon no repository has.
fn unqualified(pattern: &str, config: &Config) -> String {
    let (first, rest) = pattern.split_once('/').unwrap_or((pattern, ""));
    if config.upstreams.contains_key(first) && !rest.is_empty() {
        rest.to_owned()
    } else {
        pattern.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::check::tests::told;

    #[test]
    fn nobody_pushes_with_our_login_unless_he_is_named() {
        let rules =
            "clients: {rules: [{users: [anonymous], actions: [push], repositories: ['**']}]}\n";
        let refused = "whoever reaches 0.0.0.0:5000 could push to x.io as `a`";
        for (before, auth, is_refused) in [
            ("", "{username: a, password: b}", true),
            ("", "[anonymous, {username: a, password: b}]", true),
            (rules, "{username: a, password: b}", false),
            ("", "passthrough", false),
            ("", "anonymous", false),
        ] {
            let text = format!(
                "{before}listen: 0.0.0.0:5000\nupstreams: {{x.io: {{push: true, auth: {auth}}}}}"
            );
            let said = told(&text);
            assert_eq!(said.contains("could push to x.io as"), is_refused, "{text}: {said}");
            assert!(!auth.starts_with("{user") || !is_refused || said.contains(refused), "{said}");
        }
        let near = "listen: 127.0.0.1:5000\nupstreams: {x.io: {push: true, auth: {username: a, password: b}}}";
        assert!(!told(near).contains("could push"), "{}", told(near));
    }
}
