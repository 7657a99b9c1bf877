//! From what is asked for to the answer, by the rights of whoever asks.

use std::sync::Arc;

use super::{Mirror, Origin, Request};
use crate::answer;
use crate::blobs::Blob;
use crate::doors::Caller;
use crate::error::{Error, Result};
use crate::manifests::Found;
use crate::name::{Reference, Tag};
use crate::pages::{self, Referrers};
use crate::respond::Answer;
use crate::rights::{self, Asker};
use crate::route::{Action, Route, Target};
use crate::store::Place;
use crate::upstream::Upstream;

impl Mirror {
    /// What is asked for, by the rights of whoever asks.
    pub(super) async fn found(
        &self,
        request: &Request,
        route: &Route,
        target: &Target,
        (origin, caller): (&Origin, &Caller),
        place: &Place,
    ) -> Result<Answer> {
        let asker =
            (caller.asker(&place.upstream), origin.push && self.doors.pushes(caller, target));
        let upstream = &origin.for_caller(asker, place, &route.action).await?;
        let head = request.conditions.head;
        Ok(match &route.action {
            Action::Ping | Action::Catalog(..) | Action::Push(_) => {
                return Err(Error::internal("nothing is looked for here", "the spine goes wrong"));
            }
            Action::Manifest(reference) => {
                let found = self.manifest(origin, upstream, place, reference, head).await?;
                if origin.prefetch && !head {
                    self.manifests.given(upstream, place, &found);
                }
                answer::manifest(found, &request.conditions)
            }
            Action::Blob(digest) => {
                let trace = request.trace.as_ref();
                let begin = || self.begun.begin(&caller.beginner(&request.knock));
                // A look at a part, as lazy pullers take, is no pull of the image.
                let range = request.conditions.range.as_deref();
                let pulls = origin.prefetch && !head && range.is_none_or(|r| r == "bytes=0-");
                let blob = self.blobs.get(upstream, place, *digest, head, begin, trace).await?;
                // Only now that the caller's right to this one has been shown.
                if pulls && matches!(blob, Blob::Filling(..)) {
                    self.prefetch.asked(upstream, place, digest, trace);
                }
                answer::blob(blob, digest, &request.conditions).await?
            }
            Action::Tags(page) => {
                answer::tags(pages::tags(upstream, target, page, route.namespace.as_deref()).await?)
            }
            Action::Referrers(subject, types, _) => {
                self.referrers((origin, asker), upstream, place, subject, types).await?
            }
        })
    }

    async fn manifest(
        &self,
        origin: &Origin,
        upstream: &Arc<Upstream>,
        place: &Place,
        reference: &Reference,
        head: bool,
    ) -> Result<Found> {
        self.manifests.get(upstream, &origin.terms, place, reference, head).await
    }

    /// What is attached to a manifest; from the fallback tag where the upstream lacks the API.
    async fn referrers(
        &self,
        (origin, asker): (&Origin, (Asker<'_>, bool)),
        upstream: &Arc<Upstream>,
        place: &Place,
        subject: &crate::digest::Digest,
        types: &[String],
    ) -> Result<Answer> {
        let found = match pages::referrers(upstream, &place.repository, subject).await? {
            Referrers::Listed(found) => found,
            Referrers::Unsupported => {
                let tag = Reference::Tag(Tag::of_referrers(subject));
                // The tag may be held, so here the right to it has to be proven.
                let found = match origin.for_caller(asker, place, &rights::by_tag(&tag)).await {
                    Ok(upstream) => self.manifest(origin, &upstream, place, &tag, false).await,
                    Err(e) => Err(e),
                };
                match found {
                    Ok(found) => {
                        found.bytes().await.and_then(|b| pages::descriptors(&b)).unwrap_or_default()
                    }
                    Err(e) if e.is_absence() => Vec::new(),
                    Err(e) => return Err(e),
                }
            }
        };
        Ok(answer::referrers(pages::referrers_index(found, types), !types.is_empty()))
    }
}
