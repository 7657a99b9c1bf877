//! The configuration: one struct per concern, every field with its unit, default and consequence.
//!
//! The types here are what the rest of the program reads. `load` turns a file and the environment
//! into them, `units` reads sizes and durations as people write them, `check` finds what types
//! alone cannot, and `show` prints what was resolved and where each value came from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use units::{Free, Ratio, Size, Span};

pub mod admin;
mod auth;
mod changes;
mod check;
mod check_auth;
mod check_clients;
mod check_hosted;
mod check_traces;
mod check_upstreams;
pub mod clients;
mod de;
mod defaults;
mod fault;
mod hosts;
pub mod htpasswd;
pub mod jwks;
mod layers;
mod load;
mod read;
mod secret;
mod show;
pub mod tls;
mod tree;
pub mod units;

pub use admin::AdminListen;
pub use auth::{Acr, Auth, Ecr, Gcp, Password, Proxy, ecr_region};
pub use changes::Changes;
pub use clients::{Act, Clients, Jwt, Passthrough, Rule, Secret, Tls};
pub use defaults::DEFAULT_UPSTREAM;
pub use fault::{Fault, Faults};
pub use layers::Overrides;
pub use load::{Loaded, environment};
pub use show::{init, schema, show};

/// The whole configuration of one Pierhead.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients connect: one address or a list of them. Default `127.0.0.1:5000`.
    #[serde(deserialize_with = "read::one_or_many")]
    #[schemars(schema_with = "read::one_or_many_schema")]
    pub listen: Vec<Listen>,
    /// Metrics, health and the admin API; never on the pull port. Default `127.0.0.1:5001`.
    #[schemars(schema_with = "admin::schema")]
    pub admin: AdminListen,
    /// Where content is kept, and how much of it.
    pub cache: Cache,
    /// The upstream for requests that name no registry. Default: `docker.io`, where that is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_upstream: Option<String>,
    /// The registries that may be asked, by the name that stands in image references. Nothing else
    /// is ever dialled. Default: the well-known public registries.
    #[schemars(with = "BTreeMap<String, Option<Upstream>>")]
    pub upstreams: BTreeMap<String, Upstream>,
    /// Who may come in. Absent: everybody who reaches the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<Clients>,
    /// The repositories that live here, beside the mirror. Default: none.
    pub hosted: Hosted,
    /// How the server treats its connections.
    pub server: Server,
    /// What is written to standard error.
    pub log: Log,
    /// Where traces are sent. Default: nothing is traced.
    pub traces: Traces,
}

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// `IP:PORT`; port 0 takes a free one.
    #[schemars(with = "String")]
    pub address: SocketAddr,
    /// TLS; without it the address speaks plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The upstreams that are reached here, and `hosted`. Empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub serves: Vec<String>,
    /// Whether nobody is asked who he is here: no challenge, and no login is looked at. What the rules
    /// let `anonymous` do is done, and what upstreams show to everyone is shown; the rest is denied.
    /// For Docker's `registry-mirrors`, which sends no login. Default `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
    /// The base URL that clients know this address by, for the token service. Default: as the
    /// request says.
    #[serde(serialize_with = "read::write_optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub url: Option<url::Url>,
}

/// Where content is kept, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// The folder; made if it is not there. Default `./pierhead-data`.
    pub path: PathBuf,
    /// Bytes on disk; least recently used content leaves first. Default `100GiB`.
    pub max_size: Size,
    /// What must stay free of the file system, as a size or a percentage. Default `5%`.
    pub min_free: Free,
    /// Bytes of small and hot objects held in memory. Default `256MiB`.
    pub memory: Size,
    /// Content that nobody has asked for in this time leaves. Default: it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// Bytes a second at which held content is read again and compared with its digest; 0 turns
    /// that off. Default `4MiB`.
    pub scrub_rate: Size,
}

/// One registry that content is fetched from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Base URLs, tried in order. Default: the well-known one, else `https://NAME`.
    #[serde(deserialize_with = "read::endpoints", serialize_with = "read::write_endpoints")]
    #[schemars(with = "Vec<String>")]
    pub endpoints: Vec<url::Url>,
    /// Further names this upstream is known by in `ns`, e.g. `index.docker.io`.
    pub aliases: Vec<String>,
    /// A request whose `Host` is one of these is for this upstream.
    pub hosts: Vec<String>,
    /// How long a tag's answer is believed without asking again. Default `60s`.
    pub tag_ttl: Span,
    /// A tag that has moved less than this long ago keeps its previous digest. Default `0s`.
    pub cooldown: Span,
    /// Tags that stand for one digest, whatever the upstream says: `repository:tag` to digest.
    pub pins: BTreeMap<String, String>,
    /// With which credentials the upstream is asked. Default `anonymous`.
    pub auth: Auth,
    /// Repository patterns that may be pulled; empty allows all. `deny` wins.
    pub allow: Vec<String>,
    /// Repository patterns that may not be pulled.
    pub deny: Vec<String>,
    /// Hosts other than the upstream's own that its token service may live on.
    pub realms: Vec<String>,
    /// Whether the endpoints and their redirects may lead to private and loopback addresses.
    /// Default: true where an endpoint itself names such an address, else false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private: Option<bool>,
    /// Whether an image's other layers are fetched once a client has asked for the first, and, of an
    /// index, the manifests for the platforms that clients have asked for before. Default
    /// `true`; layers that the client has already are fetched all the same.
    pub prefetch: bool,
    /// How many transfers fetch a large blob in parallel, where one alone is what limits it. `1`
    /// switches that off. Default `4`.
    pub segments: usize,
    /// Whether pushes to this upstream's names are passed on to it: with the caller's own
    /// credentials (`auth: passthrough`), else with those of `auth`, by whom `clients.rules` let
    /// push. Default `false`: pushes are refused.
    pub push: bool,
    /// Deadline for a connection, TLS included. Default `5s`.
    pub connect_timeout: Span,
    /// Deadline for the first byte of an answer. Default `15s`.
    pub response_timeout: Span,
    /// A transfer without a byte for this long counts as broken. Default `30s`.
    pub stall_timeout: Span,
    /// How often the endpoints are asked whether they are there. Default: only pulls tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Span>,
    /// How the upstream's limit of requests is spared.
    pub ratelimit: RateLimit,
    /// Requests under way at once, transfers included; more wait. Default: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// Requests sent in a second; more wait. Default: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_second: Option<u32>,
    /// Bytes fetched in a second, shared fairly by all transfers. Default: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Size>,
    /// Certificates that are trusted besides the system's, as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The certificate that this mirror shows to the endpoints, as PEM; goes with `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// The key of `cert`, as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Whether the endpoints' own certificates go unchecked; those of hosts that they name do not.
    pub insecure: bool,
    /// The proxy to go through; without it, the usual variables of the environment count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub proxy: Option<Proxy>,
}

/// How an upstream's limit of requests is spared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// What is kept for content that is not held: when no more than this is left, held tags are
    /// served without asking; never more than a tenth of the limit. Default `10`.
    pub reserve: u64,
}

/// The repositories that live here and can be pushed to. A name that is hosted is never asked
/// upstream, whatever exists.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hosted {
    /// Patterns of the names that live here: `*` for names of one component, `team/**`. Empty
    /// hosts nothing, and pushes are refused.
    pub repositories: Vec<String>,
    /// Whether a manifest may name content that is not there. Default `false`.
    pub sparse: bool,
    /// The largest blob that is taken; 0 takes any. Default `0`.
    pub max_blob_size: Size,
    /// Tags that can be set once and neither moved nor deleted.
    pub immutable: Vec<Immutable>,
    /// How much repositories may hold.
    pub quotas: Vec<Quota>,
    /// How long content stays that no tag and no referrer holds. Default `7d`.
    pub gc_grace: Span,
    /// How often such content is looked for; 0 leaves it to `pierhead gc`. Default `1h`.
    pub gc_interval: Span,
    /// How long an upload may rest before it is given up. Default `1d`.
    pub upload_expiry: Span,
    /// Who is told of pushes, deletions and first pulls, as `CloudEvents`.
    pub events: Vec<EventSink>,
}

/// Somebody who is told what happens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventSink {
    /// Where the events are posted to.
    pub url: String,
    /// A file with the token that is shown there; read for each event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// Tags that can be set once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Immutable {
    /// Patterns of repositories.
    pub repositories: Vec<String>,
    /// Patterns of tags, such as `v*`.
    pub tags: Vec<String>,
}

/// How much each repository that fits a pattern may hold.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Patterns of repositories.
    pub repositories: Vec<String>,
    /// Bytes of its content, whoever else holds the same.
    pub max_size: Size,
}

/// How the server treats its connections.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Threads that serve sockets; 0 takes one per core. Default `0`.
    pub threads: usize,
    /// Connections served at once; some more wait for their turn, the rest is turned away. Default
    /// `20000`.
    pub max_connections: usize,
    /// Connections from one address at once; more are turned away. Default
    /// `20000`: behind a NAT or a proxy all clients have one.
    pub max_connections_per_address: usize,
    /// Downloads that one caller may have begun at once; more are answered with 429. Default
    /// `1000`.
    pub max_fills_per_caller: usize,
    /// Deadline for a whole request head. Default `15s`.
    pub header_timeout: Span,
    /// How long an idle connection is kept. Default `60s`.
    pub idle_timeout: Span,
    /// A client that takes no byte for this long is cut off. Default `60s`.
    pub send_timeout: Span,
    /// How long transfers under way may go on after SIGTERM. Default `30s`.
    pub drain_timeout: Span,
    /// How long a new binary may take until it serves, at an upgrade by SIGUSR2. Default `60s`.
    pub upgrade_timeout: Span,
}

/// What is written to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `auto` is text on a terminal and JSON otherwise.
    pub format: LogFormat,
    /// What is logged, in the syntax of `RUST_LOG`. Default `info`.
    pub level: String,
    /// One line for each request. Default `true`.
    pub access: bool,
}

/// Where traces are sent, by OpenTelemetry's protocol (OTLP) over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// The URL of an OpenTelemetry collector, such as `http://127.0.0.1:4318`; without a path
    /// `/v1/traces` is meant. Default: nothing is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<String>,
    /// Which share is traced of the requests whose clients say nothing of traces, from 0 to 1. A
    /// client that sends a `traceparent` decides for itself. Default `0.1`.
    pub ratio: Ratio,
    /// What the collector is shown with each request, such as `authorization`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The public registries that need no configuration but their name.
pub const WELL_KNOWN: &[(&str, &str, &[&str])] = &[
    ("docker.io", "https://registry-1.docker.io", &["index.docker.io", "registry-1.docker.io"]),
    ("ghcr.io", "https://ghcr.io", &[]),
    ("quay.io", "https://quay.io", &[]),
    ("gcr.io", "https://gcr.io", &[]),
    ("registry.k8s.io", "https://registry.k8s.io", &[]),
    ("mcr.microsoft.com", "https://mcr.microsoft.com", &[]),
    ("public.ecr.aws", "https://public.ecr.aws", &[]),
    ("nvcr.io", "https://nvcr.io", &[]),
    ("registry.gitlab.com", "https://registry.gitlab.com", &[]),
    ("docker.elastic.co", "https://docker.elastic.co", &[]),
    ("registry.access.redhat.com", "https://registry.access.redhat.com", &[]),
    ("lscr.io", "https://lscr.io", &[]),
    ("cgr.dev", "https://cgr.dev", &[]),
];
