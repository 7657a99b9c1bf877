//! SIGUSR2: a new binary takes over the sockets and the cache folder, and nobody notices. Where it does
//! not start, the old one goes on.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::clients::{basic, bearer};
use crate::support::client::Lasting;
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content};
use crate::support::mirror::{Mirror, before, run};
use crate::support::push::hosting;
use crate::support::record::On;
use crate::support::soon;
use crate::support::upstream::Upstream;

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

/// Puts another program in the place of the mirror's, as a package manager does: the old one is
/// "(deleted)" from then on.
fn install(mirror: &Mirror, program: &[u8], mode: u32) {
    let new = mirror.folder().join("pierhead.new");
    std::fs::write(&new, program).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::rename(&new, mirror.folder().join("pierhead")).unwrap();
}

fn good() -> Vec<u8> {
    std::fs::read(env!("CARGO_BIN_EXE_pierhead")).unwrap()
}

#[tokio::test]
async fn a_new_binary_takes_over_while_transfers_go_on_to_their_end() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 2_000_000);
    let other = upstream.blob("team/app", 2, 300_000);
    let gate = Gate::closed();
    let slow = On::get(&blob.digest);
    upstream.always(slow.clone(), Fault::HoldAfter(1_000_000, gate.clone()));
    let mut mirror = before(&upstream).own_program().start().await;
    let address = mirror.address();
    let mut idle = Lasting::connect(address).await;
    assert_eq!(idle.get("/v2/").await.unwrap().0, 200);
    let mut reading = mirror.get(&path(&blob)).open().await;
    let first = reading.at_least(1000).await;
    install(&mirror, &good(), 0o755);
    let old = mirror.upgrade().await;
    assert!(mirror.is_there(mirror.id()) && mirror.id() != old);

    // A request on a connection of the old process is answered, and then it is over.
    assert_eq!(idle.get("/v2/").await.unwrap().0, 200);
    assert!(idle.get("/v2/").await.is_err());
    // New ones are answered by the new process. It wants what the old one is filling: each has a file.
    assert!(mirror.get(&path(&other)).answer().await.is(&other.bytes));
    let mut again = mirror.get(&path(&blob)).open().await;
    let begun = again.at_least(1000).await;
    assert_eq!(upstream.count(&slow), 2);
    assert_eq!(mirror.says("take a restart"), 0);
    gate.open();
    for (first, reading) in [(first, reading), (begun, again)] {
        let rest = reading.rest().await;
        assert!(rest.whole && [first, rest.body].concat() == blob.bytes);
    }
    mirror.until_gone(old).await;
    mirror.until_said(1, "the process before has ended").await;
    mirror.until_kept(2).await;
    assert_eq!(std::fs::read_dir(mirror.cache().join("fills")).unwrap().count(), 0);
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    assert_eq!(upstream.count(&slow), 2, "{}", upstream.story());

    // The folder is the new one's: a third finds it taken.
    let yaml = mirror.folder().join("pierhead.yaml");
    let third =
        run(&["serve", "--listen", "127.0.0.1:0", "--config", yaml.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(said.contains("in use by another Pierhead"), "{said}");

    // And once more, from the one to the next.
    let second = mirror.upgrade().await;
    mirror.until_gone(second).await;
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    assert_eq!(mirror.address(), address);
}

#[tokio::test]
async fn a_binary_that_does_not_start_leaves_the_old_one_serving() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let setup = before(&upstream).own_program().raw("server: {upgrade_timeout: 600s}");
    let mut mirror = setup.start().await;
    let served = mirror.id();
    let cases: [(&[u8], u32, &str); 4] = [
        (&good(), 0o644, "cannot be started"),
        (b"not a program", 0o755, "cannot be started"),
        (b"#!/bin/sh\nexit 3\n", 0o755, "before it served"),
        (b"#!/bin/sh\nexec sleep 1000\n", 0o755, "does not serve after 2s"),
    ];
    let mut failed = 0;
    let mut fails = async |mirror: &Mirror, why: &str| {
        mirror.signal(Signal::SIGUSR2);
        failed += 1;
        mirror.until_said(failed, "upgrade failed").await;
        assert!(mirror.log().contains(why), "{why}: {}", mirror.log());
        assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    };
    for (program, mode, why) in cases {
        install(&mirror, program, mode);
        let hangs = why.contains("does not serve");
        if hangs {
            assert!(mirror.reload(|text| text.replace("timeout: 600s", "timeout: 2s")).await);
        }
        fails(&mirror, why).await;
        if hangs {
            assert!(mirror.reload(|text| text.replace("timeout: 2s", "timeout: 600s")).await);
        }
    }
    // A configuration that the new one does not like.
    install(&mirror, &good(), 0o755);
    let yaml = mirror.folder().join("pierhead.yaml");
    let text = std::fs::read_to_string(&yaml).unwrap();
    std::fs::write(&yaml, format!("{text}limts: {{}}\n")).unwrap();
    fails(&mirror, "exit status: 64").await;
    assert!(mirror.log().contains("unknown key `limts`"), "{}", mirror.log());
    std::fs::write(&yaml, text).unwrap();

    assert_eq!(mirror.upgrade().await, served, "the good one takes over after all");
    mirror.until_gone(served).await;
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    assert_eq!(upstream.count(&On::get("/blobs/")), 1);
}

#[tokio::test]
async fn one_upgrade_at_a_time_and_kill_9_of_the_new_process_ends_it() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (0..2).map(|seed| upstream.blob("team/app", seed, 1000)).collect();
    let mut mirror = before(&upstream).own_program().start().await;
    install(&mirror, b"#!/bin/sh\nexec sleep 1000\n", 0o755);
    mirror.signal(Signal::SIGUSR2);
    mirror.until_said(1, "the new process starts").await;
    mirror.signal(Signal::SIGUSR2);
    mirror.until_said(1, "an upgrade is under way; this one is refused").await;
    assert!(mirror.get(&path(&blobs[0])).answer().await.is(&blobs[0].bytes));
    let log = mirror.log();
    let line = log.lines().find(|line| line.contains("the new process starts")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let new = i32::try_from(line["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(new), Signal::SIGKILL).unwrap();
    mirror.until_said(1, "upgrade failed").await;
    assert!(mirror.log().contains("SIGKILL"), "{}", mirror.log());
    assert!(mirror.get(&path(&blobs[1])).answer().await.is(&blobs[1].bytes));
    // An upgrade that is under way does not outlive the process that is told to stop.
    mirror.signal(Signal::SIGUSR2);
    mirror.until_said(2, "the new process starts").await;
    assert_eq!(mirror.stop().await.code(), Some(0));
    let log = mirror.log();
    let line = log.lines().rfind(|line| line.contains("the new process starts")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let exe = PathBuf::from(format!("/proc/{}/exe", line["pid"]));
    soon("the end of the new process", async {
        while std::fs::read_link(&exe).is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn kill_9_of_the_old_process_once_the_new_one_serves_loses_nothing_that_is_held() {
    let upstream = Upstream::start().await;
    let held = upstream.blob("team/app", 1, 300_000);
    let blob = upstream.blob("team/app", 2, 2_000_000);
    let gate = Gate::closed();
    upstream.always(On::get(&blob.digest), Fault::HoldAfter(1_000_000, gate.clone()));
    let mut mirror = before(&upstream).own_program().start().await;
    assert!(mirror.get(&path(&held)).answer().await.is(&held.bytes));
    let mut reading = mirror.get(&path(&blob)).open().await;
    reading.at_least(1000).await;
    let old = mirror.upgrade().await;
    kill(Pid::from_raw(old.try_into().unwrap()), Signal::SIGKILL).unwrap();
    mirror.until_gone(old).await;
    assert!(!reading.rest().await.whole);
    mirror.until_said(1, "the process before has ended").await;
    gate.open();
    upstream.behave();
    assert!(mirror.get(&path(&held)).answer().await.is(&held.bytes));
    // What the old one had of it is gone on with.
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    let asked = upstream.asked(&On::get(&blob.digest));
    assert!(asked.last().unwrap().header("range").starts_with("bytes="), "{}", upstream.story());
    mirror.until_kept(2).await;
}

/// Without `token_key`: what signs tokens is made by each process for itself, and handed over.
#[tokio::test]
async fn nobody_has_to_log_in_anew() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let setup = before(&upstream).own_program();
    let file = setup.folder().join("htpasswd");
    std::fs::write(&file, format!("ci:{}\n", bcrypt::hash("pw", 4).unwrap())).unwrap();
    let rules = format!(
        "clients: {{htpasswd: {}, rules: [{{users: [ci], actions: [pull], repositories: ['**']}}]}}",
        file.display()
    );
    let mut mirror = setup.raw(&rules).start().await;
    let ask = mirror.get("/token?service=pierhead&scope=repository:team/app:pull");
    let token = bearer(&ask.header("authorization", &basic("ci", "pw")).answer().await);
    let old = mirror.upgrade().await;
    let pull = mirror.get("/v2/team/app/manifests/v1").header("authorization", &token);
    assert!(pull.answer().await.is(&image.manifest.bytes));
    mirror.until_gone(old).await;
    // The one after it, too.
    mirror.until_said(1, "the process before has ended").await;
    mirror.upgrade().await;
    let pull = mirror.get("/v2/team/app/manifests/v1").header("authorization", &token);
    assert!(pull.answer().await.is(&image.manifest.bytes));
}

#[tokio::test]
async fn pushes_under_way_go_on_in_the_new_process_and_in_the_old_one() {
    let upstream = Upstream::start().await;
    let mut mirror = hosting(&upstream, "").own_program().start().await;
    let (chunked, whole) = (Content::blob(1, 900_000), Content::blob(2, 500_000));
    let part = |from: usize, to: usize| chunked.bytes.slice(from..to);
    // In pieces: the first to the old process, by a connection that stays; the rest to the new one.
    let location = mirror.begin("team/own").await;
    assert_eq!(mirror.patch(&location, &part(0, 300_000), Some(0)).await.status, 202);
    // In one request, of which half has come when the new process takes over.
    let mut socket = TcpStream::connect(mirror.address()).await.unwrap();
    let head = format!(
        "POST /v2/team/own/blobs/uploads/?digest={} HTTP/1.1\r\nHost: a\r\nContent-Type: \
         application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        whole.digest,
        whole.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&whole.bytes[..250_000]).await.unwrap();

    let old = mirror.upgrade().await;
    assert_eq!(mirror.patch(&location, &part(300_000, 600_000), Some(300_000)).await.status, 202);
    assert_eq!(mirror.put(&location, &chunked.digest, &part(600_000, 900_000)).await.status, 201);
    assert!(mirror.is_there(old), "it has a push to finish");
    socket.write_all(&whole.bytes[250_000..]).await.unwrap();
    let mut answer = [0; 12];
    soon("the answer to a push", socket.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    drop(socket);
    let get = |blob: &Content| mirror.get(&format!("/v2/team/own/blobs/{}", blob.digest));
    assert!(get(&whole).answer().await.is(&whole.bytes), "what the old one keeps is seen at once");
    assert!(get(&chunked).answer().await.is(&chunked.bytes));
    mirror.until_gone(old).await;
    mirror.until_said(1, "the process before has ended").await;

    let image = image::oci(3).build();
    mirror.push("team/own", "v1", &image).await;
    assert_eq!(mirror.tags("team/own").await, ["v1"]);
    assert_eq!(mirror.gc("{}").await["blobs"], 0, "nothing was unknown to anybody");
    assert_eq!(upstream.count(&On::any("/")), 0);
}

#[tokio::test]
async fn bounds_hold_and_hosted_content_stays_while_two_processes_share_the_folder() {
    let upstream = Upstream::start().await;
    let gate = Gate::closed();
    let large = upstream.blob("team/app", 1, 2_000_000);
    upstream.always(On::get(&large.digest), Fault::HoldAfter(100_000, gate.clone()));
    let blobs: Vec<_> = (10..30).map(|seed| upstream.blob("team/app", seed, 400_000)).collect();
    let setup = before(&upstream).own_program().cache("max_size: 5MiB");
    let mut mirror = setup.raw("hosted: {repositories: [own]}").start().await;
    let own = Content::blob(5, 1_000_000);
    mirror.push_blob("own", &own).await;
    let mut reading = mirror.get(&path(&large)).open().await;
    let first = reading.at_least(1000).await;
    let old = mirror.upgrade().await;
    mirror.until_said(1, "the process before takes nobody any more").await;
    for blob in &blobs {
        assert!(mirror.get(&path(blob)).answer().await.is(&blob.bytes));
        let bytes = mirror.folder_bytes();
        assert!(bytes < 6 << 20, "{bytes} bytes"); // one object of slack
    }
    gate.open();
    let rest = reading.rest().await;
    assert!(rest.whole && [first, rest.body].concat() == large.bytes);
    mirror.until_gone(old).await;
    mirror.until_said(1, "the process before has ended").await;
    for blob in &blobs {
        assert!(mirror.get(&path(blob)).answer().await.is(&blob.bytes));
    }
    soon("the bound", async {
        while mirror.folder_bytes() > (5 << 20) + (1 << 19) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let kept = mirror.get(&format!("/v2/own/blobs/{}", own.digest)).answer().await;
    assert!(kept.is(&own.bytes), "hosted content is not evicted");
    mirror.check_store();
}

#[tokio::test]
async fn a_socket_that_systemd_holds_is_taken_up_and_outlives_the_mirror() {
    let upstream = Upstream::start().await;
    let blob = upstream.blob("team/app", 1, 1000);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let ours = socket.try_clone().unwrap();
    // A client that comes before the mirror waits, and is not refused.
    let early = std::net::TcpStream::connect(address).unwrap();
    let setup = before(&upstream).listen(&address.to_string()).activated(socket);
    let mut mirror = setup.own_program().start().await;
    assert_eq!(mirror.address(), address);
    let mut early = TcpStream::from_std({
        early.set_nonblocking(true).unwrap();
        early
    })
    .unwrap();
    early.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("an answer", early.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    // It goes on to the next process like any other, and stays open when the last one ends.
    let old = mirror.upgrade().await;
    mirror.until_gone(old).await;
    assert!(mirror.get(&path(&blob)).answer().await.is(&blob.bytes));
    let last = mirror.id();
    mirror.signal(Signal::SIGTERM);
    mirror.until_gone(last).await;
    assert!(TcpStream::connect(address).await.is_ok());
    drop(ours);
}
