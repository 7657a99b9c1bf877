//! From a request line to what is wanted of which upstream: one page, pure, one enum.
//!
//! One name, one origin, decided by the name alone: `ns`, then the first path component, then the
//! host, then what is hosted here, then the default. Nothing is looked up and nothing is dialled.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use self::query::Query;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind};
use crate::limits::PATH_BYTES_MAX;
use crate::name::{Reference, Repository, Tag, UploadId};
use crate::patterns;

mod query;

/// What stands for the upstream's name where a repository lives here. No upstream can be called
/// so, since no host may begin with `_`.
pub const HOSTED: &str = "_hosted";

/// The parameter of an upload's address that carries an upstream's own, sealed.
pub const STATE: &str = "_upstream";

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `GET /v2/`: is this a registry?
    Ping,
    /// A manifest by tag or digest.
    Manifest(Reference),
    /// A blob.
    Blob(Digest),
    /// The tags of a repository, by page.
    Tags(Page),
    /// What is attached to a manifest, filtered by artifact type where any is named. A page may
    /// begin behind a digest, where the list is ours.
    Referrers(Digest, Vec<String>, Option<Digest>),
    /// The repositories that live here: at most so many, behind this one.
    Catalog(Option<u32>, Option<Repository>),
    /// Something that changes a repository.
    Push(Push),
}

/// What changes a repository, and the status of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// Keep a manifest under a tag or a digest, and under further tags.
    PutManifest(Reference, Vec<Tag>),
    /// Remove a tag, or a manifest with all its tags.
    DeleteManifest(Reference),
    /// Remove a blob.
    DeleteBlob(Digest),
    /// Begin an upload.
    Start(Start),
    /// How far has an upload come?
    Status(UploadId),
    /// Add to an upload.
    Append(UploadId),
    /// Add the last of an upload; it is a blob from then on.
    Finish(UploadId, Digest),
    /// Give an upload up.
    Cancel(UploadId),
}

impl Push {
    /// The word for log and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PutManifest(..) | Self::DeleteManifest(_) => "manifest",
            Self::DeleteBlob(_) => "blob",
            _ => "upload",
        }
    }
}

/// How an upload begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The whole blob is in this request.
    pub digest: Option<Digest>,
    /// What it will be hashed with.
    pub algorithm: Algorithm,
    /// A blob that may be here already, and the repository that has it, where one is named.
    pub mount: Option<(Digest, Option<Repository>)>,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most this many.
    pub n: Option<u32>,
    /// Behind this one.
    pub last: Option<Tag>,
}

/// A request that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What is wanted.
    pub action: Action,
    /// Of whom; `None` for `Ping`.
    pub target: Option<Target>,
    /// The `ns` that was honoured, to be echoed as `OCI-Namespace`.
    pub namespace: Option<Arc<str>>,
}

/// A repository of an upstream, or one that lives here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The upstream's configured name, or `HOSTED`.
    pub upstream: Arc<str>,
    /// The repository within it.
    pub repository: Repository,
    /// What stood in the path before the name, for links back to ourselves.
    pub prefix: String,
}

impl Target {
    /// Whether the repository lives here.
    pub fn is_hosted(&self) -> bool {
        &*self.upstream == HOSTED
    }
}

/// By which names the upstreams are known. Built once from the configuration.
#[derive(Clone, Debug, Default)]
pub struct Table {
    names: HashMap<String, Arc<str>>,
    hosts: HashMap<String, Arc<str>>,
    default: Option<Arc<str>>,
    hosted: Vec<String>,
    /// The upstreams that pushes are passed on to.
    pushed: HashSet<Arc<str>>,
}

impl Table {
    /// An empty table with its default upstream.
    pub fn new(default: Option<&str>) -> Self {
        Self { default: default.map(Into::into), ..Self::default() }
    }

    /// Adds an upstream with its other names and the hosts that stand for it.
    pub fn add(&mut self, name: &str, aliases: &[String], hosts: &[String]) {
        let shared: Arc<str> = name.into();
        for alias in aliases.iter().map(String::as_str).chain([name]) {
            self.names.insert(alias.to_ascii_lowercase(), Arc::clone(&shared));
        }
        for host in hosts {
            self.hosts.insert(host.to_ascii_lowercase(), Arc::clone(&shared));
        }
    }

    /// Says which names live here, by patterns.
    pub fn host(&mut self, patterns: &[String]) {
        self.hosted = patterns.to_vec();
    }

    /// Says that pushes to an upstream's names are passed on to it.
    pub fn let_push(&mut self, upstream: &str) {
        self.pushed.insert(upstream.into());
    }

    /// Whether a name lives here, where nothing else in the request says whose it is.
    fn is_hosted(&self, name: &str) -> bool {
        self.hosted.iter().any(|pattern| patterns::matches(pattern, name))
    }

    /// Understands a request.
    ///
    /// # Errors
    /// What the specification's codes are for: names, tags, digests, methods and paths that are
    /// wrong, and registries that are not configured.
    pub fn route(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        host: Option<&str>,
    ) -> Result<Route, Error> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Error::new(Kind::NameInvalid, "path is too long"));
        }
        let path = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_| Error::new(Kind::NameInvalid, "path is not UTF-8"))?;
        let (prefix, rest) = self.split_base(&path).ok_or_else(|| {
            Error::new(Kind::PathUnknown, "not a registry path: everything lives under /v2/")
        })?;
        let query = Query::parse(query)?;
        if rest.is_empty() && prefix.is_none() {
            readable(method)?;
            return Ok(Route { action: Action::Ping, target: None, namespace: None });
        }
        if rest == "_catalog" && prefix.is_none() && !self.hosted.is_empty() {
            readable(method)?;
            return Ok(Route { action: query.catalog()?, target: None, namespace: None });
        }
        let (name, object) = Object::split(rest)?;
        let namespace = query.namespace()?;
        let origin = |name: &str| self.origin(prefix, name, namespace.as_deref(), host);
        let target = origin(name)?;
        let may_push = target.is_hosted() || self.pushed.contains(&target.upstream);
        if !may_push && (readable(method).is_err() || matches!(object, Object::Upload(_))) {
            return Err(self.not_pushed(method, &target));
        }
        let mut action = object.action(method, &query)?;
        if let Action::Push(Push::Start(start)) = &mut action {
            start.mount = query.mount(&target, origin)?;
        }
        Ok(Route { action, target: Some(target), namespace: namespace.map(Into::into) })
    }

    /// Why an upstream's name cannot be pushed to, and what can.
    fn not_pushed(&self, method: &Method, target: &Target) -> Error {
        let Target { upstream, repository, .. } = target;
        let hosted = match self.hosted.as_slice() {
            [] => "to keep names here, list them in `hosted.repositories`".to_owned(),
            some => format!("names that live here can be pushed to: {}", some.join(", ")),
        };
        let text = format!(
            "{method} is not possible here: {repository} belongs to {upstream}, which is only read through this mirror; {hosted}; with `push: true` on the upstream {upstream} pushes would be passed on to it"
        );
        Error::new(Kind::Unsupported, text)
    }

    /// Understands an image as people write it: `nginx`, `ghcr.io/org/app:1.2`, `app@sha256:…`.
    ///
    /// # Errors
    /// The specification's for names, tags and digests, and `NameUnknown` for a registry that is
    /// not configured.
    pub fn image(&self, text: &str) -> Result<(Target, Reference), Error> {
        let (name, digest) = text.split_once('@').map_or((text, None), |(n, d)| (n, Some(d)));
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (name, "latest"),
        };
        let reference = match digest {
            Some(digest) => Reference::Digest(Digest::parse(digest)?),
            None => Reference::Tag(Tag::parse(tag)?),
        };
        Ok((self.repository(name)?, reference))
    }

    /// Understands a repository as people write it. What looks like a registry has to be one of ours.
    ///
    /// # Errors
    /// As `image`.
    pub fn repository(&self, name: &str) -> Result<Target, Error> {
        let first = name.split_once('/').map_or("", |(first, _)| first);
        let is_registry = first == "localhost" || first.contains(['.', ':']);
        if is_registry && !self.names.contains_key(first) {
            let text = format!("no upstream is configured for {first}");
            return Err(Error::new(Kind::NameUnknown, text));
        }
        self.origin(None, name, None, None)
    }

    /// The upstream that a name or an alias stands for.
    pub fn upstream(&self, name: &str) -> Option<&Arc<str>> {
        self.names.get(&name.to_ascii_lowercase())
    }

    /// Takes `/v2/` off; the upstream's name may stand before it as well as behind it, since both
    /// are how people write a prefix into a client's mirror address.
    fn split_base<'p>(&self, path: &'p str) -> Option<(Option<&'p str>, &'p str)> {
        if path == "/v2" {
            return Some((None, ""));
        }
        if let Some(rest) = path.strip_prefix("/v2/") {
            return Some((None, rest));
        }
        let (first, rest) = path.strip_prefix('/')?.split_once('/')?;
        let rest = rest.strip_prefix("v2/")?;
        self.names.contains_key(first).then_some((Some(first), rest))
    }

    /// Decides whose repository a name is.
    fn origin(
        &self,
        prefix: Option<&str>,
        name: &str,
        ns: Option<&str>,
        host: Option<&str>,
    ) -> Result<Target, Error> {
        let (first, behind) = name.split_once('/').unwrap_or((name, ""));
        let named = match prefix {
            Some(first) => self.names.get(first).map(|u| (u, name, format!("/{first}/v2/"))),
            None => self
                .names
                .get(first)
                .filter(|_| !behind.is_empty())
                .map(|u| (u, behind, format!("/v2/{first}/"))),
        };
        let plain = |upstream: &Arc<str>| (Arc::clone(upstream), name, "/v2/".to_owned());
        let (upstream, name, prefix) = match (ns.map(|ns| self.namespace(ns)).transpose()?, named) {
            (Some(by_ns), Some((by_path, ..))) if by_ns != by_path => {
                return Err(Error::new(Kind::NameInvalid, "ns and path name different registries"));
            }
            (_, Some((upstream, name, prefix))) => (Arc::clone(upstream), name, prefix),
            (Some(upstream), None) => plain(upstream),
            (None, None) if self.by_host(host).is_none() && self.is_hosted(name) => {
                let repository = Repository::parse(name)?;
                let prefix = "/v2/".to_owned();
                return Ok(Target { upstream: HOSTED.into(), repository, prefix });
            }
            (None, None) => {
                plain(self.by_host(host).or(self.default.as_ref()).ok_or_else(|| {
                    Error::new(
                        Kind::NameUnknown,
                        "no upstream is configured for this name, and there is no default",
                    )
                })?)
            }
        };
        let repository = Repository::parse(name)?;
        let repository =
            if &*upstream == "docker.io" { repository.with_library() } else { repository };
        Ok(Target { upstream, repository, prefix })
    }

    /// `ns` is a key into a closed list, in one normal form; it is never an address to dial.
    fn namespace(&self, ns: &str) -> Result<&Arc<str>, Error> {
        let lawful =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        if ns.is_empty() || ns.len() > 255 || !ns.bytes().all(lawful) {
            return Err(Error::new(Kind::NameInvalid, "ns is not a host name"));
        }
        let ns = ns.to_ascii_lowercase();
        let bare = ns.strip_suffix(":443").unwrap_or(&ns);
        let bare = bare.strip_suffix('.').unwrap_or(bare);
        self.names.get(&ns).or_else(|| self.names.get(bare)).ok_or_else(|| {
            Error::new(Kind::NameUnknown, format!("no upstream is configured for {ns}"))
        })
    }

    fn by_host(&self, host: Option<&str>) -> Option<&Arc<str>> {
        if self.hosts.is_empty() {
            return None;
        }
        let host = host?.to_ascii_lowercase();
        let bare = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        self.hosts.get(&host).or_else(|| self.hosts.get(bare))
    }
}

/// Only reading is allowed on a mirror.
fn readable(method: &Method) -> Result<(), Error> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsupported,
        format!("{method} is not possible here: this is a read-only mirror"),
    ))
}

/// What a path is about. It is split from the end, since the name may hold the same words; and what
/// stands behind the word is only read once the name is known to be lawful, so that the error is
/// about the first thing that is wrong.
enum Object<'p> {
    Manifest(&'p str),
    Blob(&'p str),
    Tags,
    Referrers(&'p str),
    Uploads,
    Upload(&'p str),
}

impl<'p> Object<'p> {
    fn split(path: &'p str) -> Result<(&'p str, Self), Error> {
        let unknown =
            || Error::new(Kind::PathUnknown, "the distribution specification has no such path");
        let (head, tail) = path.rsplit_once('/').ok_or_else(unknown)?;
        if let Some(name) = head.strip_suffix("/manifests") {
            return Ok((name, Self::Manifest(tail)));
        }
        if let (Some(name), "uploads") = (head.strip_suffix("/blobs"), tail) {
            return Ok((name, Self::Uploads));
        }
        if let Some(name) = head.strip_suffix("/blobs") {
            return Ok((name, Self::Blob(tail)));
        }
        if let Some(name) = head.strip_suffix("/blobs/uploads") {
            return Ok((name, if tail.is_empty() { Self::Uploads } else { Self::Upload(tail) }));
        }
        if let (Some(name), "list") = (head.strip_suffix("/tags"), tail) {
            return Ok((name, Self::Tags));
        }
        if let Some(name) = head.strip_suffix("/referrers") {
            return Ok((name, Self::Referrers(tail)));
        }
        // A reference with slashes in it is no reference: say so, rather than that the path is unknown.
        for word in ["/manifests/", "/blobs/"] {
            if let Some((name, reference)) = path.split_once(word).filter(|(_, r)| r.contains(':'))
            {
                return Ok((name, Self::Blob(reference)));
            }
        }
        Err(unknown())
    }

    fn action(self, method: &Method, query: &Query) -> Result<Action, Error> {
        let read = matches!(*method, Method::GET | Method::HEAD);
        Ok(match self {
            Self::Manifest(reference) if read => Action::Manifest(Reference::parse(reference)?),
            Self::Blob(digest) if read => Action::Blob(Digest::parse(digest)?),
            Self::Tags if read => Action::Tags(query.page()?),
            Self::Referrers(digest) if read => {
                let last = query.one("last")?.map(|last| Digest::parse(&last)).transpose()?;
                Action::Referrers(Digest::parse(digest)?, query.all("artifactType"), last)
            }
            other => Action::Push(other.push(method, query)?),
        })
    }

    fn push(self, method: &Method, query: &Query) -> Result<Push, Error> {
        match (self, method) {
            (Self::Manifest(reference), &Method::PUT) => {
                Ok(Push::PutManifest(Reference::parse(reference)?, query.tags()?))
            }
            (Self::Manifest(reference), &Method::DELETE) => {
                Ok(Push::DeleteManifest(Reference::parse(reference)?))
            }
            (Self::Blob(digest), &Method::DELETE) => Ok(Push::DeleteBlob(Digest::parse(digest)?)),
            (Self::Uploads, &Method::POST) => query.start().map(Push::Start),
            (Self::Upload(id), &Method::GET | &Method::HEAD) => {
                UploadId::parse(id).map(Push::Status)
            }
            (Self::Upload(id), &Method::PATCH) => UploadId::parse(id).map(Push::Append),
            (Self::Upload(id), &Method::PUT) => {
                let digest = query.one("digest")?.ok_or_else(|| {
                    Error::new(Kind::DigestInvalid, "digest is missing: an upload ends with it")
                })?;
                Ok(Push::Finish(UploadId::parse(id)?, Digest::parse(&digest)?))
            }
            (Self::Upload(id), &Method::DELETE) => UploadId::parse(id).map(Push::Cancel),
            (other, _) => {
                let text = format!("{method} is not possible here");
                Err(Error::new(Kind::Unsupported, text).allowing(other.methods()))
            }
        }
    }

    /// What can be done where pushing is possible, as it stands in `Allow`.
    fn methods(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "GET, HEAD, PUT, DELETE",
            Self::Blob(_) => "GET, HEAD, DELETE",
            Self::Tags | Self::Referrers(_) => "GET, HEAD",
            Self::Uploads => "POST",
            Self::Upload(_) => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn table() -> Table {
        let mut t = Table::new(Some("docker.io"));
        t.add("docker.io", &["index.docker.io".into()], &[]);
        t.add("ghcr.io", &[], &["ghcr.mirror.test".into()]);
        t.add("localhost:7000", &[], &[]);
        t
    }

    fn get(target: &str) -> Result<Route, Error> {
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        table().route(&Method::GET, path, query, Some("mirror.test:5000"))
    }

    fn origin(target: &str) -> (String, String) {
        let t = get(target).unwrap().target.unwrap();
        (t.upstream.to_string(), t.repository.to_string())
    }

    fn kind(target: &str) -> Kind {
        get(target).unwrap_err().kind()
    }

    #[test]
    fn the_name_alone_decides_the_origin() {
        let is = |t, u: &str, r: &str| assert_eq!(origin(t), (u.into(), r.into()), "{t}");
        is("/v2/library/alpine/manifests/3?ns=docker.io", "docker.io", "library/alpine");
        is("/v2/org/app/manifests/3?ns=ghcr.io", "ghcr.io", "org/app");
        is("/v2/org/app/manifests/3?ns=INDEX.docker.io", "docker.io", "org/app");
        is("/v2/org/app/manifests/3?ns=docker.io:443", "docker.io", "org/app");
        is("/v2/org/app/manifests/3?ns=localhost:7000", "localhost:7000", "org/app");
        is("/v2/ghcr.io/org/app/manifests/3", "ghcr.io", "org/app");
        is("/ghcr.io/v2/org/app/manifests/3", "ghcr.io", "org/app");
        is("/v2/ghcr.io/org/app/manifests/3?ns=ghcr.io", "ghcr.io", "org/app");
        is("/v2/localhost:7000/app/manifests/3", "localhost:7000", "app");
        is("/v2/alpine/manifests/3", "docker.io", "library/alpine");
        is("/v2/docker.io/alpine/manifests/3", "docker.io", "library/alpine");
        is("/v2/a/manifests/b/tags/list", "docker.io", "a/manifests/b");
    }

    #[test]
    fn a_host_may_stand_for_an_upstream() {
        let route =
            |host| table().route(&Method::GET, "/v2/app/tags/list", None, Some(host)).unwrap();
        assert_eq!(&*route("ghcr.mirror.test").target.unwrap().upstream, "ghcr.io");
        assert_eq!(&*route("GHCR.mirror.test:5000").target.unwrap().upstream, "ghcr.io");
        assert_eq!(&*route("other.test").target.unwrap().upstream, "docker.io");
    }

    #[test]
    fn ns_is_a_closed_list() {
        assert_eq!(kind("/v2/a/b/manifests/3?ns=evil.test"), Kind::NameUnknown);
        assert_eq!(kind("/v2/a/b/manifests/3?ns=docker.io&ns=ghcr.io"), Kind::BadRequest);
        assert_eq!(kind("/v2/a/b/manifests/3?ns=docker.io%0d%0aX:1"), Kind::NameInvalid);
        assert_eq!(kind("/v2/a/b/manifests/3?ns=user@docker.io"), Kind::NameInvalid);
        assert_eq!(kind("/v2/ghcr.io/a/b/manifests/3?ns=docker.io"), Kind::NameInvalid);
    }

    #[test]
    fn hostile_paths_get_the_specifications_code() {
        let digest = format!("/v2/a/b/blobs/SHA256:{HEX}");
        for (path, want) in [
            ("/v2/../../etc/passwd", Kind::PathUnknown),
            ("/v2/..%2f..%2fetc%2fmanifests/x", Kind::NameInvalid),
            ("/v2/a/b/manifests/sha256:../..", Kind::DigestInvalid),
            ("/v2/a//b/manifests/x", Kind::NameInvalid),
            ("/v2/A/b/manifests/x", Kind::NameInvalid),
            ("/v2/a/b/manifests/-x", Kind::TagInvalid),
            ("/v2/a%00/b/manifests/x", Kind::NameInvalid),
            ("/v2/a%c0%ae/manifests/x", Kind::NameInvalid),
            (&digest, Kind::DigestInvalid),
            ("/v2/_catalog", Kind::PathUnknown),
            ("/", Kind::PathUnknown),
            ("/v2/a/b/tags/list?n=-1", Kind::PaginationInvalid),
            ("/v1/search", Kind::PathUnknown),
            ("/v2/manifests/x", Kind::PathUnknown),
            ("/evil.test/v2/a/manifests/x", Kind::PathUnknown),
        ] {
            assert_eq!(kind(path), want, "{path}");
        }
    }

    #[test]
    fn percent_encoding_is_undone_once() {
        let route = get(&format!("/v2/a%2Fb/blobs/sha256%3A{HEX}")).unwrap();
        assert_eq!(route.target.unwrap().repository.as_str(), "a/b");
        assert_eq!(kind("/v2/a%252Fb/manifests/x"), Kind::NameInvalid);
    }

    #[test]
    fn a_mirror_is_read_only() {
        for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let e = table().route(&method, "/v2/a/b/manifests/x", None, None).unwrap_err();
            assert_eq!((e.kind(), e.allowed()), (Kind::Unsupported, "GET, HEAD"));
            for word in ["docker.io", "`push: true`", "`hosted.repositories`"] {
                assert!(e.message().contains(word), "{e}");
            }
        }
        let e = hosting(&Method::PUT, "/v2/library/app/manifests/x").unwrap_err();
        assert!(e.message().contains("live here can be pushed to: *, team/**"), "{e}");
    }

    #[test]
    fn what_is_possible_is_told() {
        let digest = format!("sha256:{HEX}");
        for (method, target, allowed) in [
            (Method::PATCH, "/v2/app/manifests/x".to_owned(), "GET, HEAD, PUT, DELETE"),
            (Method::PUT, format!("/v2/app/blobs/{digest}"), "GET, HEAD, DELETE"),
            (Method::DELETE, "/v2/app/tags/list".to_owned(), "GET, HEAD"),
            (Method::GET, "/v2/app/blobs/uploads/".to_owned(), "POST"),
            (Method::POST, "/v2/_catalog".to_owned(), "GET, HEAD"),
        ] {
            let e = hosting(&method, &target).unwrap_err();
            assert_eq!((e.kind(), e.allowed()), (Kind::Unsupported, allowed), "{method} {target}");
        }
    }

    #[test]
    fn an_upstreams_name_is_pushed_to_where_that_is_allowed() {
        let mut table = table();
        table.let_push("ghcr.io");
        let digest = format!("sha256:{HEX}");
        let start = |target: &str| {
            let (path, query) = target.split_once('?').unwrap();
            let route = table.route(&Method::POST, path, Some(query), None)?;
            let Action::Push(Push::Start(start)) = route.action else { panic!("{target}") };
            Ok::<_, Error>(start.mount.map(|(_, from)| from.map(|from| from.to_string())))
        };
        let mount = |from: &str| format!("?mount={digest}{from}");
        let path = "/v2/ghcr.io/org/app/blobs/uploads/";
        let by_ns = "/v2/org/app/blobs/uploads/";
        for (target, from) in [
            (format!("{path}{}", mount("&from=ghcr.io/org/b")), Some(Some("org/b"))),
            (format!("{path}{}", mount("")), Some(None)),
            // Another upstream's content is nobody's to mount here.
            (format!("{path}{}", mount("&from=org/b")), None),
            (format!("{path}{}", mount("&from=localhost:7000/b")), None),
            (format!("{by_ns}{}&ns=ghcr.io", mount("&from=org/b")), Some(Some("org/b"))),
            (format!("/ghcr.io{by_ns}{}", mount("&from=org/b")), Some(Some("org/b"))),
        ] {
            let found = start(&target).unwrap();
            assert_eq!(found, from.map(|from| from.map(str::to_owned)), "{target}");
        }
        assert_eq!(
            start(&format!("{path}{}", mount("&from=../x"))).unwrap_err().kind(),
            Kind::NameInvalid
        );
        assert!(start("/v2/org/app/blobs/uploads/?x=1").is_err(), "docker.io is read only");
        let twice = format!("{by_ns}?ns=ghcr.io&ns=ghcr.io");
        assert!(start(&twice).is_err());
        assert_eq!(start(&format!("{twice}&_upstream=x")).unwrap(), None);
        assert!(start(&format!("{by_ns}?ns=ghcr.io&ns=docker.io&_upstream=x")).is_err());
    }

    fn hosting(method: &Method, target: &str) -> Result<Route, Error> {
        let mut table = table();
        table.host(&["*".into(), "team/**".into()]);
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        table.route(method, path, query, Some("ghcr.mirror.test").filter(|_| query == Some("host")))
    }

    #[test]
    fn a_hosted_name_is_hosted_whatever_exists() {
        for (target, upstream) in [
            ("/v2/app/manifests/1", HOSTED),
            ("/v2/team/a/b/manifests/1", HOSTED),
            ("/v2/team/manifests/1", HOSTED),
            ("/v2/library/app/manifests/1", "docker.io"),
            ("/v2/docker.io/app/manifests/1", "docker.io"),
            ("/v2/app/manifests/1?ns=ghcr.io", "ghcr.io"),
            ("/v2/app/manifests/1?host", "ghcr.io"),
        ] {
            let route = hosting(&Method::GET, target).unwrap();
            assert_eq!(&*route.target.unwrap().upstream, upstream, "{target}");
        }
        for target in ["/v2/library/app/manifests/1", "/v2/app/manifests/1?ns=ghcr.io"] {
            let e = hosting(&Method::PUT, target).unwrap_err();
            assert_eq!(e.kind(), Kind::Unsupported, "{target}");
        }
    }

    #[test]
    fn pushes_are_understood() {
        let id = "0".repeat(32);
        let uploads = "/v2/app/blobs/uploads/";
        let digest = format!("sha256:{HEX}");
        for (method, target, good) in [
            (Method::POST, uploads.to_owned(), true),
            (Method::POST, format!("{uploads}?mount={digest}&from=team/x"), true),
            (Method::POST, format!("{uploads}?digest={digest}"), true),
            (Method::POST, format!("{uploads}?digest-algorithm=sha512"), true),
            (Method::POST, format!("{uploads}?digest-algorithm=md5"), false),
            (Method::POST, format!("{uploads}?mount=x"), false),
            (Method::POST, format!("{uploads}?mount={digest}&from=../x"), false),
            (Method::GET, uploads.to_owned(), false),
            (Method::PATCH, format!("{uploads}{id}"), true),
            (Method::PATCH, format!("{uploads}../../x"), false),
            (Method::PATCH, format!("{uploads}{}", "G".repeat(32)), false),
            (Method::PUT, format!("{uploads}{id}?digest={digest}"), true),
            (Method::PUT, format!("{uploads}{id}"), false),
            (Method::DELETE, format!("{uploads}{id}"), true),
            (Method::PUT, format!("/v2/app/manifests/{digest}?tag=a&tag=b"), true),
            (Method::PUT, format!("/v2/app/manifests/{digest}?tag=-"), false),
            (Method::DELETE, format!("/v2/app/blobs/{digest}"), true),
            (Method::PUT, format!("/v2/app/blobs/{digest}"), false),
            (Method::DELETE, "/v2/app/tags/list".to_owned(), false),
            (Method::GET, "/v2/_catalog?n=5&last=team/a".to_owned(), true),
            (Method::GET, "/v2/_catalog?last=..".to_owned(), false),
        ] {
            assert_eq!(hosting(&method, &target).is_ok(), good, "{method} {target}");
        }
    }

    #[test]
    fn giant_pages_are_bounded() {
        let Action::Tags(page) =
            get("/v2/a/b/tags/list?n=9223372036854775808&last=x").unwrap().action
        else {
            panic!("not a tag list")
        };
        assert_eq!((page.n, page.last.unwrap().as_str()), (Some(u32::MAX), "x"));
    }

    proptest! {
        #[test]
        fn no_request_line_makes_it_panic(path in "/[ -~]{0,60}", query in "[ -~]{0,40}") {
            let _ = table().route(&Method::GET, &path, Some(&query), None);
        }
    }
}
