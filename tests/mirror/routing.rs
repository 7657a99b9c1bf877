//! Which upstream a request is for, and what becomes of requests that are for none.

use crate::support::client::{Answer, raw_request};
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, NAME, Setup, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// Two registries that hold different images under the same name, `a.test` being the default.
struct Two {
    a: Upstream,
    b: Upstream,
    image_a: Image,
    image_b: Image,
    mirror: Mirror,
}

impl Two {
    async fn start() -> Self {
        let (a, b) = (Upstream::start().await, Upstream::start().await);
        let (image_a, image_b) = (image::oci(1).build(), image::oci(2).build());
        a.push("team/app", "v1", &image_a);
        b.push("team/app", "v1", &image_b);
        let setup = Setup::new().upstream("a.test", &a).with("hosts: [a.mirror.test]");
        let setup = setup.upstream("b.test", &b).with("hosts: [b.mirror.test, \"b.other.test\"]");
        let mirror = setup.default_upstream("a.test").start().await;
        Self { a, b, image_a, image_b, mirror }
    }

    fn is_a(&self, answer: &Answer) -> bool {
        answer.is(&self.image_a.manifest.bytes)
    }

    fn is_b(&self, answer: &Answer) -> bool {
        answer.is(&self.image_b.manifest.bytes)
    }
}

#[tokio::test]
async fn ns_names_the_upstream_and_is_echoed() {
    let two = Two::start().await;
    for (ns, is_a) in [("a.test", true), ("b.test", false)] {
        let path = format!("/v2/team/app/manifests/v1?ns={ns}");
        for ask in [two.mirror.get(&path), two.mirror.get(&path), two.mirror.head(&path)] {
            let answer = ask.answer().await;
            assert_eq!((answer.status, answer.header("oci-namespace")), (200, ns));
            assert!(
                answer.body.is_empty() || if is_a { two.is_a(&answer) } else { two.is_b(&answer) }
            );
        }
        let image = if is_a { &two.image_a } else { &two.image_b };
        let path = format!("/v2/team/app/blobs/{}?ns={ns}", image.layers[0].digest);
        let answer = two.mirror.get(&path).answer().await;
        assert!(answer.is(&image.layers[0].bytes));
        assert_eq!(answer.header("oci-namespace"), ns);
    }
    let asked = [two.a.asked(&On::any("")), two.b.asked(&On::any(""))].concat();
    assert!(asked.iter().all(|exchange| exchange.query.is_empty()), "ns stays here: {asked:?}");
}

#[tokio::test]
async fn the_first_path_component_names_the_upstream() {
    let two = Two::start().await;
    let answer = two.mirror.get("/v2/b.test/team/app/manifests/v1").answer().await;
    assert!(two.is_b(&answer), "{answer:?}");
    assert_eq!(answer.header("oci-namespace"), "", "no ns was used");
    let blob = &two.image_b.layers[0];
    let path = format!("/v2/b.test/team/app/blobs/{}", blob.digest);
    assert!(two.mirror.get(&path).answer().await.is(&blob.bytes));
    assert_eq!(two.a.connections(), 0);
    assert_eq!(two.b.count(&On::any("/v2/b.test")), 0, "the prefix stays here");
}

#[tokio::test]
async fn the_host_names_the_upstream_it_is_listed_under() {
    let two = Two::start().await;
    let ask =
        |host: &str| two.mirror.get("/v2/team/app/manifests/v1").header("host", host).answer();
    assert!(two.is_b(&ask("b.mirror.test").await));
    assert!(two.is_b(&ask("b.other.test:5000").await), "a port is no part of the name");
    assert!(two.is_b(&ask("B.Mirror.Test").await), "host names know no case");
    assert!(two.is_a(&ask("a.mirror.test").await));
    assert!(two.is_a(&ask("elsewhere.test").await), "unlisted: the default");
    assert!(two.is_a(&ask("sub.b.mirror.test").await), "no suffix will do");
}

#[tokio::test]
async fn everything_else_is_for_the_default_upstream() {
    let two = Two::start().await;
    assert!(two.is_a(&two.mirror.get("/v2/team/app/manifests/v1").answer().await));
    assert_eq!(two.b.connections(), 0);
}

#[tokio::test]
async fn ns_comes_before_the_path_and_the_path_before_the_host() {
    let two = Two::start().await;
    two.a.push("b.test/team/app", "v1", &two.image_a);
    let ask = |path: &str, host: &str| two.mirror.get(path).header("host", host).answer();
    let answer = ask("/v2/team/app/manifests/v1?ns=a.test", "b.mirror.test").await;
    assert!(two.is_a(&answer));
    let answer = ask("/v2/b.test/team/app/manifests/v1", "a.mirror.test").await;
    assert!(two.is_b(&answer));
    // Whether such a request is served or refused, b.test has no part in it.
    let asked = two.b.count(&On::any(""));
    let answer = ask("/v2/b.test/team/app/manifests/v1?ns=a.test", "b.mirror.test").await;
    assert!(!two.is_b(&answer));
    assert_eq!(two.b.count(&On::any("")), asked);
}

#[tokio::test]
async fn an_unknown_ns_is_not_found_and_nothing_is_dialled() {
    let two = Two::start().await;
    let trap = Upstream::start().await;
    trap.push("team/app", "v1", &two.image_a);
    let unknown =
        [trap.host(), "unknown.test".into(), "169.254.169.254".into(), "localhost".into()];
    let malformed = [
        format!("http://{}", trap.host()),
        format!("a.test@{}", trap.host()),
        format!("{}%2Fa.test", trap.host()),
        "a.test%20b.test".to_owned(),
    ];
    for kind in [format!("blobs/{}", two.image_a.config.digest), "manifests/v1".to_owned()] {
        let ask = |ns: &str| two.mirror.get(&format!("/v2/team/app/{kind}?ns={ns}")).answer();
        for ns in &unknown {
            ask(ns).await.assert_error(404, "NAME_UNKNOWN");
        }
        for ns in &malformed {
            let answer = ask(ns).await;
            assert!([400, 404].contains(&answer.status), "{ns}: {answer:?}");
            answer.error();
        }
    }
    assert_eq!(trap.connections() + two.a.connections() + two.b.connections(), 0);
}

#[tokio::test]
async fn t14_a_repeated_ns_is_refused_and_nothing_is_dialled() {
    let two = Two::start().await;
    for query in ["ns=a.test&ns=b.test", "ns=a.test&ns=a.test", "ns=a.test&x=1&n%73=b.test"] {
        let answer = two.mirror.get(&format!("/v2/team/app/manifests/v1?{query}")).answer().await;
        assert_eq!(answer.status, 400, "{query}");
        answer.error();
    }
    assert_eq!(two.a.connections() + two.b.connections(), 0);
}

#[tokio::test]
async fn t14_an_ns_in_an_odd_form_is_the_same_upstream_or_refused() {
    let two = Two::start().await;
    for ns in ["B.TEST", "b.test.", "b.test:443", "b%2Etest", "B.Test.:443"] {
        let answer = two.mirror.get(&format!("/v2/team/app/manifests/v1?ns={ns}")).answer().await;
        assert!(two.is_b(&answer) || (400..500).contains(&answer.status), "{ns}: {answer:?}");
    }
    // What only looks like it is no name of it: other full stops, wide letters, another alphabet's.
    for ns in [
        "b%E2%80%A4test",
        "b%E3%80%82test",
        "%EF%BD%82.test",
        "b.t%D0%B5st",
        "b.test%C2%AD",
        "xn--b.test",
        "b%C3%BCcher.test",
        "b.test..",
        ".b.test",
        "b.test%00",
        "b.test:443:443",
        "b.test:99999",
        "",
    ] {
        let b = two.b.count(&On::any(""));
        let answer = two.mirror.get(&format!("/v2/team/app/manifests/v1?ns={ns}")).answer().await;
        assert!([400, 404].contains(&answer.status), "{ns}: {answer:?}");
        answer.error();
        assert_eq!(two.b.count(&On::any("")), b, "{ns}");
    }
    assert_eq!(two.a.connections(), 0, "never the default");
}

#[tokio::test]
async fn a_line_break_in_ns_gets_into_no_header() {
    let two = Two::start().await;
    let line = "GET /v2/team/app/manifests/v1?ns=a.test%0d%0aX-Injected:%20yes";
    let answer = raw_request(two.mirror.address(), line).await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    assert!(!answer.head.to_lowercase().contains("x-injected"), "{answer:?}");
    answer.error();
}

#[tokio::test]
async fn unknown_parameters_are_ignored() {
    let two = Two::start().await;
    let answer = two.mirror.get("/v2/team/app/manifests/v1?foo=bar&ns=b.test&baz").answer().await;
    assert!(two.is_b(&answer), "{answer:?}");
}

#[tokio::test]
async fn a_name_of_one_component_gets_library_at_docker_io_only() {
    let (hub, other) = (Upstream::start().await, Upstream::start().await);
    let image = image::oci(1).build();
    for upstream in [&hub, &other] {
        upstream.push("alpine", "v1", &image);
        upstream.push("library/alpine", "v1", &image);
        upstream.push("team/app", "v1", &image);
    }
    let setup = Setup::new().upstream("docker.io", &hub).upstream("other.test", &other);
    let mirror = setup.default_upstream("docker.io").start().await;
    let asked = async |path: &str| {
        let seen = (hub.count(&On::any("")), other.count(&On::any("")));
        let answer = mirror.get(path).answer().await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let paths = |upstream: &Upstream, from: usize| {
            let mut asked = upstream.asked(&On::any("")).split_off(from);
            asked.retain(|one| one.path.contains("/manifests/"));
            asked.into_iter().map(|one| one.path).next()
        };
        (paths(&hub, seen.0), paths(&other, seen.1))
    };
    let library = Some("/v2/library/alpine/manifests/v1".to_owned());
    assert_eq!(asked("/v2/alpine/manifests/v1").await, (library, None));
    let team = Some("/v2/team/app/manifests/v1".to_owned());
    assert_eq!(asked("/v2/docker.io/team/app/manifests/v1").await, (team, None));
    let plain = Some("/v2/alpine/manifests/v1".to_owned());
    assert_eq!(asked("/v2/other.test/alpine/manifests/v1").await, (None, plain));

    let seen = hub.count(&On::any(""));
    for path in ["/v2/docker.io/alpine", "/v2/library/alpine", "/v2/docker.io/library/alpine"] {
        let answer = mirror.get(&format!("{path}/manifests/v1")).answer().await;
        assert!(answer.is(&image.manifest.bytes), "{path}");
    }
    let answer = mirror.get("/v2/alpine/manifests/v1?ns=docker.io").answer().await;
    assert!(answer.is(&image.manifest.bytes));
    assert_eq!(hub.count(&On::any("")), seen, "one repository under four names\n{}", hub.story());
    assert_eq!(hub.count(&On::any("/v2/alpine/")), 0);
}

#[tokio::test]
async fn a_hosted_name_never_falls_through_to_an_upstream() {
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image::oci(1).build());
    let mirror = before(&upstream).raw("hosted: {repositories: [\"team/**\"]}").start().await;
    let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
    assert_eq!(answer.status, 404);
    answer.error();
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn denied_and_not_allowed_repositories_are_refused_before_anybody_is_asked() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    for repository in ["team/app", "team/secret", "other/app"] {
        upstream.push(repository, "v1", &image);
    }
    let setup = before(&upstream).with("allow: [\"team/*\"]\ndeny: [\"team/secret\"]");
    let mirror = setup.start().await;
    for refused in ["team/secret", "other/app", "team/app/deeper"] {
        for kind in [
            format!("blobs/{}", image.config.digest),
            "manifests/v1".to_owned(),
            "tags/list".to_owned(),
        ] {
            let answer = mirror.get(&format!("/v2/{refused}/{kind}")).answer().await;
            answer.assert_error(403, "DENIED");
        }
    }
    assert_eq!(upstream.connections(), 0);
    mirror.pull("team/app", "v1", &image).await;
}

/// Only the configured name tells where a request goes, not what is held or what answers.
#[tokio::test]
async fn a_name_that_one_upstream_lacks_is_not_looked_for_at_another() {
    let two = Two::start().await;
    two.b.push("only/b", "v1", &two.image_b);
    assert_eq!(two.mirror.get("/v2/only/b/manifests/v1").answer().await.status, 404);
    assert_eq!(two.b.connections(), 0);
    assert_eq!(two.mirror.get("/v2/b.test/only/b/manifests/v1").answer().await.status, 200);
    assert_eq!(two.mirror.get("/v2/only/b/manifests/v1").answer().await.status, 404);
    let path = format!("/v2/only/b/blobs/{}?ns={NAME}", two.image_b.config.digest);
    two.mirror.get(&path).answer().await.assert_error(404, "NAME_UNKNOWN");
}
