//! The third spine: from a push to an upstream's name to its answer.
//!
//! What comes is passed on piece by piece, and a copy of it is kept here once the upstream has taken it.
//! The upstream's own address of an upload never reaches the client: it travels in ours, sealed for this
//! upstream, repository and caller, so that no request can lead anywhere else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use serde_json::Value;
use url::form_urlencoded::{self, Serializer};

use self::told::{DIGEST, is_as_pushed, manifest_answer, told};
use crate::digest::{Algorithm, Digest};
use crate::doors::Doors;
use crate::error::{Error, Kind, Result};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::manifests::Manifests;
use crate::name::{Reference, Repository, Tag, UploadId};
use crate::receive::Incoming;
use crate::respond::Answer;
use crate::route::{Push, STATE, Start, Target};
use crate::store::{Link, Place, Store};
use crate::uploads::Uploads;
use crate::uploads::copies::Copying;
use crate::upstream::Upstream;
use crate::upstream::ask::{Ask, Needs, Object};
use crate::upstream::push::{Cargo, Feeder, Order, Reply, Session, passage};

mod told;

/// Passes pushes on.
#[derive(Debug)]
pub struct Through {
    store: Arc<Store>,
    manifests: Arc<Manifests>,
    uploads: Arc<Uploads>,
}

/// Whose push it is, and where to.
#[derive(Debug)]
pub struct Pusher<'a> {
    /// The upstream as it is asked for this caller.
    pub upstream: Arc<Upstream>,
    /// The repository.
    pub place: &'a Place,
    /// How the request named it.
    pub target: &'a Target,
    /// The `ns` that came with it.
    pub namespace: Option<&'a str>,
    /// Who it is: an upload is nobody else's.
    pub user: String,
    /// What seals the addresses of uploads.
    pub doors: &'a Doors,
    /// The request's query.
    pub query: Option<&'a str>,
}

/// Where an upload goes on upstream, and its copy here, if there is one.
struct Upload {
    session: Session,
    copy: String,
}

impl Pusher<'_> {
    /// For whom addresses are sealed.
    fn whom(&self) -> String {
        format!("{}\0{}\0{}", self.place.upstream, self.place.repository, self.user)
    }

    /// The upload that a request goes on with.
    fn upload(&self) -> Result<Upload> {
        let query = self.query.unwrap_or_default().as_bytes();
        let state = form_urlencoded::parse(query).find(|(key, _)| key == STATE);
        let opened = state.and_then(|(_, state)| self.doors.unseal(&state, &self.whom()));
        let read = |text: String| {
            let mut parts = text.splitn(3, '\n').map(str::to_owned);
            let (copy, endpoint, target) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Upload { session: Session { endpoint, target }, copy })
        };
        opened.and_then(read).ok_or_else(|| {
            Error::new(
                Kind::BlobUploadUnknown,
                "there is no such upload of yours in this repository; begin a new one",
            )
        })
    }

    /// The address by which the client comes back.
    fn location(&self, upload: &Upload) -> Result<String> {
        let Upload { session: Session { endpoint, target }, copy } = upload;
        let text = format!("{copy}\n{endpoint}\n{target}");
        let sealed = self.doors.seal(&text, &self.whom())?;
        let path = target.split('?').next().unwrap_or_default();
        let name = Digest::of(Algorithm::Sha256, path.as_bytes());
        let Target { prefix, repository, .. } = self.target;
        let mut query = Serializer::new(String::new());
        query.append_pair(STATE, &sealed);
        if let Some(namespace) = self.namespace {
            query.append_pair("ns", namespace);
        }
        let id = &name.hex()[..UploadId::LETTERS];
        Ok(format!("{prefix}{repository}/blobs/uploads/{id}?{}", query.finish()))
    }

    fn ask(&self, method: Method, object: Object, path: &str, needs: Needs) -> Ask {
        let repository = &self.place.repository;
        Ask::change(method, object, repository, format!("{repository}/{path}"), needs)
    }

    fn uploads(&self, path: &str, from: Option<Repository>) -> Order {
        let ask = self.ask(Method::POST, Object::Upload, path, Needs::Push(from));
        Order { ask, session: None, headers: HeaderMap::new() }
    }

    fn goes_on(&self, method: Method, upload: &Upload, digest: Option<&Digest>) -> Order {
        let ask = self.ask(method, Object::Upload, "", Needs::Push(None));
        let more = digest.map(|digest| ("digest", digest.to_string()));
        Order { ask, session: Some((upload.session.clone(), more)), headers: HeaderMap::new() }
    }
}

impl Through {
    /// Passes pushes on, over what is held.
    pub fn new(store: Arc<Store>, manifests: Arc<Manifests>, uploads: Arc<Uploads>) -> Self {
        Self { store, manifests, uploads }
    }

    /// From a push to the upstream's answer to it.
    ///
    /// # Errors
    /// As `Upstream::push`; `BlobUploadUnknown` for uploads of others; `SizeInvalid` where the client
    /// breaks off.
    pub async fn answer(
        &self,
        push: &Push,
        pusher: &Pusher<'_>,
        body: &mut Incoming<'_>,
    ) -> Result<Answer> {
        match push {
            Push::Start(start) => self.start(pusher, start, body).await,
            Push::Status(_) => {
                let upload = pusher.upload()?;
                let order = pusher.goes_on(Method::GET, &upload, None);
                self.held(pusher, order, Bytes::new(), upload.copy).await
            }
            Push::Append(_) => self.append(pusher, body).await,
            Push::Finish(_, digest) => self.finish(pusher, *digest, body).await,
            Push::Cancel(_) => {
                let upload = pusher.upload()?;
                self.drop_copy(pusher, &upload.copy).await;
                let order = pusher.goes_on(Method::DELETE, &upload, None);
                self.held(pusher, order, Bytes::new(), String::new()).await
            }
            Push::PutManifest(reference, tags) => {
                self.put_manifest(pusher, reference, tags, body).await
            }
            Push::DeleteManifest(reference) => self.delete_manifest(pusher, reference).await,
            Push::DeleteBlob(digest) => {
                let path = format!("blobs/{digest}");
                let reply = self.delete(pusher, Object::Blob, &path).await?;
                if reply.status.is_success() {
                    self.manifests.forget(pusher.place, digest).await?;
                }
                told(pusher, &reply, None)
            }
        }
    }

    /// Begins an upload, unless the upstream has the blob already or it comes whole in this request.
    async fn start(
        &self,
        pusher: &Pusher<'_>,
        start: &Start,
        body: &mut Incoming<'_>,
    ) -> Result<Answer> {
        let from = start.mount.as_ref().and_then(|(_, from)| from.clone());
        let order = pusher.uploads(&beginning(start), from);
        let whole = start.digest.filter(|_| start.mount.is_none());
        if let Some(digest) = whole {
            let copy = self.begin_copy(pusher, start.algorithm).await;
            let reply = self.pass_on(pusher, order, body, &copy, None).await?;
            return self.finished(pusher, &reply, digest, &copy).await;
        }
        let reply = pusher.upstream.push(&order, Cargo::Held(Bytes::new())).await?;
        if let (StatusCode::CREATED, Some((digest, _))) = (reply.status, &start.mount) {
            return self.finished(pusher, &reply, *digest, "").await;
        }
        let copy = match &reply.session {
            Some(_) => self.begin_copy(pusher, start.algorithm).await,
            None => String::new(),
        };
        told(pusher, &reply, Some(copy))
    }

    async fn append(&self, pusher: &Pusher<'_>, body: &mut Incoming<'_>) -> Result<Answer> {
        let upload = pusher.upload()?;
        let mut order = pusher.goes_on(Method::PATCH, &upload, None);
        let start = along(&mut order, body);
        let reply = self.pass_on(pusher, order, body, &upload.copy, start).await?;
        told(pusher, &reply, Some(upload.copy))
    }

    async fn finish(
        &self,
        pusher: &Pusher<'_>,
        digest: Digest,
        body: &mut Incoming<'_>,
    ) -> Result<Answer> {
        let upload = pusher.upload()?;
        let mut order = pusher.goes_on(Method::PUT, &upload, Some(&digest));
        let reply = if body.is_empty() {
            pusher.upstream.push(&order, Cargo::Held(Bytes::new())).await?
        } else {
            let start = along(&mut order, body);
            self.pass_on(pusher, order, body, &upload.copy, start).await?
        };
        self.finished(pusher, &reply, digest, &upload.copy).await
    }

    /// Takes in what the upstream says at the end of an upload.
    async fn finished(
        &self,
        pusher: &Pusher<'_>,
        reply: &Reply,
        digest: Digest,
        copy: &str,
    ) -> Result<Answer> {
        if reply.status == StatusCode::CREATED {
            self.keep(pusher, digest, copy).await;
            let mut answer = told(pusher, reply, None)?;
            let Target { prefix, repository, .. } = pusher.target;
            answer.text(header::LOCATION, format!("{prefix}{repository}/blobs/{digest}"));
            if !reply.headers.contains_key(DIGEST) {
                answer.text(DIGEST, digest.to_string());
            }
            return Ok(answer);
        }
        self.drop_copy(pusher, copy).await;
        told(pusher, reply, Some(String::new()))
    }

    /// Sends a request without a body, or with one that is held.
    async fn held(
        &self,
        pusher: &Pusher<'_>,
        order: Order,
        body: Bytes,
        copy: String,
    ) -> Result<Answer> {
        let reply = pusher.upstream.push(&order, Cargo::Held(body)).await?;
        told(pusher, &reply, Some(copy))
    }

    /// Passes a body on while it comes. An answer that comes before its end ends it.
    async fn pass_on(
        &self,
        pusher: &Pusher<'_>,
        order: Order,
        body: &mut Incoming<'_>,
        copy: &str,
        start: Option<u64>,
    ) -> Result<Reply> {
        let (feeder, arriving) = passage();
        let found = self.uploads.find_copy(pusher.place, copy, &pusher.user).await;
        let mut copying = match found {
            Some(copy) => Some(Copying::go_on(copy, start).await),
            None => None,
        };
        let length = body.length();
        let patience = pusher.upstream.stall_timeout();
        let outcome = {
            let answered = pusher.upstream.push(&order, Cargo::Coming(arriving, length));
            let fed = feed(feeder, body, copying.as_mut(), patience);
            tokio::pin!(answered, fed);
            tokio::select! {
                biased;
                reply = &mut answered => reply,
                fed = &mut fed => match fed {
                    Ok(()) => answered.await,
                    Err(error) => Err(error), // and the upstream's connection is cut
                },
            }
        };
        if let Some(copying) = copying {
            let taken = outcome.as_ref().is_ok_and(|reply| reply.status.is_success());
            match copying.end().await {
                Ok(_) if taken => {}
                Ok(copy) | Err((copy, _)) => self.uploads.drop_copy(&copy).await,
            }
        }
        outcome
    }

    async fn begin_copy(&self, pusher: &Pusher<'_>, algorithm: Algorithm) -> String {
        let copy = self.uploads.begin_copy(pusher.place, algorithm, &pusher.user).await;
        copy.map(|copy| copy.id.to_string()).unwrap_or_default()
    }

    async fn drop_copy(&self, pusher: &Pusher<'_>, copy: &str) {
        if let Some(copy) = self.uploads.find_copy(pusher.place, copy, &pusher.user).await {
            self.uploads.drop_copy(&copy).await;
        }
    }

    /// Keeps what the upstream has taken: that it is there, and the copy of it, where that is whole.
    async fn keep(&self, pusher: &Pusher<'_>, digest: Digest, copy: &str) {
        let place = pusher.place;
        if let Some(copy) = self.uploads.find_copy(place, copy, &pusher.user).await {
            match self.uploads.keep_copy(&copy, digest).await {
                Ok(true) => {}
                Ok(false) => tracing::debug!(%digest, "the copy of a push is not whole"),
                Err(error) => tracing::warn!(?error, %digest, "what was pushed is not kept"),
            }
        }
        self.store.set_link(place, &digest, Link::default()).await;
    }

    async fn put_manifest(
        &self,
        pusher: &Pusher<'_>,
        reference: &Reference,
        tags: &[Tag],
        body: &mut Incoming<'_>,
    ) -> Result<Answer> {
        let bytes = body.whole(MANIFEST_BYTES_MAX).await?;
        let more: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
        let mark = if more.is_empty() { "" } else { "?" };
        let path = format!("manifests/{reference}{mark}{}", more.join("&"));
        let ask = pusher.ask(Method::PUT, Object::Manifest, &path, Needs::Push(None));
        let mut order = Order { ask, session: None, headers: HeaderMap::new() };
        along(&mut order, body);
        let place = pusher.place;
        let pushing = self.manifests.pushing(place, reference, tags);
        let reply = match pusher.upstream.push(&order, Cargo::Held(bytes.clone())).await {
            Ok(reply) if reply.status.is_success() => reply,
            refused => {
                self.manifests.unsure(place, pushing).await;
                let reply = refused?;
                self.forget_missing(place, &reply, &bytes).await;
                return told(pusher, &reply, None);
            }
        };
        let algorithm = match reference {
            Reference::Digest(digest) => digest.algorithm(),
            Reference::Tag(_) => Algorithm::Sha256,
        };
        let digest = Digest::of(algorithm, &bytes);
        let answer = manifest_answer(pusher, &reply, reference, &digest)?;
        // What it calls otherwise, or does not say it has tagged, is asked for when it is wanted.
        if is_as_pushed(&reply, &digest, tags) {
            let content_type = body.header(&header::CONTENT_TYPE);
            let kept = self.manifests.pushed(place, digest, pushing, (bytes, content_type)).await;
            if let Err(error) = kept {
                tracing::warn!(?error, %digest, "a manifest that was pushed is not kept");
            }
        } else {
            self.manifests.unsure(place, pushing).await;
        }
        Ok(answer)
    }

    /// An upstream that lacks a blob of which we know that it had it: the client was told so, and has
    /// to be told otherwise when it tries again.
    async fn forget_missing(&self, place: &Place, reply: &Reply, manifest: &Bytes) {
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let code = body["errors"][0]["code"].as_str().unwrap_or_default();
        if !["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"].contains(&code) {
            return;
        }
        let Ok(manifest) = crate::media::Manifest::read(manifest, None) else { return };
        for named in manifest.blobs.iter().chain(&manifest.manifests) {
            if let Err(error) = self.manifests.forget(place, &named.digest).await {
                tracing::warn!(?error, "what the upstream lacks is still told to be there");
            }
        }
    }

    async fn delete_manifest(&self, pusher: &Pusher<'_>, reference: &Reference) -> Result<Answer> {
        let path = format!("manifests/{reference}");
        let tags = self.manifests.pushing(pusher.place, reference, &[]);
        let reply = self.delete(pusher, Object::Manifest, &path).await;
        self.manifests.unsure(pusher.place, tags).await;
        let reply = reply?;
        if reply.status.is_success() {
            self.manifests.deleted(pusher.place, reference).await?;
        }
        told(pusher, &reply, None)
    }

    async fn delete(&self, pusher: &Pusher<'_>, object: Object, path: &str) -> Result<Reply> {
        let ask = pusher.ask(Method::DELETE, object, path, Needs::Delete);
        let order = Order { ask, session: None, headers: HeaderMap::new() };
        pusher.upstream.push(&order, Cargo::Held(Bytes::new())).await
    }
}

/// Path and query, behind the repository, that an upload begins with.
fn beginning(start: &Start) -> String {
    let path = "blobs/uploads/?";
    let mut query = Serializer::for_suffix(path.to_owned(), path.len());
    if let Some((digest, from)) = &start.mount {
        query.append_pair("mount", &digest.to_string());
        if let Some(from) = from {
            query.append_pair("from", from.as_str());
        }
    } else if let Some(digest) = &start.digest {
        query.append_pair("digest", &digest.to_string());
    } else if start.algorithm != Algorithm::Sha256 {
        query.append_pair("digest-algorithm", start.algorithm.as_str());
    }
    query.finish().trim_end_matches('?').to_owned()
}

/// Hands a body over, piece by piece; each waits until the upstream has taken the one before.
async fn feed(
    feeder: Feeder,
    body: &mut Incoming<'_>,
    mut copying: Option<&mut Copying>,
    patience: Duration,
) -> Result<()> {
    while let Some(piece) = body.piece().await? {
        if piece.is_empty() {
            continue;
        }
        if let Some(copying) = copying.as_mut() {
            copying.piece(&piece).await;
        }
        if !feeder.piece(piece, patience).await? {
            return Ok(()); // the answer says why
        }
    }
    feeder.end(patience).await.map(drop)
}

/// Takes the headers along that belong to a body; where the body begins, if they say so.
fn along(order: &mut Order, body: &Incoming<'_>) -> Option<u64> {
    for name in [header::CONTENT_TYPE, header::CONTENT_RANGE] {
        if let Some(value) = body.header(&name).and_then(|v| HeaderValue::from_str(v).ok()) {
            order.headers.insert(name, value);
        }
    }
    let range = body.header(&header::CONTENT_RANGE)?;
    range.trim_start_matches(|c: char| !c.is_ascii_digit()).split('-').next()?.parse().ok()
}
