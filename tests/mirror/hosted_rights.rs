//! Who may do what with repositories that live here: every caller, by every way to log in, with every kind of
//! request. The table is printed.

use std::fmt::Write as _;

use bytes::Bytes;
use hyper::Method;

use crate::clients::basic;
use crate::support::image::{self, Content, Image};
use crate::support::mirror::{Mirror, Setup, before};
use crate::support::record::On;
use crate::support::secure::{Authority, Client, Pair, Told};
use crate::support::upstream::Upstream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Stranger,
    Reader,
    Writer,
    Keeper,
}

const WHO: [Who; 5] = [Who::Nobody, Who::Stranger, Who::Reader, Who::Writer, Who::Keeper];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Htpasswd,
    Certificate,
    Token,
}

const WAYS: [Way; 3] = [Way::Htpasswd, Way::Certificate, Way::Token];

/// What is asked, what it takes, and the status for those who may.
const ASKS: [(&str, Right, u16); 13] = [
    ("pull tag", Right::Pull, 200),
    ("pull blob", Right::Pull, 200),
    ("list tags", Right::Pull, 200),
    ("referrers", Right::Pull, 200),
    ("POST", Right::Push, 202),
    ("POST whole", Right::Push, 201),
    ("PATCH", Right::Push, 202),
    ("PUT", Right::Push, 201),
    ("mount", Right::Push, 201),
    ("mount secret", Right::Push, 201),
    ("put manifest", Right::Push, 201),
    ("delete", Right::Delete, 202),
    ("_catalog", Right::Admin, 200),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Pull,
    Push,
    Delete,
    Admin,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::Stranger => "stranger",
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Keeper => "keeper",
        }
    }

    fn may(self, right: Right) -> bool {
        match self {
            Self::Nobody | Self::Stranger => false,
            Self::Reader => right == Right::Pull,
            Self::Writer => right == Right::Push,
            Self::Keeper => true,
        }
    }

    fn wanted(self, ask: &str, right: Right, good: u16) -> u16 {
        match self {
            Self::Nobody => 401,
            // Who may not read it there begins an upload: what is not readable is not there.
            Self::Writer if ask.starts_with("mount") => 202,
            _ if self.may(right) => good,
            _ => 403,
        }
    }
}

struct Ground {
    mirror: Mirror,
    upstream: Upstream,
    authority: Authority,
    pairs: Vec<(Who, Pair)>,
    image: Image,
    shared: Content,
    secret: Content,
}

fn configured(upstream: &Upstream, authority: &Authority) -> (Setup, Vec<(Who, Pair)>) {
    let setup = before(upstream);
    let folder = setup.folder().to_owned();
    let own = authority.issue(&folder, "server", &["localhost"]);
    let pairs = WHO[1..].iter().map(|who| (*who, authority.issue(&folder, who.name(), &["user"])));
    let pairs = pairs.collect();
    let lines: String = WHO[1..]
        .iter()
        .map(|who| format!("{0}:{1}\n", who.name(), bcrypt::hash(who.name(), 4).unwrap()))
        .collect();
    std::fs::write(folder.join("htpasswd"), lines).unwrap();
    let listen = format!(
        "{{address: '127.0.0.1:0', tls: {{cert: {}, key: {}, client_ca: {}, client_optional: true}}}}",
        own.cert.display(),
        own.key.display(),
        authority.file(&folder).display()
    );
    let rules = format!(
        "hosted: {{repositories: ['team/**', 'secret/**']}}\nclients:\n  htpasswd: {}\n  rules:\n  - {{users: [reader], actions: [pull], repositories: ['team/**']}}\n  - {{users: [writer], actions: [push], repositories: ['team/**']}}\n  - {{users: [keeper], actions: [pull, push, delete, admin], repositories: ['**']}}",
        folder.join("htpasswd").display()
    );
    (setup.listen(&listen).raw(&rules), pairs)
}

impl Ground {
    async fn new() -> Self {
        let (upstream, authority) = (Upstream::start().await, Authority::new());
        // The same names exist upstream, with something else in them.
        upstream.push("team/app", "v1", &image::oci(9).build());
        upstream.push("team/other", "v1", &image::oci(9).build());
        let (setup, pairs) = configured(&upstream, &authority);
        let mirror = setup.start().await;
        let (shared, secret) = (Content::blob(100, 500), Content::blob(101, 500));
        let ground = Self {
            mirror,
            upstream,
            authority,
            pairs,
            image: image::oci(1).build(),
            shared,
            secret,
        };
        for blob in ground.image.blobs() {
            ground.give("team/app", blob).await;
        }
        ground.give("team/shared", &ground.shared).await;
        ground.give("secret/app", &ground.secret).await;
        ground.tag("v1").await;
        ground
    }

    /// As the keeper, who may do all.
    async fn keeper(&self, method: Method, path: &str, content_type: &str, body: &Bytes) -> Told {
        let headers = [
            ("authorization", basic("keeper", "keeper")),
            ("content-type", content_type.to_owned()),
        ];
        let client = self.authority.client(None, &["http/1.1"]);
        client.send(self.mirror.address(), method, path, &headers, body).await.unwrap()
    }

    async fn give(&self, repository: &str, blob: &Content) {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest);
        let told = self.keeper(Method::POST, &path, "application/octet-stream", &blob.bytes).await;
        assert_eq!(told.status, 201, "{:?}", told.body);
    }

    async fn tag(&self, tag: &str) {
        let manifest = &self.image.manifest;
        let path = format!("/v2/team/app/manifests/{tag}");
        let told = self.keeper(Method::PUT, &path, &manifest.media_type, &manifest.bytes).await;
        assert_eq!(told.status, 201, "{:?}", told.body);
    }

    /// What a caller shows, and with which client.
    async fn shown(&self, who: Who, way: Way) -> (Client, Vec<(&'static str, String)>) {
        let own = self.pairs.iter().find(|(one, _)| *one == who).map(|(_, pair)| pair);
        let plain = self.authority.client(None, &["http/1.1"]);
        let login = match who {
            Who::Nobody => Vec::new(),
            _ => vec![("authorization", basic(who.name(), who.name()))],
        };
        match way {
            Way::Htpasswd => (plain, login),
            Way::Certificate => (self.authority.client(own, &["http/1.1"]), Vec::new()),
            Way::Token => {
                let scopes = "scope=repository:team/app:pull,push,delete&scope=repository:team/shared:pull&scope=repository:secret/app:pull";
                let path = format!("/token?service=pierhead&{scopes}");
                let address = self.mirror.address();
                let told =
                    plain.send(address, Method::GET, &path, &login, &Bytes::new()).await.unwrap();
                let body: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
                let token = format!("Bearer {}", body["token"].as_str().unwrap());
                (plain, vec![("authorization", token)])
            }
        }
    }

    async fn status(&self, ask: &str, who: Who, way: Way, nth: u64) -> u16 {
        let (client, headers) = self.shown(who, way).await;
        let send = async |method: Method, path: &str, body: &Bytes| {
            let manifest = ("content-type", self.image.manifest.media_type.clone());
            let headers: Vec<_> = headers.iter().cloned().chain([manifest]).collect();
            client.send(self.mirror.address(), method, path, &headers, body).await.unwrap()
        };
        let (none, blob) = (Bytes::new(), Content::blob(1000 + nth, 300));
        let uploads = "/v2/team/app/blobs/uploads/";
        let get = async |path: &str| send(Method::GET, path, &none).await;
        let mount = |from: &str, content: &Content| {
            format!("{uploads}?mount={}&from={from}", content.digest)
        };
        // An upload of his own where he may begin one, else somebody's.
        let begun = async || {
            let own = send(Method::POST, uploads, &none).await;
            if own.status == 202 {
                return own.location;
            }
            self.keeper(Method::POST, uploads, "", &none).await.location
        };
        let manifest = &self.image.manifest;
        let told = match ask {
            "pull tag" => get("/v2/team/app/manifests/v1").await,
            "pull blob" => {
                let layer = self.image.blobs().next().unwrap();
                get(&format!("/v2/team/app/blobs/{}", layer.digest)).await
            }
            "list tags" => get("/v2/team/app/tags/list").await,
            "referrers" => get(&format!("/v2/team/app/referrers/{}", manifest.digest)).await,
            "_catalog" => get("/v2/_catalog").await,
            "POST" => send(Method::POST, uploads, &none).await,
            "POST whole" => {
                send(Method::POST, &format!("{uploads}?digest={}", blob.digest), &blob.bytes).await
            }
            "PATCH" => send(Method::PATCH, &begun().await, &blob.bytes).await,
            "PUT" => {
                let path = format!("{}?digest={}", begun().await, blob.digest);
                send(Method::PUT, &path, &blob.bytes).await
            }
            "mount" => send(Method::POST, &mount("team/shared", &self.shared), &none).await,
            "mount secret" => send(Method::POST, &mount("secret/app", &self.secret), &none).await,
            "put manifest" => {
                let path = format!("/v2/team/app/manifests/by-{}", who.name().len());
                send(Method::PUT, &path, &manifest.bytes).await
            }
            "delete" => {
                let tag = format!("gone-{nth}");
                self.tag(&tag).await;
                send(Method::DELETE, &format!("/v2/team/app/manifests/{tag}"), &none).await
            }
            other => unreachable!("{other}"),
        };
        if told.status >= 400 {
            let body = String::from_utf8_lossy(&told.body);
            assert!(body.contains("errors"), "{ask} {who:?} {way:?}: {body}");
        }
        told.status
    }
}

#[tokio::test]
async fn the_matrix_of_who_may_do_what() {
    let ground = Ground::new().await;
    let mut table = format!("\n{:<14}", "");
    for who in WHO {
        write!(table, "{:<16}", format!("{who:?}")).unwrap();
    }
    let (mut wrong, mut nth) = (Vec::new(), 0);
    for (ask, right, good) in ASKS {
        write!(table, "\n{ask:<14}").unwrap();
        for who in WHO {
            let mut cell = String::new();
            for way in WAYS {
                nth += 1;
                let (status, wanted) =
                    (ground.status(ask, who, way, nth).await, who.wanted(ask, right, good));
                write!(cell, "{status} ").unwrap();
                if status != wanted {
                    wrong.push(format!("{ask} by {who:?} with {way:?}: {status}, not {wanted}"));
                }
            }
            write!(table, "{cell:<16}").unwrap();
        }
    }
    eprintln!("{table}\n(by htpasswd, by certificate, by token)");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(ground.upstream.count(&On::any("")), 0, "a hosted name was asked upstream");
}

/// The other way round: what lives here answers for no upstream's name, whatever it has.
#[tokio::test]
async fn an_upstreams_name_is_never_answered_from_here() {
    let ground = Ground::new().await;
    let none = Bytes::new();
    let ours = &ground.image;
    let layer = ours.blobs().next().unwrap();
    for path in [
        format!("/v2/registry.test/team/app/manifests/{}", ours.manifest.digest),
        format!("/v2/registry.test/team/app/blobs/{}", layer.digest),
        format!("/v2/team/app/manifests/{}?ns=registry.test", ours.manifest.digest),
        "/v2/registry.test/secret/app/tags/list".to_owned(),
    ] {
        let told = ground.keeper(Method::GET, &path, "", &none).await;
        assert_eq!(told.status, 404, "{path}: {:?}", told.body);
    }
    let theirs =
        ground.keeper(Method::GET, "/v2/registry.test/team/app/manifests/v1", "", &none).await;
    assert_eq!((theirs.status, theirs.body == ours.manifest.bytes), (200, false));
    let asked = ground.upstream.count(&On::any(""));
    // A hosted name that has nothing of the kind does not look there, though there is one.
    for path in
        ["/v2/team/other/manifests/v1", "/v2/team/other/tags/list", "/v2/team/app/manifests/v2"]
    {
        let told = ground.keeper(Method::GET, path, "", &none).await;
        assert_eq!(told.status, 404, "{path}");
    }
    assert_eq!(ground.upstream.count(&On::any("")), asked);
}
