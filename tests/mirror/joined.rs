//! What one caller is refused says nothing of another who has joined him.

use std::time::Duration;

use crate::clients::basic;
use crate::support::auth::{Account, Auth, People};
use crate::support::client::{Answer, Ask};
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, before};
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

const USERS: [&str; 2] = ["alice", "bob"];

fn as_user(ask: Ask, user: &str) -> Ask {
    ask.header("authorization", &basic(user, &format!("{user}-pw")))
}

/// A repository that both may read, and a mirror that has seen them do so.
async fn start() -> (Upstream, Mirror, Image) {
    let upstream = Upstream::start().await;
    let accounts = USERS.map(|user| Account::new(user, &format!("{user}-pw")));
    let mut people = People::new(&accounts);
    for user in USERS {
        people.let_read(user, "team/app");
    }
    upstream.set(|registry| registry.auth = Auth::People(people));
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream)
        .with("auth: {passthrough: {allow_ttl: 5m}}\nprefetch: false\nresponse_timeout: 60s")
        .start()
        .await;
    for user in USERS {
        let seen = as_user(mirror.get("/v2/team/app/manifests/v1"), user).answer().await;
        assert_eq!(seen.status, 200, "{seen:?}");
    }
    (upstream, mirror, image)
}

/// Alice asks and is refused, after Bob has asked for the same.
async fn refused_first(
    upstream: &Upstream,
    mirror: &Mirror,
    path: &str,
    status: u16,
    is_fill: bool,
) -> (Answer, Answer) {
    let (gate, on) = (Gate::closed(), On::get(path));
    let mut faults = vec![Fault::Status(status), Fault::HoldHead(gate.clone())];
    if status == 429 {
        faults.push(Fault::Header("retry-after", "3600".to_owned()));
    }
    upstream.next(1, on.clone(), faults);
    let before = upstream.count(&on);
    let alice = tokio::spawn(as_user(mirror.get(path), "alice").answer());
    upstream.until_asked(before + 1, &on).await;
    let bob = tokio::spawn(as_user(mirror.get(path), "bob").answer());
    if is_fill {
        soon("bob to join", async {
            while mirror.metric("pierhead_fill_waiters", &[]).await < 2.0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    } else {
        // Joining a manifest is seen nowhere; where Bob comes too late the same has to hold.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    gate.open();
    (alice.await.expect("no panic"), bob.await.expect("no panic"))
}

#[tokio::test]
async fn a_download_that_is_refused_to_its_leader_goes_on_for_who_may() {
    let (upstream, mirror, _) = start().await;
    for (seed, status, told) in [(1, 403, 403), (2, 404, 404)] {
        let blob = upstream.blob("team/app", seed, 300_000);
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        let (alice, bob) = refused_first(&upstream, &mirror, &path, status, true).await;
        assert_eq!(alice.status, told, "{alice:?}");
        assert!(bob.is(&blob.bytes), "{status}: {} {:?}", bob.status, bob.headers);
    }
}

#[tokio::test]
async fn a_manifest_that_is_refused_to_its_leader_is_had_by_who_may() {
    let (upstream, mirror, _) = start().await;
    for (seed, status) in [(11, 403), (12, 404)] {
        let image = image::oci(seed).build();
        upstream.push("team/app", &format!("t{seed}"), &image);
        let path = format!("/v2/team/app/manifests/t{seed}");
        let (alice, bob) = refused_first(&upstream, &mirror, &path, status, false).await;
        assert_eq!(alice.status, status, "{alice:?}");
        assert!(bob.is(&image.manifest.bytes), "{status} {}", bob.status);
    }
    for (seed, status) in [(21, 403), (22, 404)] {
        let image = image::oci(seed).build();
        upstream.push("team/app", "moved", &image);
        let path = format!("/v2/team/app/manifests/{}", image.manifest.digest);
        let (alice, bob) = refused_first(&upstream, &mirror, &path, status, false).await;
        assert_eq!(alice.status, status, "{alice:?}");
        assert!(bob.is(&image.manifest.bytes), "{status} {}", bob.status);
    }
}

#[tokio::test]
async fn that_something_is_not_there_for_one_is_not_said_to_another() {
    let (upstream, mirror, _) = start().await;
    let image = image::oci(31).build();
    upstream.push("team/app", "late", &image);
    let path = format!("/v2/team/app/manifests/{}", image.manifest.digest);
    upstream.next(1, On::get(&path), [Fault::Status(404)]);
    assert_eq!(as_user(mirror.get(&path), "alice").answer().await.status, 404);
    let bob = as_user(mirror.get(&path), "bob").answer().await;
    assert!(bob.is(&image.manifest.bytes), "{bob:?}");
}

#[tokio::test]
async fn a_limit_of_one_callers_credentials_pauses_nobody_else() {
    let (upstream, mirror, _) = start().await;
    let blob = upstream.blob("team/app", 41, 300_000);
    let path = format!("/v2/team/app/blobs/{}", blob.digest);
    let (alice, bob) = refused_first(&upstream, &mirror, &path, 429, true).await;
    // Docker reads 429 as an end, so some clients are told 503; what counts is for how long.
    let limited =
        |told: &Answer| [429, 503].contains(&told.status) && told.header("retry-after").len() == 4;
    assert!(limited(&alice), "{alice:?}");
    assert!(bob.is(&blob.bytes), "{} {:?}", bob.status, bob.headers);
    // Hers lasts, and is told without asking; his is none.
    let next = upstream.blob("team/app", 42, 1000);
    let path = format!("/v2/team/app/blobs/{}", next.digest);
    for _ in 0..3 {
        let told = as_user(mirror.get(&path), "alice").answer().await;
        assert!(limited(&told), "{told:?}");
    }
    assert_eq!(upstream.count(&On::any(&next.digest)), 0, "{}", upstream.story());
    let bob = as_user(mirror.get(&path), "bob").answer().await;
    assert!(bob.is(&next.bytes), "{bob:?}");
    // And what is held is hers all the same.
    assert!(as_user(mirror.get(&path), "alice").answer().await.is(&next.bytes));
}
