//! `auth: passthrough`: each caller reads what the upstream lets him read, whatever is held.

use std::fmt::Write as _;
use std::time::Duration;

use hyper::Method;

use crate::clients::{basic, bearer};
use crate::support::auth::{Account, Auth, People};
use crate::support::client::{Answer, Ask};
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content, Image};
use crate::support::mirror::{Mirror, Setup, before, until};
use crate::support::record::On;
use crate::support::upstream::Upstream;

pub(crate) const ALICE: &str = "alice-secret-1";
pub(crate) const BOB: &str = "bob-secret-2";
pub(crate) const CAROL: &str = "carol-secret-3";

/// A registry with three people and a public repository, and a mirror that forgets quickly.
pub(crate) async fn start(refusal: u16, more: &str) -> (Upstream, Mirror) {
    let upstream = people(refusal).await;
    let mirror = setup(&upstream, more).start().await;
    (upstream, mirror)
}

pub(crate) async fn people(refusal: u16) -> Upstream {
    let upstream = Upstream::start().await;
    let accounts =
        [Account::new("alice", ALICE), Account::new("bob", BOB), Account::new("carol", CAROL)];
    let mut people = People::new(&accounts);
    people.refusal = refusal;
    people.let_read("", "open/app");
    people.let_read("bob", "bob/app");
    upstream.set(|registry| registry.auth = Auth::People(people));
    upstream.push("open/app", "v1", &image::oci(1000).build());
    upstream.push("bob/app", "v1", &image::oci(2000).build());
    upstream
}

pub(crate) fn setup(upstream: &Upstream, more: &str) -> Setup {
    before(upstream)
        .with(&format!(
            "stall_timeout: 60s\nauth: {{passthrough: {{allow_ttl: 1s, deny_ttl: 1s, public_ttl: 1s{more}}}}}"
        ))
        .raw("server: {max_fills_per_caller: 1000}")
}

pub(crate) fn with_people(upstream: &Upstream, change: impl FnOnce(&mut People)) {
    upstream.set(|registry| match &mut registry.auth {
        Auth::People(people) => change(people),
        _ => unreachable!("this registry has people"),
    });
}

pub(crate) fn as_(ask: Ask, user: &str, password: &str) -> Ask {
    ask.header("authorization", &basic(user, password))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Nobody,
    AnonymousToken,
    Other,
    Owner,
    Revoked,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Cold,
    Warm,
    Filling,
}

const WHO: [Who; 5] = [Who::Nobody, Who::AnonymousToken, Who::Other, Who::Owner, Who::Revoked];
const STATES: [State; 3] = [State::Cold, State::Warm, State::Filling];
const WAYS: [&str; 3] = ["GET", "HEAD", "range"];
const KINDS: [&str; 5] = ["tag", "digest", "blob", "referrers", "tags"];

struct Cell {
    who: Who,
    state: State,
    way: &'static str,
    kind: &'static str,
    repository: String,
    image: Image,
    artifact: Content,
    gate: Option<Gate>,
}

impl Cell {
    fn layer(&self) -> &Content {
        self.image.blobs().last().expect("an image has a layer")
    }

    fn path(&self, repository: &str) -> String {
        let manifest = &self.image.manifest.digest;
        match self.kind {
            "tag" => format!("/v2/{repository}/manifests/v1"),
            "digest" => format!("/v2/{repository}/manifests/{manifest}"),
            "blob" => format!("/v2/{repository}/blobs/{}", self.layer().digest),
            "referrers" => format!("/v2/{repository}/referrers/{manifest}"),
            _ => format!("/v2/{repository}/tags/list"),
        }
    }

    async fn ask(&self, mirror: &Mirror, repository: &str) -> Answer {
        let method = if self.way == "HEAD" { Method::HEAD } else { Method::GET };
        let mut ask = mirror.ask(method, &self.path(repository));
        if self.way == "range" {
            ask = ask.header("range", "bytes=1-3");
        }
        let ask = match self.who {
            Who::Nobody => ask,
            Who::Other => as_(ask, "bob", BOB),
            Who::Revoked => as_(ask, "carol", CAROL),
            Who::AnonymousToken | Who::Owner => {
                let scopes = format!("scope=repository:{repository}:pull&service=pierhead");
                let token = mirror.get(&format!("/token?{scopes}"));
                let token = if self.who == Who::Owner { as_(token, "alice", ALICE) } else { token };
                ask.header("authorization", &bearer(&token.answer().await))
            }
        };
        ask.answer().await
    }

    /// Makes what is asked for, and brings the mirror into its state.
    async fn prepare(&mut self, upstream: &Upstream, mirror: &Mirror) {
        let repository = self.repository.clone();
        upstream.push(&repository, "v1", &self.image);
        upstream.push_manifest(&repository, &self.artifact);
        with_people(upstream, |people| {
            people.let_read("alice", &repository);
            people.let_read("carol", &repository);
        });
        let manifest = format!("/v2/{repository}/manifests/v1");
        let blob = format!("/v2/{repository}/blobs/{}", self.layer().digest);
        if self.state == State::Warm {
            let by_digest = format!("/v2/{repository}/manifests/{}", self.image.manifest.digest);
            for path in [&manifest, &by_digest, &blob] {
                assert_eq!(as_(mirror.get(path), "alice", ALICE).answer().await.status, 200);
            }
        }
        if self.state == State::Filling {
            let gate = Gate::closed();
            assert_eq!(as_(mirror.head(&manifest), "alice", ALICE).answer().await.status, 200);
            upstream.next(1, On::get(&blob), [Fault::HoldAfter(100, gate.clone())]);
            let filling = as_(mirror.get(&blob), "alice", ALICE);
            tokio::spawn(filling.answer());
            upstream.until_asked(1, &On::get(&blob)).await;
            self.gate = Some(gate);
        }
        if self.who == Who::Revoked {
            // She could, and the mirror knows it.
            assert_eq!(as_(mirror.head(&manifest), "carol", CAROL).answer().await.status, 200);
            with_people(upstream, |people| people.revoke("carol", &repository));
        }
    }

    fn wanted(&self) -> u16 {
        match (self.who, self.kind, self.way) {
            (Who::Nobody | Who::AnonymousToken, ..) => 401,
            (Who::Other | Who::Revoked, ..) => 403,
            (Who::Owner, "blob", "range") => 206,
            (Who::Owner, ..) => 200,
        }
    }

    /// In a public repository that holds none of it: what is not named by digest is that
    /// repository's own.
    fn wanted_elsewhere(&self) -> u16 {
        match (self.kind, self.who) {
            ("digest" | "blob", Who::Nobody) => 401,
            ("digest" | "blob", _) => 404,
            _ => 200,
        }
    }

    async fn check(&self, mirror: &Mirror) -> (u16, u16) {
        let own = async {
            let answer = self.ask(mirror, &self.repository);
            // Who may not is told so while the fill is held; who may waits for its end.
            if self.who == Who::Owner {
                let opened = async {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    self.gate.iter().for_each(Gate::open);
                };
                tokio::join!(answer, opened).0
            } else {
                answer.await
            }
        };
        let own = own.await;
        let at = format!("{:?} {:?} {} {}", self.who, self.state, self.way, self.kind);
        assert_eq!(own.status, self.wanted(), "{at}: {own:?}");
        if own.status >= 400 {
            assert!(own.cache().is_empty(), "{at}: {own:?}");
            self.leaks_nothing(&own, &at);
        }
        if own.status == 401 {
            assert_eq!(own.headers.get_all("www-authenticate").iter().count(), 1, "{at}");
        }
        let elsewhere = self.ask(mirror, "open/app").await;
        assert_eq!(elsewhere.status, self.wanted_elsewhere(), "{at} elsewhere: {elsewhere:?}");
        self.leaks_nothing(&elsewhere, &at);
        self.gate.iter().for_each(Gate::open);
        (own.status, elsewhere.status)
    }

    fn leaks_nothing(&self, answer: &Answer, at: &str) {
        let body = String::from_utf8_lossy(&answer.body);
        assert!(!body.contains(&self.artifact.digest), "{at}: {body}");
        assert_ne!(answer.body, self.image.manifest.bytes, "{at}");
        assert_ne!(answer.body, self.layer().bytes, "{at}");
        assert!(answer.header("docker-content-digest") != self.layer().digest, "{at}");
    }
}

/// Gitea and distribution: a path is no way in, and each reads by his own rights, held or not.
#[tokio::test]
async fn cve_2026_27771_distribution_1899_the_matrix_of_who_may_read_what() {
    let (upstream, mirror) = start(401, "").await;
    let mut cells = Vec::new();
    for state in STATES {
        for who in WHO {
            for way in WAYS {
                for kind in KINDS {
                    let seed = cells.len() as u64 + 1;
                    let image = image::oci(seed).layers(&[20_000]).build();
                    let artifact =
                        image::artifact(seed, "application/vnd.test", &image.manifest).build();
                    let repository = format!("private-{seed}/app");
                    let artifact = artifact.manifest;
                    let gate = None;
                    cells.push(Cell { who, state, way, kind, repository, image, artifact, gate });
                }
            }
        }
    }
    for cell in &mut cells {
        cell.prepare(&upstream, &mirror).await;
    }
    tokio::time::sleep(Duration::from_millis(1200)).await; // what was known of rights is over
    let mut table = String::new();
    for cell in &cells {
        if cell.kind == KINDS[0] {
            if cell.way == WAYS[0] {
                writeln!(table, "{:?}, {:?}", cell.state, cell.who).expect("a String takes all");
            }
            write!(table, "  {:6}", cell.way).expect("a String takes all");
        }
        let (own, elsewhere) = cell.check(&mirror).await;
        write!(table, "  {} {own}/{elsewhere}", cell.kind).expect("a String takes all");
        if cell.kind == KINDS[4] {
            table.push('\n');
        }
    }
    println!("who may read what: own repository/another repository, same digest\n{table}");
    assert_eq!(cells.len(), 225);
    let log = mirror.log();
    for secret in [ALICE, BOB, CAROL, "Basic ", "Bearer ey"] {
        assert!(!log.contains(secret), "the log has {secret}");
    }
}

#[tokio::test]
async fn a_registry_that_says_404_to_strangers_is_no_oracle_either() {
    let (upstream, mirror) = start(404, "").await;
    let image = image::oci(1).build();
    upstream.push("alice/app", "v1", &image);
    with_people(&upstream, |people| people.let_read("alice", "alice/app"));
    let held = format!("/v2/alice/app/blobs/{}", image.config.digest);
    let absent = format!("/v2/alice/app/blobs/{}", Content::blob(9, 9).digest);
    assert_eq!(as_(mirror.get(&held), "alice", ALICE).answer().await.status, 200);
    for path in [&held, &absent] {
        let answer = as_(mirror.get(path), "bob", BOB).answer().await;
        answer.assert_error(404, "BLOB_UNKNOWN");
        let answer = mirror.get(path).answer().await;
        answer.assert_error(401, "UNAUTHORIZED");
    }
    let held = as_(mirror.get(&held), "bob", BOB).answer().await;
    let absent = as_(mirror.get(&absent), "bob", BOB).answer().await;
    let told = |answer: &Answer| {
        let names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
        (answer.status, names, answer.error())
    };
    assert_eq!(told(&held), told(&absent));
}

#[tokio::test]
async fn public_repositories_need_no_login() {
    let (upstream, mirror) = start(401, "").await;
    let path = "/v2/open/app/manifests/v1";
    assert_eq!(mirror.get(path).answer().await.status, 200);
    assert_eq!(mirror.get("/v2/").answer().await.status, 401, "there are private routes too");
    let asked = upstream.count(&On::any("/manifests/"));
    for _ in 0..5 {
        assert_eq!(mirror.get(path).answer().await.status, 200);
    }
    assert_eq!(upstream.count(&On::any("/manifests/")), asked, "that it is public is remembered");
    // What was public and is so no longer is closed to nobody-in-particular.
    with_people(&upstream, |people| people.revoke("", "open/app"));
    until("the end of what is public", || mirror.get(path), |answer| answer.status == 401).await;
}

#[tokio::test]
async fn docker_login_is_told_at_once_that_a_password_is_wrong() {
    let (upstream, mirror) = start(401, "").await;
    let login = "/token?account=alice&client_id=docker&offline_token=true&service=pierhead";
    let wrong = as_(mirror.get(login), "alice", "wrong").answer().await;
    wrong.assert_error(401, "UNAUTHORIZED");
    let right = as_(mirror.get(login), "alice", ALICE).answer().await;
    let token = bearer(&right);
    assert!(!String::from_utf8_lossy(&right.body).contains(ALICE));
    let ping = mirror.get("/v2/").header("authorization", &token).answer().await;
    assert_eq!(ping.status, 200);
    assert_eq!(as_(mirror.get("/v2/"), "alice", "wrong").answer().await.status, 401);
    assert_eq!(as_(mirror.get("/v2/"), "alice", ALICE).answer().await.status, 200);
    upstream.stop().await;
    let down = as_(mirror.get(login), "bob", "whatever").answer().await;
    assert_eq!(down.status, 200, "what cannot be judged now is judged when it is used");
}

#[tokio::test]
async fn t5_while_the_upstream_is_down_no_right_arises_and_none_goes_on_unless_told() {
    for (more, extended) in [("", false), (", stale_for: 1h", true)] {
        let (upstream, mirror) = start(401, more).await;
        let image = image::oci(1).build();
        upstream.push("alice/app", "v1", &image);
        with_people(&upstream, |people| people.let_read("alice", "alice/app"));
        let path = format!("/v2/alice/app/manifests/{}", image.manifest.digest);
        assert_eq!(as_(mirror.get(&path), "alice", ALICE).answer().await.status, 200);
        upstream.stop().await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let alice = as_(mirror.get(&path), "alice", ALICE).answer().await;
        assert_eq!(alice.status == 200, extended, "{more}: {alice:?}");
        for user in [Some(("bob", BOB)), None] {
            let ask = mirror.get(&path);
            let ask = user.map_or(ask.clone(), |(user, password)| as_(ask, user, password));
            assert_eq!(ask.answer().await.status, 503, "{user:?}");
        }
        // What was withdrawn meanwhile is gone once the upstream can say so.
        with_people(&upstream, |people| people.revoke("alice", "alice/app"));
        upstream.restart();
        let ask = || as_(mirror.get(&path), "alice", ALICE);
        until("the end of a right", ask, |answer| answer.status == 403).await;
    }
}

/// Of those who join one cold fetch each has been judged by himself.
#[tokio::test]
async fn t4_a_cold_fill_is_joined_only_by_those_who_may() {
    let (upstream, mirror) = start(401, "").await;
    let blob = upstream.blob("alice/app", 1, 500_000);
    with_people(&upstream, |people| people.let_read("alice", "alice/app"));
    let path = format!("/v2/alice/app/blobs/{}", blob.digest);
    let mut asked = Vec::new();
    for n in 0..20 {
        let ask = mirror.get(&path);
        let ask = match n % 3 {
            0 => as_(ask, "alice", ALICE),
            1 => as_(ask, "bob", BOB),
            _ => ask,
        };
        asked.push((n % 3, tokio::spawn(ask.answer())));
    }
    for (who, answer) in asked {
        let answer = answer.await.expect("no panic");
        match who {
            0 => assert!(answer.is(&blob.bytes)),
            1 => assert_eq!(answer.status, 403),
            _ => assert_eq!(answer.status, 401),
        }
    }
    let whole = upstream.asked(&On::get("/blobs/"));
    let whole = whole.iter().filter(|one| one.status.is_some_and(|s| s == 200)).count();
    assert_eq!(whole, 1, "{}", upstream.story());
}

#[tokio::test]
async fn one_upstreams_credentials_never_reach_another() {
    let (one, two) = (people(401).await, people(401).await);
    let mirror = Setup::new()
        .upstream("one.test", &one)
        .with("auth: passthrough")
        .upstream("two.test", &two)
        .with("auth: passthrough\nhosts: [two.mirror.test]")
        .default_upstream("one.test")
        .start()
        .await;
    let path = |upstream: &str| format!("/v2/{upstream}/bob/app/manifests/v1");
    let ask = |upstream: &str, host: &str| {
        as_(mirror.get(&path(upstream)), "bob", BOB).header("host", host)
    };
    let own = mirror.address().to_string();
    assert_eq!(ask("one.test", &own).answer().await.status, 200);
    assert_eq!(ask("two.test", &own).answer().await.status, 401);
    assert_eq!(ask("two.test", "two.mirror.test").answer().await.status, 200);
    assert_eq!(ask("one.test", "two.mirror.test").answer().await.status, 401);
    // A token's credentials go where they were given for, and nowhere else.
    let token =
        "/token?scope=repository:two.test/bob/app:pull&scope=repository:one.test/bob/app:pull";
    let token = bearer(&as_(mirror.get(token), "bob", BOB).answer().await);
    let by_token =
        |upstream: &str| mirror.get(&path(upstream)).header("authorization", &token).answer();
    assert_eq!(by_token("one.test").await.status, 200);
    assert_eq!(by_token("two.test").await.status, 401);
}

/// A right by the shared login is no right of a caller.
#[tokio::test]
async fn t3_shared_credentials_are_another_matter_than_the_callers_own() {
    let upstream = people(401).await;
    let image = image::oci(1).build();
    upstream.push("alice/app", "v1", &image);
    with_people(&upstream, |people| people.let_read("alice", "alice/app"));
    let mut mirror = before(&upstream)
        .with(&format!("auth: {{username: alice, password: {ALICE}}}"))
        .start()
        .await;
    mirror.pull("alice/app", "v1", &image).await;
    mirror.stop().await;
    // The same folder, now by callers' own rights: nobody has inherited anything.
    let file = mirror.folder().join("pierhead.yaml");
    let yaml = std::fs::read_to_string(&file).expect("our own file");
    let yaml =
        yaml.replace(&format!("auth: {{username: alice, password: {ALICE}}}"), "auth: passthrough");
    std::fs::write(&file, yaml).expect("our own file");
    mirror.start().await;
    for path in [
        "/v2/alice/app/manifests/v1".to_owned(),
        format!("/v2/alice/app/blobs/{}", image.config.digest),
    ] {
        assert_eq!(mirror.get(&path).answer().await.status, 401);
        assert_eq!(as_(mirror.get(&path), "bob", BOB).answer().await.status, 403);
        let held = as_(mirror.get(&path), "alice", ALICE).answer().await;
        assert!(held.status == 200 && held.cache().contains("hit"), "{held:?}");
    }
}

#[tokio::test]
async fn t1_a_reference_in_somebody_elses_manifest_proves_nothing() {
    let (upstream, mirror) = start(401, "").await;
    let secret = image::oci(1).build();
    upstream.push("alice/app", "v1", &secret);
    with_people(&upstream, |people| people.let_read("alice", "alice/app"));
    let path = format!("/v2/alice/app/blobs/{}", secret.config.digest);
    assert_eq!(as_(mirror.get(&path), "alice", ALICE).answer().await.status, 200);
    // Bob's own repository names alice's layer without holding it.
    upstream.push_manifest("bob/app", &secret.manifest);
    let named = format!("/v2/bob/app/manifests/{}", secret.manifest.digest);
    assert_eq!(as_(mirror.get(&named), "bob", BOB).answer().await.status, 200);
    let stolen = format!("/v2/bob/app/blobs/{}", secret.config.digest);
    let answer = as_(mirror.get(&stolen), "bob", BOB).answer().await;
    answer.assert_error(404, "BLOB_UNKNOWN");
    assert!(upstream.count(&On::get(&stolen)) > 0, "the upstream was asked");
    let head = as_(mirror.head(&stolen), "bob", BOB).answer().await;
    assert_eq!(head.status, 404);
}
