//! What is being filled, and who waits, as an operator sees it.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::cold::{Cold, MIB, blobs};
use crate::support::fault::{Fault, Gate};
use crate::support::image;
use crate::support::mirror::{Mirror, NAME, before, run, until};
use crate::support::record::On;
use crate::support::upstream::Upstream;

/// The fills that are told of, once they satisfy `done`.
async fn fills(what: &str, mirror: &Mirror, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let list = |told: &Value| told["fills"].as_array().cloned().unwrap_or_default();
    let told = until(what, || mirror.admin("/api/fills"), |a| done(&list(&a.json()))).await.json();
    assert!(told["count"].as_u64() >= Some(list(&told).len() as u64), "{told}");
    list(&told)
}

fn is_at(stage: &str) -> impl Fn(&Value) -> bool {
    move |fill| fill["stage"] == stage
}

#[tokio::test]
async fn a_fill_tells_how_far_it_is_and_how_many_wait() {
    let cold = Cold::with(MIB, "").await;
    let (head, body) = (Gate::closed(), Gate::closed());
    cold.upstream.always(blobs(), Fault::HoldHead(head.clone()));
    cold.upstream.always(blobs(), Fault::HoldAfter(500_000, body.clone()));
    assert!(fills("nothing", &cold.mirror, <[Value]>::is_empty).await.is_empty());
    let opened = [(); 2].map(|()| tokio::spawn(cold.mirror.get(&cold.path).open()));
    let asking = fills("two to wait for a head", &cold.mirror, |fills| {
        fills.iter().any(|fill| fill["waiters"] == 2 && fill["stage"] == "asking")
    });
    let asking = &asking.await[0];
    assert_eq!((&asking["total_bytes"], &asking["bytes"]), (&Value::Null, &json!(0)));
    assert_eq!(asking["transfers"], 0);
    head.open();
    let came = fills("half of the blob", &cold.mirror, |f| f.iter().any(|f| f["bytes"] == 500_000));
    let came = &came.await[0];
    assert_eq!((&came["digest"], &came["stage"]), (&json!(cold.blob.digest), &json!("fetching")));
    assert_eq!((&came["upstream"], &came["repository"]), (&json!(NAME), &json!("team/app")));
    assert_eq!((&came["total_bytes"], &came["transfers"]), (&json!(MIB), &json!(1)));
    assert_eq!((&came["why"], &came["waiters"]), (&json!("client"), &json!(2)));
    assert!(came["seconds"].as_f64() >= asking["seconds"].as_f64(), "{came} {asking}");
    let readings = join_all(opened).await;
    body.open();
    for reading in readings {
        let whole = reading.unwrap().brings(&cold.blob.bytes).await;
        assert!(whole, "{}", cold.upstream.story());
    }
    fills("the end", &cold.mirror, <[Value]>::is_empty).await;
}

#[tokio::test]
async fn parts_that_come_ahead_of_the_front_are_counted() {
    // Over one connection it would take a quarter of a minute.
    let cold = Cold::with(96 * MIB, "").await;
    cold.upstream.always(blobs(), Fault::Throttle(6 * MIB as u64));
    let reading = cold.mirror.get(&cold.path).open().await;
    let parts = fills("several transfers", &cold.mirror, |f| {
        f.iter().any(|f| f["transfers"].as_u64() >= Some(2))
    });
    let before = parts.await[0]["bytes"].as_u64().unwrap();
    let more =
        fills("more bytes", &cold.mirror, |f| f.iter().any(|f| f["bytes"].as_u64() > Some(before)));
    let more = &more.await[0];
    assert!(more["bytes"].as_u64() <= more["total_bytes"].as_u64(), "{more}");
    assert!(reading.brings(&cold.blob.bytes).await, "{}", cold.upstream.story());
}

#[tokio::test]
async fn what_is_fetched_ahead_is_told_apart_and_keeps_nobody_waiting() {
    let image = image::oci(1).layers(&[300_000, 200_000, 150_000]).build();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "v1", &image);
    let gate = Gate::closed();
    for layer in &image.layers {
        upstream.always(On::get(&layer.digest), Fault::HoldAfter(1000, gate.clone()));
    }
    let mirror = before(&upstream).start().await;
    mirror.get("/v2/team/app/manifests/v1").answer().await;
    let layer = format!("/v2/team/app/blobs/{}", image.layers[0].digest);
    let reading = mirror.get(&layer).open().await;
    let three = fills("three fills", &mirror, |f| f.len() == 3 && f.iter().all(is_at("fetching")));
    for fill in three.await {
        let (why, waiters) = if fill["digest"] == json!(image.layers[0].digest) {
            ("client", 1)
        } else {
            ("prefetch", 0)
        };
        assert_eq!((&fill["why"], &fill["waiters"]), (&json!(why), &json!(waiters)), "{fill}");
    }
    let waiters = mirror.metric("pierhead_fill_waiters", &[]).await;
    assert!((0.5..1.5).contains(&waiters), "{waiters}");
    gate.open();
    assert!(reading.brings(&image.layers[0].bytes).await);
    mirror.until_kept(4).await;
}

#[tokio::test]
async fn one_too_many_is_seen_to_wait_for_its_turn() {
    const TURNS: usize = 128;
    let cold = Cold::with(1000, "").await;
    let others: Vec<_> = (0..TURNS as u64)
        .map(|seed| cold.upstream.blob("team/app", 2 + seed, 1000).digest)
        .map(|digest| format!("/v2/team/app/blobs/{digest}"))
        .collect();
    let gate = Gate::closed();
    cold.upstream.always(blobs(), Fault::HoldHead(gate.clone()));
    let asked: Vec<_> =
        others.iter().map(|path| tokio::spawn(cold.mirror.get(path).answer())).collect();
    fills("all turns taken", &cold.mirror, |f| {
        f.iter().filter(|f| is_at("asking")(f)).count() == TURNS
    })
    .await;
    let last = tokio::spawn(cold.mirror.get(&cold.path).answer());
    let all = fills("one in the queue", &cold.mirror, |f| f.iter().any(is_at("queued"))).await;
    assert_eq!(all.len(), TURNS + 1);
    assert_eq!(all[TURNS]["digest"], json!(cold.blob.digest), "the oldest come first");
    assert!(all[..TURNS].iter().all(is_at("asking")));
    let page = cold.mirror.admin("/api/fills?n=5").answer().await.json();
    assert_eq!((page["fills"].as_array().unwrap().len(), &page["count"]), (5, &json!(129)));
    gate.open();
    assert!(last.await.unwrap().is(&cold.blob.bytes));
    assert!(join_all(asked).await.into_iter().all(|answer| answer.unwrap().status == 200));
}

#[tokio::test]
async fn the_command_shows_them_as_a_table_and_as_json() {
    let cold = Cold::with(MIB, "").await;
    let gate = Gate::closed();
    cold.upstream.always(blobs(), Fault::HoldAfter(500_000, gate.clone()));
    let address = cold.mirror.admin_address().to_string();
    let said = async |arguments: &[&str]| {
        let output = run(&[arguments, &["--admin", &address]].concat()).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(said(&["fills"]).await, "nothing is being downloaded\n");
    assert_eq!(said(&["fills", "--json"]).await, "[]\n");
    let reading = cold.mirror.get(&cold.path).open().await;
    fills("half of it", &cold.mirror, |f| f.iter().any(|f| f["bytes"] == 500_000)).await;
    let table = said(&["fills"]).await;
    for word in ["fetching", "488.3 KiB of 1.0 MiB", "client", NAME, &cold.blob.digest] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let rows: Value = serde_json::from_str(&said(&["fills", "--json"]).await).unwrap();
    assert_eq!((&rows[0]["digest"], &rows[0]["waiters"]), (&json!(cold.blob.digest), &json!(1)));
    gate.open();
    assert!(reading.brings(&cold.blob.bytes).await);
}
