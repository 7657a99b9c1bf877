//! A scripted registry that is pushed to. Its addresses of uploads have a query that must come back as
//! it was, byte by byte, and change with every request.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE};
use hyper::http::request::Parts;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::fault::{error, status};
use super::image::{Content, sha256};
use super::registry::{DIGEST, Registry, parse};
use super::reply::Reply;
use super::scripted::posted;

/// How pushes are taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pushes {
    /// What stands before the path in a `Location`: `http://host`, or nothing.
    pub(crate) host: String,
    uploads: BTreeMap<String, (Bytes, u32)>,
    begun: u32,
}

impl Pushes {
    pub(crate) fn led_to(host: &str) -> Self {
        Self { host: host.to_owned(), ..Self::default() }
    }

    pub(crate) fn open(&self) -> usize {
        self.uploads.len()
    }

    fn location(&self, name: &str, id: &str) -> String {
        let step = self.uploads[id].1;
        format!("{}/v2/{name}/blobs/uploads/{id}?_state=s%2B{step}%20==&empty=&bare", self.host)
    }
}

impl Registry {
    /// The answer to what changes something. None: it is for reading, or pushes are not taken.
    pub(crate) fn pushed(&mut self, request: &Parts) -> Option<Reply> {
        self.pushes.as_ref()?;
        let (name, kind, reference) = parse(request.uri.path());
        let uploads = name.strip_suffix("/blobs").filter(|_| kind == "uploads");
        let body = posted(request);
        match (&request.method, kind, uploads) {
            (&Method::POST, _, Some(name)) => Some(self.begin(name, request, &body)),
            (_, _, Some(name)) => Some(self.upload(name, reference, request, &body)),
            (&Method::PUT, "manifests", _) => {
                Some(self.put_manifest(name, reference, request, body))
            }
            (&Method::DELETE, "manifests", _) => {
                let held = self.repository(name);
                let gone = held.tags.remove(reference).is_some()
                    || held.manifests.remove(reference).is_some();
                held.tags.retain(|_, digest| digest != reference);
                Some(if gone { Reply::new(status(202), Bytes::new()) } else { error(404) })
            }
            (&Method::DELETE, "blobs", _) => {
                let gone = self.repository(name).blobs.remove(reference).is_some();
                Some(if gone { Reply::new(status(202), Bytes::new()) } else { error(404) })
            }
            _ => None,
        }
    }

    fn begin(&mut self, name: &str, request: &Parts, body: &Bytes) -> Reply {
        let query = query(request);
        if let (Some(mount), Some(from)) = (query.get("mount"), query.get("from"))
            && let Some(bytes) = self.repository(from).blobs.get(mount).cloned()
        {
            return self.keep(name, mount, bytes);
        }
        if let Some(digest) = query.get("digest") {
            return self.keep(name, digest, body.clone());
        }
        let pushes = self.pushes.as_mut().expect("looked at before");
        pushes.begun += 1;
        let id = format!("upload-{}", pushes.begun);
        pushes.uploads.insert(id.clone(), (Bytes::new(), 0));
        let mut reply = goes_on(202, &pushes.location(name, &id), &id, 0);
        reply.set(HeaderName::from_static("oci-chunk-min-length"), "10");
        reply
    }

    fn upload(&mut self, name: &str, id: &str, request: &Parts, body: &Bytes) -> Reply {
        let pushes = self.pushes.as_mut().expect("looked at before");
        let Some((held, step)) = pushes.uploads.get(id).cloned() else { return error(404) };
        let raw = request.uri.query().unwrap_or_default();
        let wanted = format!("_state=s%2B{step}%20==&empty=&bare");
        let rest = raw.strip_prefix(&wanted);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("&digest=")) {
            return Reply::text(400, "text/plain", &format!("{raw} is not {wanted}"));
        }
        if request.method == Method::GET {
            return goes_on(204, &pushes.location(name, id), id, held.len());
        }
        if request.method == Method::DELETE {
            pushes.uploads.remove(id);
            return Reply::new(status(204), Bytes::new());
        }
        let range = request.headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let start = range.and_then(|range| range.split('-').next()?.parse::<usize>().ok());
        if start.is_some_and(|start| start != held.len()) {
            let mut reply = goes_on(416, &pushes.location(name, id), id, held.len());
            reply.body =
                Bytes::from_static(br#"{"errors":[{"code":"RANGE_INVALID","message":"m"}]}"#);
            reply.set(CONTENT_TYPE, "application/json");
            return reply;
        }
        let held = Bytes::from([held, body.clone()].concat());
        if request.method == Method::PUT {
            pushes.uploads.remove(id);
            let digest = query(request).remove("digest").unwrap_or_default();
            return self.keep(name, &digest, held);
        }
        let length = held.len();
        pushes.uploads.insert(id.to_owned(), (held, step + 1));
        goes_on(202, &pushes.location(name, id), id, length)
    }

    fn keep(&mut self, name: &str, digest: &str, bytes: Bytes) -> Reply {
        if sha256(&bytes) != digest {
            let body = r#"{"errors":[{"code":"DIGEST_INVALID","message":"not that"}]}"#;
            return Reply::text(400, "application/json", body);
        }
        self.repository(name).blobs.insert(digest.to_owned(), bytes);
        let host = &self.pushes.as_ref().expect("looked at before").host;
        Reply::new(status(201), Bytes::new())
            .header(LOCATION, &format!("{host}/v2/{name}/blobs/{digest}"))
            .header(DIGEST, digest)
    }

    fn put_manifest(&mut self, name: &str, reference: &str, request: &Parts, body: Bytes) -> Reply {
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let held = self.repository(name);
        let layers = json["layers"].as_array().cloned().unwrap_or_default();
        let lacks = |one: &Value| !held.blobs.contains_key(one["digest"].as_str().unwrap_or("-"));
        if layers.iter().chain([&json["config"]]).any(lacks) {
            let body =
                json!({"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "lacks one"}]});
            return Reply::text(404, "application/json", &body.to_string());
        }
        let digest = sha256(&body);
        let media_type = request.headers[CONTENT_TYPE].to_str().expect("text").to_owned();
        let mut manifest = Content::blob(0, 0);
        manifest.digest.clone_from(&digest);
        (manifest.bytes, manifest.media_type) = (body, media_type);
        held.manifests.insert(digest.clone(), manifest);
        let mut reply = Reply::new(status(201), Bytes::new()).header(DIGEST, &digest);
        if !reference.contains(':') {
            held.tags.insert(reference.to_owned(), digest.clone());
        }
        for (key, tag) in form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes())
        {
            if key == "tag" {
                held.tags.insert(tag.to_string(), digest.clone());
                let value = super::fault::value(&tag);
                reply.headers.append(HeaderName::from_static("oci-tag"), value);
            }
        }
        reply
    }
}

fn goes_on(code: u16, location: &str, id: &str, length: usize) -> Reply {
    Reply::new(status(code), Bytes::new())
        .header(LOCATION, location)
        .header(RANGE, &format!("0-{}", length.saturating_sub(1)))
        .header(HeaderName::from_static("docker-upload-uuid"), id)
}

fn query(request: &Parts) -> BTreeMap<String, String> {
    let query = request.uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}
