//! What types alone cannot find: values that contradict each other, or that could never work.
//!
//! Each check stands alone and goes on after a fault, so that one run names them all. A check that
//! leans on a part already found wrong says nothing, since its fault would be a mere echo.

use std::net::SocketAddr;

use tracing_subscriber::EnvFilter;

use super::de::nearest;
use super::fault::{FAULTS_MAX, Fault, Source};
use super::tree::{Node, Origin, Value};
use super::units::{Free, Span};
use super::{Config, hosts};

/// More sockets than this are a slip, and each is compared with each.
const LISTEN_MAX: usize = 64;

/// More are no longer threads for sockets; the machine would only switch between them.
const THREADS_MAX: usize = 1024;

/// Each connection costs a descriptor, of which Linux gives a process a million at most by default.
const CONNECTIONS_MAX: usize = 1_000_000;

/// The keys down to a value.
pub(super) type Path = Vec<String>;

/// A path from its steps.
pub(super) fn path<const N: usize>(steps: [&str; N]) -> Path {
    steps.iter().map(|&step| step.to_owned()).collect()
}

/// What is checked, and what has been found.
pub(super) struct Checker<'a> {
    pub(super) source: &'a Source,
    /// The tree behind the configuration, for the places.
    pub(super) root: &'a Node,
    /// The parts that were wrong in themselves and have been taken out.
    pub(super) pruned: &'a [Path],
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
}

impl Checker<'_> {
    /// Runs every check.
    pub(super) fn run(&mut self, config: &Config) {
        self.addresses(config);
        self.cache(config);
        self.server(config);
        self.log(config);
        self.upstreams(config);
        self.doors(config);
        self.hosted(config);
        self.traces(config);
    }

    // --- telling ---------------------------------------------------------------------------------

    /// A fault at the first of the paths that somebody wrote; the others are what it leans on.
    pub(super) fn fault(&mut self, paths: &[Path], text: &str) {
        let origin =
            paths.iter().map(|path| self.origin(path)).find(|origin| *origin != Origin::Default);
        self.push(paths, &origin.unwrap_or_default(), text);
    }

    /// A fault of a key rather than its value.
    pub(super) fn fault_at_key(&mut self, path: &Path, text: &str) {
        let above = path.split_last().and_then(|(key, above)| Some((key, self.root.find(above)?)));
        let origin = match above {
            Some((key, Node { value: Value::Map(map), .. })) => {
                map.get(key).map(|(origin, _)| origin.clone())
            }
            _ => None,
        };
        self.push(std::slice::from_ref(path), &origin.unwrap_or_default(), text);
    }

    fn push(&mut self, paths: &[Path], origin: &Origin, text: &str) {
        let echo = |path: &Path| self.pruned.iter().any(|gone| path.starts_with(gone));
        if self.faults.len() < FAULTS_MAX && !paths.iter().any(echo) {
            self.faults.push(self.source.fault(origin, text));
        }
    }

    /// A fault of a list or map that nothing stands in, unless what stood there was wrong.
    pub(super) fn fault_if_empty(&mut self, empty: bool, path: &Path, text: &str) {
        if empty && !self.pruned.iter().any(|gone| gone.starts_with(path)) {
            self.fault(std::slice::from_ref(path), text);
        }
    }

    pub(super) fn warn(&mut self, path: &Path, text: &str) {
        self.warnings.push(self.source.fault(&self.origin(path), text));
    }

    /// Where the value came from; what a short form implies came from the short form.
    fn origin(&self, path: &[String]) -> Origin {
        let known = (0..=path.len())
            .rev()
            .find_map(|end| self.root.find(&path[..end]).map(|node| (end, node)));
        match known {
            Some((end, node))
                if end == path.len() || !matches!(node.value, Value::Map(_) | Value::List(_)) =>
            {
                node.origin.clone()
            }
            _ => Origin::Default,
        }
    }

    // --- sockets ---------------------------------------------------------------------------------

    fn addresses(&mut self, config: &Config) {
        let at = |index: usize| path(["listen", &index.to_string()]);
        let all = &config.listen;
        let text = "there is no address to listen on; write one such as 127.0.0.1:5000";
        self.fault_if_empty(all.is_empty(), &path(["listen"]), text);
        if all.len() > LISTEN_MAX {
            let text = format!(
                "these are more than {LISTEN_MAX} addresses; write 0.0.0.0:PORT for all interfaces"
            );
            return self.fault(&[path(["listen"])], &text);
        }
        for (index, listen) in all.iter().enumerate() {
            let earlier =
                all[..index].iter().position(|other| clash(other.address, listen.address));
            if let Some(other) = earlier {
                let text = format!(
                    "{} is already taken by {} above; remove one or change its port",
                    listen.address, all[other].address
                );
                self.fault(&[at(index), at(other)], &text);
            }
        }
        if let Some(index) =
            all.iter().position(|listen| clash(listen.address, config.admin.address))
        {
            let text = format!(
                "the admin address {} and the pull address {} are the same port; give one of them \
                 another",
                config.admin.address, all[index].address
            );
            self.fault(&[path(["admin", "address"]), path(["admin"]), at(index)], &text);
        }
        if let Some(file) = &config.admin.token_file
            && let Err(why) = super::admin::token(file)
        {
            self.fault(&[path(["admin", "token_file"])], &why);
        }
    }

    // --- what is kept and how it is served -----------------------------------------------------

    fn cache(&mut self, config: &Config) {
        let cache = &config.cache;
        if let Some(text) = hosts::file_path(&cache.path) {
            self.fault(&[path(["cache", "path"])], text);
        }
        if cache.max_size.bytes() == 0 {
            let text = "a cache of no size keeps nothing; write how much disk it may take, for \
                        example 100GiB";
            self.fault(&[path(["cache", "max_size"])], text);
        }
        if matches!(cache.min_free, Free::Share(share) if share >= 10_000) {
            let text = "all of the disk cannot stay free; write less than 100%, for example 5%";
            self.fault(&[path(["cache", "min_free"])], text);
        }
    }

    fn server(&mut self, config: &Config) {
        let server = &config.server;
        let spans = [
            ("header_timeout", server.header_timeout),
            ("idle_timeout", server.idle_timeout),
            ("send_timeout", server.send_timeout),
        ];
        self.spans(&path(["server"]), &spans);
        if server.max_connections == 0 || server.max_connections > CONNECTIONS_MAX {
            let text =
                format!("the number of connections is out of range; write 1 to {CONNECTIONS_MAX}");
            self.fault(&[path(["server", "max_connections"])], &text);
        }
        if server.threads > THREADS_MAX {
            let text = format!(
                "so many threads are of no use; write 1 to {THREADS_MAX}, or 0 for one per core"
            );
            self.fault(&[path(["server", "threads"])], &text);
        }
    }

    /// Deadlines under which nothing could ever be done in time.
    pub(super) fn spans(&mut self, above: &Path, spans: &[(&str, Span)]) {
        for (key, _) in spans.iter().filter(|(_, span)| span.get().is_zero()) {
            let mut at = above.clone();
            at.push((*key).to_owned());
            self.fault(
                &[at],
                &format!("with `{key}` at zero nothing gets through; write a duration such as 15s"),
            );
        }
    }

    fn log(&mut self, config: &Config) {
        let level = &config.log.level;
        let words = ["error", "warn", "info", "debug", "trace", "off"];
        let at = [path(["log", "level"])];
        if level.trim().is_empty() {
            let text = "the level is empty; write one of: error, warn, info, debug, trace, off";
            return self.fault(&at, text);
        }
        if let Err(error) = EnvFilter::try_new(level) {
            let text = format!("`{level}` is no filter ({error}); write a level such as info");
            return self.fault(&at, &text);
        }
        // A bare word is taken for the name of a module, so a slip would silence the log.
        let bare = level.split(',').map(str::trim).filter(|part| !part.contains(['=', '[', ':']));
        for word in bare.filter(|word| !words.contains(&word.to_lowercase().as_str())) {
            if let Some(meant) = nearest(word, words.into_iter()) {
                self.fault(&at, &format!("`{word}` is no level; did you mean `{meant}`?"));
            }
        }
    }
}

/// Whether two sockets cannot be open at once. `[::]` takes IPv4 as well on Linux.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let covers =
        |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

#[cfg(test)]
pub(super) mod tests {
    use crate::config::Config;

    /// The faults and warnings of a text, each from its line on.
    pub(in crate::config) fn told(text: &str) -> String {
        let of = |faults: &crate::config::Faults| {
            let one = |fault: &crate::config::Fault| {
                let (line, column) = (fault.line.unwrap_or(0), fault.column.unwrap_or(0));
                format!("{line}:{column}: {}", fault.message)
            };
            faults.iter().map(one).collect::<Vec<_>>().join("\n")
        };
        match Config::parse("f", text) {
            Ok(loaded) => of(&loaded.warnings),
            Err(faults) => of(&faults),
        }
    }

    #[test]
    fn contradictions_are_found() {
        for (text, wanted) in [
            (
                "listen: []",
                "1:9: there is no address to listen on; write one such as 127.0.0.1:5000",
            ),
            (
                "listen: [127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:1]",
                "1:36: 127.0.0.1:1 is already taken by 127.0.0.1:1 above; remove one or change its port",
            ),
            (
                "listen: [\"[::]:1\", 127.0.0.1:1]",
                "1:20: 127.0.0.1:1 is already taken by [::]:1 above; remove one or change its port",
            ),
            ("listen: [127.0.0.1:0, 127.0.0.1:0, 10.0.0.1:1, 127.0.0.1:1]", ""),
            (
                "listen: 0.0.0.0:5001",
                "1:9: the admin address 127.0.0.1:5001 and the pull address 0.0.0.0:5001 are the same port; give one of them another",
            ),
            (
                "admin: 127.0.0.1:5000",
                "1:8: the admin address 127.0.0.1:5000 and the pull address 127.0.0.1:5000 are the same port; give one of them another",
            ),
            (
                "cache: {path: ~/x, max_size: 0, min_free: 100%}",
                "1:15: `~` is not expanded; write the whole path, or ${HOME}\n\
                 1:30: a cache of no size keeps nothing; write how much disk it may take, for example 100GiB\n\
                 1:43: all of the disk cannot stay free; write less than 100%, for example 5%",
            ),
            ("cache: {memory: 0, min_free: 0%}\nserver: {drain_timeout: 0s, threads: 0}", ""),
            (
                "server: {threads: 5000, max_connections: 0, idle_timeout: 0s}",
                "1:19: so many threads are of no use; write 1 to 1024, or 0 for one per core\n\
                 1:42: the number of connections is out of range; write 1 to 1000000\n\
                 1:59: with `idle_timeout` at zero nothing gets through; write a duration such as 15s",
            ),
            ("log: {level: inof}", "1:14: `inof` is no level; did you mean `info`?"),
            ("log: {level: 'warn,hyper,pierhead::fill=debug'}", ""),
            (
                "log: {level: ' '}",
                "1:14: the level is empty; write one of: error, warn, info, debug, trace, off",
            ),
        ] {
            assert_eq!(told(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_part_that_is_wrong_in_itself_has_no_echo() {
        for (text, wanted) in [
            (
                "listen: [5]",
                "1:10: `5` is not an address; write 127.0.0.1:5 for this machine alone or 0.0.0.0:5 for all",
            ),
            (
                "listen: 127.0.0.1:5001\nadmin: x",
                "2:8: `x` is not an address; write IP:PORT, for example 127.0.0.1:5000",
            ),
            (
                "upstream: {x.io: }\ndefault_upstream: x.io",
                "1:1: unknown key `upstream`; did you mean `upstreams`?",
            ),
            (
                "listen: [x, 127.0.0.1:1, 127.0.0.1:1]",
                "1:10: `x` is not an address; write IP:PORT, for example 127.0.0.1:5000\n\
                 1:26: 127.0.0.1:1 is already taken by 127.0.0.1:1 above; remove one or change its port",
            ),
        ] {
            assert_eq!(told(text), wanted, "{text}");
        }
    }
}
