//! kill -9 at any moment of a storm of pulls: nothing complete is lost, nothing wrong is kept.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;

use crate::support::image::{self, Content, Image};
use crate::support::mirror::{Mirror, before, files_under};
use crate::support::upstream::Upstream;

const IMAGES: u64 = 8;

/// Rounds of pulling, killing and starting; `PIERHEAD_CRASHES=200` is the number.
fn rounds() -> u64 {
    std::env::var("PIERHEAD_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

fn files(mirror: &Mirror, folder: &str) -> Vec<std::path::PathBuf> {
    files_under(&mirror.cache().join(folder))
}

fn path(blob: &Content) -> String {
    format!("/v2/team/app/blobs/{}", blob.digest)
}

/// Pulls all that is not yet complete until it is killed, and notes what was kept by then.
async fn storm(mirror: &Mirror, images: &[(String, Image)], patience: Duration) {
    let pulls = images.iter().flat_map(|(tag, image)| {
        let manifest = format!("/v2/team/app/manifests/{tag}");
        std::iter::once(manifest).chain(image.blobs().map(path))
    });
    let asks = pulls.map(|path| mirror.get(&path).attempt());
    // Whatever is under way then is what the kill meets.
    let _cut = tokio::time::timeout(patience, join_all(asks)).await;
}

fn kept(mirror: &Mirror) -> HashSet<String> {
    let name = |file: &std::path::PathBuf| {
        file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    files(mirror, "blobs").iter().map(name).collect()
}

#[tokio::test]
async fn killed_at_random_moments_it_loses_nothing_complete_and_keeps_nothing_wrong() {
    let upstream = Upstream::start().await;
    let mut state = 42_u64;
    let mut images = Vec::new();
    let mut mirror = before(&upstream).cache("scrub_rate: 0").start().await;
    for round in 0..rounds() {
        // New content now and then, so that there is always something under way.
        if round % 10 == 0 {
            images.clear();
            for n in 0..IMAGES {
                let recipe = image::oci(1000 + round * IMAGES + n);
                let image = recipe.layers(&[700_000, 200_000, 4000]).build();
                let tag = format!("v{round}-{n}");
                upstream.push("team/app", &tag, &image);
                images.push((tag, image));
            }
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        storm(&mirror, &images, Duration::from_millis(state >> 57)).await;
        let before = kept(&mirror);
        mirror.kill().await;
        let after = kept(&mirror);
        assert!(before.is_subset(&after), "round {round}: something kept has gone");
        mirror.start().await;
        mirror.check_store();
        let complete = images.iter().flat_map(|(_, image)| image.blobs());
        let complete = complete.filter(|b| after.contains(&b.digest["sha256:".len()..]));
        for blob in complete {
            let answer = mirror.get(&path(blob)).answer().await;
            assert!(answer.is(&blob.bytes), "round {round}: {answer:?}");
            let word = answer.cache();
            assert!(word.starts_with("pierhead; hit"), "round {round}: {word}");
        }
        let temporary = files(&mirror, "fills")
            .into_iter()
            .filter(|f| f.file_name().unwrap().to_string_lossy().starts_with("tmp-"));
        assert_eq!(temporary.count(), 0, "round {round}: a start leaves no temporary files");
    }
    // Whatever is left over belongs to what can still be asked for, and goes when that comes.
    for (tag, image) in &images {
        mirror.pull("team/app", tag, image).await;
    }
    let hexes: Vec<_> = images
        .iter()
        .flat_map(|(_, image)| image.blobs())
        .map(|b| b.digest.replace(':', "-"))
        .collect();
    let leftovers = || {
        let left = files(&mirror, "fills");
        left.iter().filter(|f| hexes.iter().any(|h| f.ends_with(h))).count()
    };
    crate::support::soon("all fills to be kept", async {
        while leftovers() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    mirror.check_store();
}

/// A temporary file of a record, and a record cut in half by a power loss.
#[tokio::test]
async fn half_written_records_are_asked_for_again_and_said() {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    let mut mirror = before(&upstream).with("tag_ttl: 1h").start().await;
    mirror.pull("team/app", "v1", &image).await;
    mirror.until_kept(4).await;
    mirror.kill().await;
    for record in files(&mirror, "repos") {
        let bytes = std::fs::read(&record).unwrap();
        std::fs::write(&record, &bytes[..bytes.len() / 2]).unwrap();
    }
    for name in ["tmp-1-1", "tmp-99-3"] {
        std::fs::write(mirror.cache().join("fills").join(name), "half").unwrap();
    }
    mirror.start().await;
    mirror.pull("team/app", "v1", &image).await;
    assert!(mirror.log().contains("a record cannot be read"), "{}", mirror.log());
    assert_eq!(files(&mirror, "fills").len(), 0);
    let words = mirror.pull("team/app", "v1", &image).await;
    assert!(words.iter().all(|word| word.starts_with("pierhead; hit")), "{words:?}");
}
