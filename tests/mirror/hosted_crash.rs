//! kill -9 at any moment of a push: what was acknowledged is there, what was not is not half there.

use std::time::Duration;

use hyper::Method;

use crate::support::image::{self, Image, artifact};
use crate::support::mirror::Mirror;
use crate::support::push::hosting;
use crate::support::upstream::Upstream;

/// `PIERHEAD_TEST_KILLS` asks for more.
fn kills() -> u64 {
    std::env::var("PIERHEAD_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

/// Pushes an image and something attached to it; says what was acknowledged.
async fn push(mirror: &Mirror, tag: &str, images: [&Image; 2]) -> [bool; 2] {
    let mut done = [false; 2];
    for (number, image) in images.into_iter().enumerate() {
        for blob in image.blobs() {
            let path = format!("/v2/app/blobs/uploads/?digest={}", blob.digest);
            let post = mirror.ask(Method::POST, &path).body(blob.bytes.clone());
            if post.status().await != Some(201) {
                return done;
            }
        }
        let reference = if number == 0 { tag } else { &image.manifest.digest };
        let put = mirror.manifest("app", reference, &image.manifest);
        if put.status().await != Some(201) {
            return done;
        }
        done[number] = true;
    }
    done
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_nothing_half_done() {
    let upstream = Upstream::start().await;
    let mut mirror = hosting(&upstream, "gc_grace: 0s").start().await;
    let mut kept: Vec<(String, Image, Image)> = Vec::new();
    for round in 0..kills() {
        let image = image::oci(10 * round).layers(&[300_000, 1000]).build();
        let attached = artifact(10 * round + 5, "application/x.sign", &image.manifest).build();
        let tag = format!("v{round}");
        let done = {
            let pushing = push(&mirror, &tag, [&image, &attached]);
            tokio::pin!(pushing);
            let moment = Duration::from_micros(1500 + round * 7919 % 60_000);
            tokio::select! {
                done = &mut pushing => Some(done),
                () = tokio::time::sleep(moment) => None,
            }
        };
        mirror.kill().await;
        mirror.start().await;
        mirror.check_store();
        if done == Some([true, true]) {
            kept.push((tag.clone(), image.clone(), attached.clone()));
        }
        let tagged = mirror.get(&format!("/v2/app/manifests/{tag}")).answer().await;
        if tagged.status == 200 {
            mirror.pull("app", &tag, &image).await; // there means: there with all that belongs to it
        }
        let path = format!("/v2/app/referrers/{}", image.manifest.digest);
        let listed = mirror.get(&path).answer().await;
        if !listed.json()["manifests"].as_array().unwrap().is_empty() {
            mirror.pull("app", &attached.manifest.digest, &attached).await;
        }
        // The client tries again, and all is well.
        assert_eq!(push(&mirror, &tag, [&image, &attached]).await, [true, true], "round {round}");
        kept.push((tag, image, attached));
        mirror.gc("{}").await;
        for (tag, image, attached) in kept.iter().rev().take(3) {
            mirror.pull("app", tag, image).await;
            mirror.pull("app", &attached.manifest.digest, attached).await;
        }
    }
    for (tag, image, _) in &kept {
        mirror.pull("app", tag, image).await;
    }
    let report = mirror.gc("{}").await;
    assert_eq!((report["manifests"].as_u64(), report["blobs"].as_u64()), (Some(0), Some(0)));
}
