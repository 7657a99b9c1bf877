//! Many images for many clients at the same moment: each costs the upstream one download, and neither
//! those who wait for downloads nor those who are served from what is held hold up the other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;

use crate::support::client::Lasting;
use crate::support::cold::MIB;
use crate::support::fault::{Fault, Gate};
use crate::support::image::{self, Content, Image};
use crate::support::mirror::{Mirror, before};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const IMAGES: usize = 200;
const CLIENTS: usize = 50;
/// Clients that pull the same image, at the same moment.
const SHARED_BY: usize = 3;

/// Pushes an image with these layers under a tag of its own.
fn pushed(upstream: &Upstream, number: usize, layers: &[usize]) -> (String, Image) {
    let image = image::oci(number as u64).layers(layers).build();
    let tag = format!("v{number}");
    upstream.push("team/app", &tag, &image);
    (tag, image)
}

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

/// Asks for what is held on one connection until it is told to stop; how often it was answered.
async fn hit_until(mirror: &Mirror, image: &Image, stop: &AtomicBool) -> u64 {
    let manifest = format!("/v2/team/app/manifests/{}", image.manifest.digest);
    let blobs = image.blobs().map(|blob| (path(blob), blob));
    let wanted: Vec<_> = std::iter::once((manifest, &image.manifest)).chain(blobs).collect();
    let mut client = Lasting::connect(mirror.address()).await;
    let mut answered = 0;
    for (path, content) in wanted.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (status, body) = client.get(path).await.expect("an answer");
        assert!(status == 200 && body == content.bytes, "{path}: {status}, {} bytes", body.len());
        answered += 1;
    }
    answered
}

#[tokio::test]
async fn two_hundred_images_for_fifty_clients_are_downloaded_once_beside_endless_hits() {
    let upstream = Upstream::start().await;
    let images: Vec<_> =
        (0..IMAGES).map(|n| pushed(&upstream, n, &[40_000, 700, 20_000])).collect();
    let (tag, held) = pushed(&upstream, IMAGES, &[MIB, 5000]);
    let mirror = before(&upstream).start().await;
    mirror.pull("team/app", &tag, &held).await;
    mirror.until_kept(4).await; // the manifest, the configuration, two layers
    let earlier = (upstream.asked(&On::get("/blobs/")).len(), upstream.sent(&On::get("/blobs/")));

    let stop = AtomicBool::new(false);
    let joined = AtomicUsize::new(0);
    let client = async |number: usize| {
        for pull in (number..IMAGES * SHARED_BY).step_by(CLIENTS) {
            let (tag, image) = &images[pull / SHARED_BY];
            let words = mirror.pull("team/app", tag, image).await;
            let collapsed = words.iter().filter(|word| word.contains("collapsed")).count();
            joined.fetch_add(collapsed, Ordering::Relaxed);
        }
    };
    let pulls = async {
        join_all((0..CLIENTS).map(client)).await;
        stop.store(true, Ordering::Relaxed);
    };
    let hits = join_all((0..4).map(|_| hit_until(&mirror, &held, &stop)));
    let ((), hits) = tokio::join!(pulls, hits);
    println!("answers from what is held meanwhile, by connection: {hits:?}");
    assert!(hits.iter().all(|&answered| answered > 0), "{hits:?}");

    let blobs = images.iter().flat_map(|(_, image)| image.blobs());
    let (count, bytes) = blobs.fold((0, 0), |(n, bytes), blob| (n + 1, bytes + blob.len()));
    let asked = upstream.asked(&On::get("/blobs/")).len() - earlier.0;
    assert_eq!((asked, upstream.sent(&On::get("/blobs/")) - earlier.1), (count, bytes));
    assert!(joined.load(Ordering::Relaxed) > 0, "nobody pulled what another was pulling");
    mirror.check_store();
}

#[tokio::test]
async fn hits_and_manifests_go_on_while_every_turn_to_download_is_taken() {
    let upstream = Upstream::start().await;
    let waiting: Vec<_> = (0..150).map(|n| upstream.blob("team/app", n, 50_000)).collect();
    let (tag, held) = pushed(&upstream, 1000, &[4 * MIB, 5000]);
    let (new_tag, new) = pushed(&upstream, 1001, &[100]);
    let mirror = before(&upstream).with("prefetch: false").start().await;
    mirror.pull("team/app", &tag, &held).await;
    mirror.until_kept(4).await; // the manifest, the configuration, two layers
    let earlier = upstream.asked(&On::get("/blobs/")).len();
    let gate = Gate::closed();
    for blob in &waiting {
        upstream.always(On::get(&blob.digest), Fault::HoldAfter(10, gate.clone()));
    }
    let downloads: Vec<_> =
        waiting.iter().map(|blob| tokio::spawn(mirror.get(&path(blob)).answer())).collect();
    // As many as go on at once before one upstream, `FILLS_MAX`; the others wait behind them.
    upstream.until_asked(earlier + 128, &On::get("/blobs/")).await;

    let stop = AtomicBool::new(false);
    let tags = async {
        let manifest = format!("/v2/team/app/manifests/{new_tag}");
        let answer = mirror.get(&manifest).answer().await;
        assert!(answer.is(&new.manifest.bytes), "{} {:?}", answer.status, answer.headers);
        for _ in 0..3 {
            mirror.pull("team/app", &tag, &held).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(hit_until(&mirror, &held, &stop), tags);
    assert!(downloads.iter().all(|download| !download.is_finished()), "they were held all along");

    gate.open();
    for (download, blob) in downloads.into_iter().zip(&waiting) {
        assert!(download.await.expect("no panic").is(&blob.bytes));
    }
    mirror.check_store();
}
