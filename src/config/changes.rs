//! What of a configuration has changed, by the names of its keys: what a running mirror takes up, and
//! what takes a restart.

use serde_json::Value;

use super::{Config, Listen};

/// Keys that are read once, when the program starts.
const AT_START: &[&str] = &["admin", "cache.path", "log.format", "server.threads"];

/// The keys that have changed, such as `upstreams.docker.io.tag_ttl`, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is in force without a restart.
    pub taken: Vec<String>,
    /// What the next start takes up.
    pub waiting: Vec<String>,
}

impl Config {
    /// What of `new` can be in force while this configuration runs, and which keys have changed.
    /// What takes a restart is in the result as it is here.
    pub fn renewed(&self, new: &Self) -> (Self, Changes) {
        let mut effective = new.clone();
        effective.admin = self.admin.clone();
        effective.cache.path.clone_from(&self.cache.path);
        effective.log.format = self.log.format;
        effective.server.threads = self.server.threads;
        effective.traces.clone_from(&self.traces);
        effective.listen = self.listening(&new.listen);
        let mut changes = Changes { taken: self.differing(&effective), waiting: Vec::new() };
        let wanted = effective.differing(new);
        for key in wanted.into_iter().filter(|key| is_at_start(key)) {
            changes.waiting.push(key);
        }
        (effective, changes)
    }

    /// The addresses that are listened on, each by what is said of it now.
    fn listening(&self, new: &[Listen]) -> Vec<Listen> {
        let mut left: Vec<&Listen> = new.iter().collect();
        let mut take = |old: &Listen| {
            let found = left.iter().position(|listen| listen.address == old.address)?;
            Some(left.remove(found).clone())
        };
        self.listen.iter().map(|old| take(old).unwrap_or_else(|| old.clone())).collect()
    }

    /// The keys whose values are not the same. Secrets are compared and not shown.
    fn differing(&self, other: &Self) -> Vec<String> {
        let json = |config: &Self| serde_json::to_value(config).unwrap_or_default();
        let mut keys = Vec::new();
        compare("", &json(self), &json(other), &mut keys);
        let mut hidden = |key: String, same: bool| {
            if !same && !keys.iter().any(|known| known.starts_with(&key)) {
                keys.push(key);
            }
        };
        for (name, old) in &self.upstreams {
            let Some(new) = other.upstreams.get(name) else { continue };
            hidden(format!("upstreams.{name}.auth"), old.auth == new.auth);
            hidden(format!("upstreams.{name}.proxy"), old.proxy == new.proxy);
        }
        if let (Some(old), Some(new)) = (&self.clients, &other.clients) {
            hidden("clients.token_key".to_owned(), old.token_key == new.token_key);
        }
        hidden("traces.headers".to_owned(), self.traces.headers == other.traces.headers);
        keys.sort_unstable();
        keys
    }
}

fn is_at_start(key: &str) -> bool {
    key == "listen" || key.starts_with("traces") || AT_START.contains(&key)
}

/// Walks two values; a list is one value.
fn compare(path: &str, old: &Value, new: &Value, keys: &mut Vec<String>) {
    if old == new {
        return;
    }
    let (Value::Object(a), Value::Object(b)) = (old, new) else {
        keys.push(path.to_owned());
        return;
    };
    let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (a.get(name), b.get(name)) {
            (Some(old), Some(new)) => compare(&path, old, new, keys),
            _ => keys.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse("f.yaml", text).unwrap_or_else(|faults| panic!("{faults}")).config
    }

    #[test]
    fn what_can_be_taken_up_is_and_the_rest_is_named() {
        let old = parse(
            "listen: [127.0.0.1:5000, 127.0.0.1:5002]\nupstreams: {docker.io: {}, ghcr.io: {}}\n",
        );
        let new = parse(
            "listen: [{address: 127.0.0.1:5002, serves: [docker.io]}, 127.0.0.1:5003]\n\
             admin: 127.0.0.1:5009\ncache: {path: /elsewhere, max_size: 1GiB}\n\
             server: {threads: 3}\nlog: {format: text, level: debug}\n\
             traces: {ratio: 0.5, headers: {a: c}}\n\
             upstreams: {docker.io: {tag_ttl: 5s, deny: [a/b]}, quay.io: {}}\n",
        );
        let (effective, changes) = old.renewed(&new);
        assert_eq!(
            changes.waiting,
            [
                "admin",
                "cache.path",
                "listen",
                "log.format",
                "server.threads",
                "traces.headers",
                "traces.ratio",
            ]
        );
        assert_eq!(
            changes.taken,
            [
                "cache.max_size",
                "listen",
                "log.level",
                "upstreams.docker.io.deny",
                "upstreams.docker.io.tag_ttl",
                "upstreams.ghcr.io",
                "upstreams.quay.io",
            ]
        );
        assert_eq!(effective.listen[0], old.listen[0]);
        assert_eq!(effective.listen[1].serves, ["docker.io"]);
        assert_eq!(effective.admin, old.admin);
        assert_eq!(effective.cache.path, old.cache.path);
        assert_eq!(effective.cache.max_size, new.cache.max_size);
        assert_eq!(effective.renewed(&new).1.taken, Vec::<String>::new());
    }

    #[test]
    fn a_secret_that_has_changed_is_noticed() {
        let with = |password: &str| {
            parse(&format!(
                "upstreams: {{x.io: {{auth: {{username: u, password: {password}}}}}}}\n"
            ))
        };
        assert_eq!(with("one").renewed(&with("two")).1.taken, ["upstreams.x.io.auth"]);
        assert_eq!(with("one").renewed(&with("one")).1, Changes::default());
    }
}
