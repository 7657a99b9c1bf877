//! What goes wrong upstream and is never heard of: cuts, stalls, dead endpoints; and the manners
//! that keep much from going wrong.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::cold::Cold;
use crate::support::fault::Fault;
use crate::support::image::{self, Content};
use crate::support::mirror::{NAME, Setup, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const MIB: usize = 1024 * 1024;

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

#[tokio::test]
async fn a_blob_that_is_cut_ten_times_comes_whole_in_one_go_and_costs_little_more() {
    let cold = Cold::start(64 * MIB).await;
    // Of the 64 MiB still to come each time, so that ten cuts fall within them.
    let cuts = [5_100_001, 17, 9_876_543, 1_048_576, 65_535, 7_000_003, 1, 12_345_678, 333_333, 99];
    for cut in cuts {
        cold.upstream.next(1, On::get("/blobs/"), [Fault::CutAfter(cut)]);
    }
    assert!(cold.mirror.get(&cold.path).open().await.brings(&cold.blob.bytes).await);
    let sent = cold.upstream.sent(&On::get("/blobs/"));
    assert!(sent <= 64 * MIB as u64 * 105 / 100, "{sent}: {}", cold.upstream.story());
    assert_eq!(cold.upstream.count(&On::get("/blobs/")), 11, "{}", cold.upstream.story());
}

#[tokio::test]
async fn an_endpoint_that_answers_well_and_breaks_off_at_once_is_left_for_the_next() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let blob = first.blob("team/app", 1, 4 * MIB);
    second.push_blob("team/app", &blob);
    first.next(1, On::get("/blobs/"), [Fault::CutAfter(MIB as u64)]);
    first.next(1000, On::get("/blobs/"), [Fault::CutAfter(0)]);
    let mirror = Setup::new().endpoints(NAME, &[&first.url(), &second.url()]).start().await;
    let answer = mirror.get(&path(&blob)).answer().await;
    assert!(answer.is(&blob.bytes), "{}{}", first.story(), second.story());
    let sent = first.sent(&On::get("/blobs/")) + second.sent(&On::get("/blobs/"));
    assert!(sent <= 4 * MIB as u64 * 105 / 100, "{sent}");
    assert!(second.asked(&On::get("/blobs/"))[0].header("range").starts_with("bytes="));
}

/// Nothing waits for the stalled one but those who want it.
#[tokio::test]
async fn an_upstream_that_stalls_blocks_nobody_else() {
    let (stalled, well) = (Upstream::start().await, Upstream::start().await);
    let held = stalled.blob("team/app", 1, MIB);
    let other = stalled.blob("team/app", 2, MIB);
    let image = image::oci(3).build();
    well.push("team/app", "v1", &image);
    stalled.always(On::get(&held.digest), Fault::StallAfter(1000));
    let mirror = before(&stalled).upstream("other.test", &well).start().await;
    let waiting = mirror.get(&path(&held)).open().await;
    let started = Instant::now();
    assert!(mirror.get(&path(&other)).answer().await.is(&other.bytes));
    let answer = mirror.get("/v2/team/app/manifests/v1?ns=other.test").answer().await;
    assert!(answer.is(&image.manifest.bytes));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    drop(waiting);
}

#[tokio::test]
async fn transfers_share_the_bandwidth_and_leave_a_place_to_short_questions() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (1..=4).map(|seed| upstream.blob("team/app", seed, MIB)).collect();
    let image = image::oci(9).build();
    upstream.push("team/app", "v1", &image);
    let mirror = before(&upstream).with("bandwidth: 2MiB").with("max_connections: 3").start().await;
    let started = Instant::now();
    let pulls = join_all(blobs.iter().map(async |blob| {
        assert!(mirror.get(&path(blob)).answer().await.is(&blob.bytes));
        started.elapsed()
    }));
    let tag = async {
        upstream.until_asked(2, &On::get("/blobs/")).await;
        let answer = mirror.get("/v2/team/app/manifests/v1").answer().await;
        assert!(answer.is(&image.manifest.bytes));
        started.elapsed()
    };
    let (pulls, tag) = tokio::join!(pulls, tag);
    let last = pulls.into_iter().max().unwrap();
    assert!(last >= Duration::from_millis(1700), "4 MiB at 2 MiB/s took {last:?}");
    assert!(tag < last, "the tag came before the last layer: {tag:?}, {last:?}");
}

#[tokio::test]
async fn a_proxy_is_used_where_it_is_configured_or_in_the_environment() {
    for by_environment in [true, false] {
        let proxy = Upstream::start().await;
        let image = image::oci(1).build();
        proxy.push("team/app", "v1", &image);
        let setup = Setup::new().endpoints(NAME, &["http://registry.invalid"]);
        let setup = if by_environment {
            setup.env("http_proxy", &proxy.url())
        } else {
            setup.with(&format!("proxy: {}", proxy.url()))
        };
        let mirror = setup.start().await;
        mirror.pull("team/app", "v1", &image).await;
        let asked = proxy.asked(&On::any("/v2/"));
        assert!(asked.iter().all(|one| one.header("host") == "registry.invalid"), "{asked:?}");
    }
}
