//! Events: who wants to know is told, in order, again where he was away.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::image;
use crate::support::push::hosting;
use crate::support::soon;
use crate::support::upstream::Upstream;

/// Refuses the first event once, and keeps what it takes.
async fn listen() -> (String, Arc<Mutex<Vec<(String, Value)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let taken: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let (kept, refused) = (Arc::clone(&taken), Arc::new(Mutex::new(false)));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (kept, refused) = (Arc::clone(&kept), Arc::clone(&refused));
            let take = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (kept, refused) = (Arc::clone(&kept), Arc::clone(&refused));
                async move {
                    let token = request.headers().get("authorization").cloned();
                    let body = request.into_body().collect().await?.to_bytes();
                    let first = !std::mem::replace(&mut *refused.lock(), true);
                    let mut response = Response::new(http_body_util::Full::<Bytes>::default());
                    if first {
                        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    } else {
                        let token = token.map(|t| t.to_str().unwrap().to_owned());
                        let event = serde_json::from_slice(&body).unwrap();
                        kept.lock().push((token.unwrap_or_default(), event));
                    }
                    Ok::<_, hyper::Error>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), take));
        }
    });
    (url, taken)
}

#[tokio::test]
async fn pushes_first_pulls_and_deletions_are_told() {
    let (url, taken) = listen().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "hunter2\n").unwrap();
    let upstream = Upstream::start().await;
    let sink = format!("events: [{{url: '{url}', token_file: {}}}]", token.display());
    let mirror = hosting(&upstream, &sink).start().await;
    let image = image::oci(1).build();
    mirror.push("team/app", "v1", &image).await;
    for _pull in 0..2 {
        mirror.pull("team/app", "v1", &image).await;
    }
    let path = "/v2/team/app/manifests/v1";
    assert_eq!(mirror.ask(Method::DELETE, path).answer().await.status, 202);
    let told = async {
        while taken.lock().len() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    soon("three events", told).await;
    let taken = taken.lock().clone();
    let types: Vec<_> = taken.iter().map(|(_, event)| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["io.pierhead.push", "io.pierhead.first-pull", "io.pierhead.delete"]);
    for (token, event) in &taken {
        assert_eq!(token, "Bearer hunter2");
        assert_eq!(
            (event["specversion"].as_str(), event["source"].as_str()),
            (Some("1.0"), Some("/pierhead"))
        );
        assert_eq!(event["data"]["repository"], "team/app");
        assert!(event["id"].is_string() && event["time"].is_string());
    }
    assert_eq!(taken[0].1["subject"], "team/app:v1");
    assert_eq!(taken[0].1["data"]["digest"], *image.manifest.digest);
    assert!(!mirror.log().contains("hunter2"));
}
