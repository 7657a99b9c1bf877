//! The second spine: from a request for a hosted repository to its answer.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use serde_json::json;

use crate::answer::{self, Conditions};
use crate::blobs::Blob;
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::hosted::Hosted;
use crate::hosted::gc::Report;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::name::{Reference, Repository, Tag};
use crate::pages;
use crate::receive::Incoming;
use crate::respond::{Answer, Body};
use crate::route::{Action, Page, Push, Start, Target};
use crate::store::Store;
use crate::uploads::{Upload, Uploads};

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

/// Answers for the repositories that live here.
#[derive(Clone, Debug)]
pub struct Hosting {
    /// The repositories.
    pub hosted: Arc<Hosted>,
    /// What is on its way into them.
    pub uploads: Arc<Uploads>,
}

/// How long after a failure it is tried again to read which content is hosted.
const LEARN_AGAIN: Duration = Duration::from_secs(30);

/// How long an order to collect garbage waits for the process that hands over to this one.
const ALONE_WITHIN: Duration = Duration::from_secs(20);

impl Hosting {
    /// The repositories in a store's folder, by the configuration.
    pub fn new(store: &Arc<Store>, settings: &crate::config::Hosted) -> Self {
        let hosted = Arc::new(Hosted::new(Arc::clone(store), settings.clone()));
        let uploads = Arc::new(Uploads::new(Arc::clone(store), Arc::clone(&hosted)));
        Self { hosted, uploads }
    }

    /// Goes by these settings from now on.
    pub fn set_settings(&self, settings: &crate::config::Hosted) {
        self.hosted.set_settings(settings);
    }

    /// Begins to share the folder with another process, or ends it: what is known of it may be wrong.
    pub async fn settle(&self) {
        self.hosted.settle().await;
        self.hosted.forget();
        self.uploads.forget();
    }

    /// What goes on in the background: events, and garbage.
    /// `shared`: another process may still host what nobody here would know of.
    pub async fn tend(&self, shared: bool) {
        tokio::join!(self.tidy_up(shared), self.hosted.events.deliver());
    }

    /// Reads which content is hosted, then looks for garbage from time to time, for ever.
    async fn tidy_up(&self, shared: bool) {
        if shared {
            self.hosted.unshared().await;
        }
        while let Err(error) = self.hosted.learn().await {
            tracing::error!(?error, "nothing can be evicted, and no garbage be collected");
            tokio::time::sleep(LEARN_AGAIN).await;
        }
        loop {
            self.hosted.until_collection().await;
            let settings = self.hosted.settings();
            match self.collect(settings.gc_grace.get(), false).await {
                Ok(report) if report.manifests + report.blobs + report.uploads > 0 => {
                    tracing::info!(
                        manifests = report.manifests,
                        blobs = report.blobs,
                        uploads = report.uploads,
                        bytes = report.bytes,
                        "garbage collected"
                    );
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(?error, "garbage could not be collected"),
            }
        }
    }

    /// Removes what nothing holds, and uploads that nobody goes on with.
    ///
    /// # Errors
    /// As for `Hosted::collect`.
    pub async fn collect(&self, grace: Duration, dry_run: bool) -> Result<Report> {
        // What arrives in the other process is announced there and not here.
        let alone = tokio::time::timeout(ALONE_WITHIN, self.hosted.unshared()).await;
        alone.map_err(|_| {
            let text = "another process is still finishing its pushes; try again when it has gone";
            Error::new(Kind::Unavailable, text)
        })?;
        let mut report = self.hosted.collect(grace, dry_run).await?;
        if !dry_run {
            let age = self.hosted.settings().upload_expiry.get();
            report.uploads = self.uploads.expire(age).await?;
        }
        Ok(report)
    }

    /// From a request for a hosted repository to its answer.
    ///
    /// # Errors
    /// What the specification's codes are for.
    pub async fn answer(
        &self,
        action: &Action,
        target: &Target,
        conditions: &Conditions,
        body: &mut Incoming<'_>,
    ) -> Result<Answer> {
        let repository = &target.repository;
        let mut answer = match action {
            Action::Manifest(reference) => {
                let found = self.hosted.manifest(repository, reference, conditions.head).await?;
                answer::manifest(found, conditions)
            }
            Action::Blob(digest) => {
                let content = self.hosted.blob(repository, *digest, conditions.head).await?;
                answer::blob(Blob::Held(content), digest, conditions).await?
            }
            Action::Tags(page) => self.tags(target, page).await?,
            Action::Referrers(subject, types, last) => {
                self.referrers(target, *subject, types, *last).await?
            }
            Action::Push(push) => self.push(push, target, body).await?,
            Action::Ping | Action::Catalog(..) => {
                return Err(Error::new(Kind::PathUnknown, "this path is about no repository"));
            }
        };
        answer.cache = Cache::None; // nothing that is cached was concerned
        Ok(answer)
    }

    async fn push(&self, push: &Push, target: &Target, body: &mut Incoming<'_>) -> Result<Answer> {
        let repository = &target.repository;
        match push {
            Push::PutManifest(reference, tags) => {
                self.put_manifest(target, reference, tags, body).await
            }
            Push::DeleteManifest(reference) => {
                self.hosted.delete_manifest(repository, reference).await?;
                Ok(empty(StatusCode::ACCEPTED))
            }
            Push::DeleteBlob(digest) => {
                self.hosted.delete_blob(repository, *digest).await?;
                Ok(empty(StatusCode::ACCEPTED))
            }
            Push::Start(start) => self.start(target, start, body).await,
            Push::Status(id) => {
                let upload = self.uploads.find(repository, id, body.user()).await?;
                Ok(goes_on(StatusCode::NO_CONTENT, target, &upload, upload.size().await?))
            }
            Push::Append(id) => {
                let upload = self.uploads.find(repository, id, body.user()).await?;
                match append(&upload, body).await {
                    Ok(size) => Ok(goes_on(StatusCode::ACCEPTED, target, &upload, size)),
                    Err(error) => out_of_order(error, target, &upload).await,
                }
            }
            Push::Finish(id, digest) => {
                let upload = self.uploads.find(repository, id, body.user()).await?;
                if let Err(error) = append(&upload, body).await {
                    return out_of_order(error, target, &upload).await;
                }
                self.uploads.finish(repository, &upload, *digest).await?;
                Ok(created(target, "blobs", &digest.to_string(), digest))
            }
            Push::Cancel(id) => {
                let upload = self.uploads.find(repository, id, body.user()).await?;
                self.uploads.cancel(&upload).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
        }
    }

    /// Begins an upload, unless the blob is here already or comes whole in this request.
    async fn start(
        &self,
        target: &Target,
        start: &Start,
        body: &mut Incoming<'_>,
    ) -> Result<Answer> {
        let repository = &target.repository;
        if let Some((digest, from)) = &start.mount
            && self.hosted.mount(repository, from.as_ref(), *digest).await?
        {
            return Ok(created(target, "blobs", &digest.to_string(), digest));
        }
        let upload = self.uploads.start(repository, start.algorithm, body.user()).await?;
        let Some(digest) = &start.digest else {
            return Ok(goes_on(StatusCode::ACCEPTED, target, &upload, 0));
        };
        match append(&upload, body).await {
            Ok(_) => {
                self.uploads.finish(repository, &upload, *digest).await?;
                Ok(created(target, "blobs", &digest.to_string(), digest))
            }
            Err(error) => {
                // Nobody was told its name, so nobody can go on with it.
                self.uploads.cancel(&upload).await?;
                Err(error)
            }
        }
    }

    async fn put_manifest(
        &self,
        target: &Target,
        reference: &Reference,
        tags: &[Tag],
        body: &mut Incoming<'_>,
    ) -> Result<Answer> {
        let bytes = body.whole(MANIFEST_BYTES_MAX).await?;
        let content_type = body.header(&header::CONTENT_TYPE);
        let kept = self
            .hosted
            .put_manifest(&target.repository, reference, tags.to_vec(), content_type, bytes)
            .await?;
        let mut answer = created(target, "manifests", &reference.to_string(), &kept.digest);
        if let Some(subject) = kept.subject {
            answer.text(SUBJECT, subject.to_string());
        }
        for tag in tags {
            answer.text(TAG, tag.as_str());
        }
        Ok(answer)
    }

    async fn tags(&self, target: &Target, page: &Page) -> Result<Answer> {
        let repository = &target.repository;
        let found = self.hosted.list_tags(repository, page.n, page.last.clone()).await?;
        let tags: Vec<&str> = found.items.iter().map(Tag::as_str).collect();
        let link = tags.last().filter(|_| found.more).map(|last| {
            next(&format!("{}{repository}/tags/list", target.prefix), page.n, last, &[])
        });
        let body = json!({"name": repository.as_str(), "tags": tags}).to_string().into();
        Ok(answer::tags(pages::Tags { body, link }))
    }

    async fn referrers(
        &self,
        target: &Target,
        subject: Digest,
        types: &[String],
        last: Option<Digest>,
    ) -> Result<Answer> {
        let repository = &target.repository;
        let (page, end) = self.hosted.list_referrers(repository, subject, last).await?;
        let index = pages::referrers_index(page.items, types);
        let mut answer = answer::referrers(index, !types.is_empty());
        if let Some(end) = end.filter(|_| page.more) {
            let path = format!("{}{repository}/referrers/{subject}", target.prefix);
            answer.text(header::LINK, next(&path, None, &end.to_string(), types));
        }
        Ok(answer)
    }

    /// The repositories that live here.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn catalog(&self, n: Option<u32>, last: Option<Repository>) -> Result<Answer> {
        let page = self.hosted.list_repositories(n, last).await?;
        let names: Vec<&str> = page.items.iter().map(Repository::as_str).collect();
        let link =
            names.last().filter(|_| page.more).map(|last| next("/v2/_catalog", n, last, &[]));
        let body = json!({"repositories": names}).to_string().into();
        let mut answer = answer::tags(pages::Tags { body, link });
        answer.cache = Cache::None;
        Ok(answer)
    }
}

/// Adds a request's body to an upload, where the request says it belongs. What came before a body
/// broke off stays.
async fn append(upload: &Upload, body: &mut Incoming<'_>) -> Result<u64> {
    const CONTENT_RANGE: HeaderName = header::CONTENT_RANGE;
    let range = body.header(&CONTENT_RANGE).map(content_range).transpose()?;
    let length = range.map(|(first, last)| last - first + 1);
    if let (Some(range), Some(told)) = (length, body.length())
        && range != told
    {
        let text = format!("Content-Range says {range} bytes, Content-Length {told}");
        return Err(Error::new(Kind::SizeInvalid, text));
    }
    let writer = upload.writer(range.map(|(first, _)| first)).await?;
    while let Some(piece) = body.piece().await? {
        if !writer.write(piece).await {
            break;
        }
    }
    writer.end(length).await
}

/// `0-99`, without a unit, as the specification has it; some clients write one all the same.
fn content_range(text: &str) -> Result<(u64, u64)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let bare = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let bare = bare.split('/').next().unwrap_or(bare).trim();
    bare.split_once('-')
        .and_then(|(first, last)| Some((number(first)?, number(last)?)))
        .filter(|(first, last)| first <= last && *last < u64::MAX)
        .ok_or_else(|| Error::new(Kind::RangeInvalid, "Content-Range is not FIRST-LAST"))
}

/// An upload that is to be continued.
fn goes_on(status: StatusCode, target: &Target, upload: &Upload, size: u64) -> Answer {
    let mut answer = empty(status);
    progress(&mut answer, target, upload, size);
    answer
}

fn progress(answer: &mut Answer, target: &Target, upload: &Upload, size: u64) {
    let Target { prefix, repository, .. } = target;
    answer.text(header::LOCATION, format!("{prefix}{repository}/blobs/uploads/{}", upload.id));
    answer.text(header::RANGE, format!("0-{}", size.saturating_sub(1)));
    answer.text(UPLOAD_ID, upload.id.as_str());
}

/// Where a chunk came out of order the client is told where to go on; other errors are as they are.
async fn out_of_order(error: Error, target: &Target, upload: &Upload) -> Result<Answer> {
    if error.kind() != Kind::RangeInvalid {
        return Err(error);
    }
    let mut answer = Answer::error(&error);
    progress(&mut answer, target, upload, upload.size().await?);
    Ok(answer)
}

/// Something that is there from now on.
fn created(target: &Target, what: &str, reference: &str, digest: &Digest) -> Answer {
    let mut answer = empty(StatusCode::CREATED);
    let Target { prefix, repository, .. } = target;
    answer.text(header::LOCATION, format!("{prefix}{repository}/{what}/{reference}"));
    answer.text(DIGEST, digest.to_string());
    answer
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Answer::new(status, Body::Empty(None), Cache::None);
    answer.header(
        HeaderName::from_static("docker-distribution-api-version"),
        HeaderValue::from_static("registry/2.0"),
    );
    answer
}

/// The link to the next page; relative, so that it holds behind any proxy.
fn next(path: &str, n: Option<u32>, last: &str, types: &[String]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Some(n) = n {
        query.append_pair("n", &n.to_string());
    }
    query.append_pair("last", last);
    for artifact_type in types {
        query.append_pair("artifactType", artifact_type);
    }
    format!("<{path}?{}>; rel=\"next\"", query.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_as_clients_write_them() {
        for text in ["0-99", "bytes 0-99", "bytes=0-99", "bytes 0-99/200", "0-99/*"] {
            assert_eq!(content_range(text).unwrap(), (0, 99), "{text}");
        }
        for text in ["", "-", "99-0", "a-b", "0-", "-5", "+0-5", "0-18446744073709551615"] {
            assert_eq!(content_range(text).unwrap_err().kind(), Kind::RangeInvalid, "{text}");
        }
    }
}
