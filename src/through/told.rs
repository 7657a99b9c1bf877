//! What the client is told of the upstream's answer to a push.

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::{Pusher, Upload};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::Result;
use crate::name::{Reference, Tag};
use crate::respond::{Answer, Body};
use crate::route::Target;
use crate::upstream::push::Reply;

pub(super) const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

/// What of the upstream's answer is the client's to know.
const TOLD: [HeaderName; 11] = [
    header::RANGE,
    header::RETRY_AFTER,
    header::WARNING,
    header::ALLOW,
    DIGEST,
    TAG,
    HeaderName::from_static("docker-upload-uuid"),
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderName::from_static("oci-subject"),
    HeaderName::from_static("oci-chunk-min-length"),
    HeaderName::from_static("oci-chunk-max-length"),
];

/// The upstream's answer as the client gets it. With `copy`, the upload goes on.
pub(super) fn told(pusher: &Pusher<'_>, reply: &Reply, copy: Option<String>) -> Result<Answer> {
    let Reply { status, headers, body, session } = reply;
    let mut answer = if status.is_success() {
        Answer::new(*status, Body::Empty(None), Cache::None)
    } else {
        let mut answer =
            Answer::new(*status, Body::Bytes(document(pusher, *status, body)), Cache::None);
        answer.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    };
    for name in TOLD {
        for value in headers.get_all(&name) {
            answer.header(name.clone(), value.clone());
        }
    }
    if let (Some(session), Some(copy)) = (session, copy) {
        let upload = Upload { session: session.clone(), copy };
        answer.text(header::LOCATION, pusher.location(&upload)?);
    }
    Ok(answer)
}

pub(super) fn manifest_answer(
    pusher: &Pusher<'_>,
    reply: &Reply,
    reference: &Reference,
    digest: &Digest,
) -> Result<Answer> {
    let mut answer = told(pusher, reply, None)?;
    let Target { prefix, repository, .. } = pusher.target;
    answer.text(header::LOCATION, format!("{prefix}{repository}/manifests/{reference}"));
    if !reply.headers.contains_key(DIGEST) {
        answer.text(DIGEST, digest.to_string());
    }
    Ok(answer)
}

/// Whether an upstream says that it has a manifest as it was pushed, under every one of the tags.
pub(super) fn is_as_pushed(reply: &Reply, digest: &Digest, tags: &[Tag]) -> bool {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let named = reply.headers.get(DIGEST).map(text);
    let tagged: Vec<String> = reply.headers.get_all(TAG).iter().map(text).collect();
    named.is_none_or(|named| named == digest.to_string())
        && tags.iter().all(|tag| tagged.iter().any(|one| one == tag.as_str()))
}

/// The upstream's own error, where it is one that clients can read; else what its status says.
fn document(pusher: &Pusher<'_>, status: StatusCode, body: &Bytes) -> Bytes {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    if said.is_some_and(|said| said["errors"][0]["code"].is_string()) {
        return body.clone();
    }
    let code = match status.as_u16() {
        403 => "DENIED",
        404 => "BLOB_UPLOAD_UNKNOWN",
        405 => "UNSUPPORTED",
        413 => "SIZE_INVALID",
        416 => "RANGE_INVALID",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let text = format!("{} answered {status} to a push", pusher.place.upstream);
    json!({"errors": [{"code": code, "message": text, "detail": null}]}).to_string().into()
}
