//! Blobs: held, on their way, or fetched once for all who want them.

use std::sync::Arc;

use http::Method;

use crate::begun::Begin;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::fill::{Fill, Fills, Follower, Why};
use crate::filling;
use crate::flight::{Flights, Who};
use crate::relay::Passing;
use crate::store::{Content, Link, Place, Store};
use crate::traces::Span;
use crate::upstream::ask::{self, Ask};
use crate::upstream::{Patience, Upstream};

/// Others' downloads that are joined one after the other, each refused to whoever began it.
const JOINS_MAX: usize = 8;

/// A blob that can be answered.
#[derive(Debug)]
pub enum Blob {
    /// All of it is held.
    Held(Content),
    /// All of it is right, and is only being kept.
    Whole(Follower, u64),
    /// It is on its way. The flag says whether another request had started that.
    Filling(Follower, bool),
    /// It is passed on to others at this moment, without being kept.
    Passing(Passing),
    /// Only its size was asked.
    Size(u64),
}

impl Blob {
    /// The follower of what another request had begun.
    fn joined(&self) -> Option<&Follower> {
        match self {
            Self::Whole(follower, _) | Self::Filling(follower, true) => Some(follower),
            _ => None,
        }
    }
}

/// Finds and fetches blobs.
#[derive(Debug)]
pub struct Blobs {
    store: Arc<Store>,
    fills: Arc<Fills>,
    proofs: Flights<(Place, Digest), (Who, Result<()>)>,
}

impl Blobs {
    /// Blobs over a store.
    pub fn new(store: Arc<Store>, fills: Arc<Fills>) -> Self {
        Self { store, fills, proofs: Flights::new() }
    }

    /// A blob by digest. What another was refused whose download was joined is asked for anew. `begin`
    /// is asked before a download is begun for this caller alone; `trace` is the span of his request.
    ///
    /// # Errors
    /// The upstream's, where it is neither held nor may be fetched.
    pub async fn get(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
        head: bool,
        begin: impl Fn() -> Result<Begin>,
        trace: Option<&Span>,
    ) -> Result<Blob> {
        for _ in 0..JOINS_MAX {
            let mut blob = self.find(upstream, place, digest, head, (&begin, trace)).await?;
            if let Blob::Filling(follower, true) = &mut blob
                && follower.who() != upstream.who()
                && let Err(error) = follower.size().await
                && error.is_personal()
            {
                continue;
            }
            if let (Some(request), Some(fill)) = (trace, blob.joined().and_then(Follower::trace)) {
                request.link(fill);
            }
            return Ok(blob);
        }
        let text = format!("the upstream refuses all who ask for {digest} at this moment");
        Err(Error::new(Kind::Unavailable, text))
    }

    /// A blob by digest, where nobody else's refusal counts yet.
    async fn find(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
        head: bool,
        (begin, trace): (&impl Fn() -> Result<Begin>, Option<&Span>),
    ) -> Result<Blob> {
        let linked = self.store.link(place, &digest).await.is_some();
        if linked && let Some(content) = self.held_blob(digest).await {
            return Ok(Blob::Held(content));
        }
        let elsewhere = match self.fills.find(&digest) {
            Some(fill) if linked || fill.place == *place => return Ok(self.follow(fill)),
            Some(_) => true,
            None => match self.held_blob(digest).await {
                // Its fill has ended between the two looks.
                Some(content) if linked => return Ok(Blob::Held(content)),
                held => held.is_some(),
            },
        };
        if head {
            return self.size(upstream, place, digest).await.map(Blob::Size);
        }
        if elsewhere {
            self.prove_or_excuse(upstream, place, digest).await?;
            if let Some(content) = self.held_blob(digest).await {
                return Ok(Blob::Held(content));
            }
            if let Some(fill) = self.fills.find(&digest) {
                return Ok(self.follow(fill));
            }
        }
        if let Some(fill) = self.fills.find(&digest).filter(|fill| fill.place == *place) {
            return Ok(self.follow(fill));
        }
        if let Some(passing) = self.fills.passing(upstream, place, digest).await {
            return Ok(Blob::Passing(passing));
        }
        let begun = begin()?;
        let (follower, joined) =
            filling::join_or_start(&self.fills, upstream, place, digest, (Why::Client, trace));
        if let Some(fill) = self.fills.find(&digest).filter(|_| !joined) {
            let mut progress = fill.progress.subscribe();
            tokio::spawn(async move {
                let _begun = begun; // until its end, whoever is still there to see it
                let _ended = progress.wait_for(|progress| progress.end.is_some()).await;
            });
        }
        // Another repository's fill may have begun since the look for one above.
        if joined && follower.place() != place {
            self.prove(upstream, place, digest).await?;
        }
        Ok(Blob::Filling(follower, joined))
    }

    /// Follows a fill; one that is whole and only being kept is as good as held.
    fn follow(&self, fill: Arc<Fill>) -> Blob {
        match fill.verified() {
            Some((_, size)) => Blob::Whole(self.fills.follow(fill), size),
            None => Blob::Filling(self.fills.follow(fill), true),
        }
    }

    /// Held content, with its first stretch made sure of, so that rot found there costs a fetch
    /// and not a broken answer. A disk that fails counts as a miss, and is said.
    async fn held_blob(&self, digest: Digest) -> Option<Content> {
        let found = self.store.find(digest).await;
        let content = found.inspect_err(|error| tracing::warn!(?error, %digest, "held content cannot be read; it is fetched again")).ok()??;
        if let Content::Large(large) = &content
            && let Err(error) = large.ensure(0, large.size.min(1 << 20)).await
        {
            tracing::error!(%error, "held content is fetched again");
            return self.store.find(digest).await.ok()?;
        }
        Some(content)
    }

    /// A proof, or where the upstream cannot give one, that it has shown the content to anyone: then
    /// an outage is no reason to withhold it.
    async fn prove_or_excuse(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
    ) -> Result<()> {
        match self.prove(upstream, place, digest).await {
            Err(error) if error.is_outage() && upstream.is_anonymous() => {
                self.store.link(&place.anyones(), &digest).await.map(|_| ()).ok_or(error)
            }
            proof => proof,
        }
    }

    /// Asks the upstream for one byte of a digest under a repository. The bytes may be held for
    /// another repository: that is no permission.
    async fn prove(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        place: &Place,
        digest: Digest,
    ) -> Result<()> {
        let make = || {
            let (me, up, p) = (Arc::clone(self), Arc::clone(upstream), place.clone());
            async move {
                up.ask(&Ask::blob_proof(&p.repository, &digest), Patience::Full).await?;
                me.store.set_link(&p, &digest, Link::default()).await;
                Ok(())
            }
        };
        let (proof, _) = self.proofs.run_as(upstream.who(), (place.clone(), digest), make).await;
        proof.unwrap_or_else(|| Err(Error::new(Kind::Internal, "a request upstream was dropped")))
    }

    /// The size of a blob that is not held, without downloading it.
    async fn size(&self, upstream: &Upstream, place: &Place, digest: Digest) -> Result<u64> {
        let head = upstream
            .ask(&Ask::blob(Method::HEAD, &place.repository, &digest), Patience::Full)
            .await;
        if let Ok(answer) = &head
            && let Ok((_, Some(size))) =
                ask::extent(answer.status(), answer.headers(), Some((0, Some(0))))
        {
            return Ok(size);
        }
        // ECR Public refuses HEAD even to those who may read; others leave the length out.
        if head.as_ref().err().is_some_and(|e| e.is_absence() || e.is_outage()) {
            return head.map(|_| 0);
        }
        let proof = Ask::blob_proof(&place.repository, &digest);
        let answer = upstream.ask(&proof, Patience::Full).await?;
        match ask::extent(answer.status(), answer.headers(), proof.range) {
            Ok((_, Some(size))) => Ok(size),
            _ => Err(Error::new(
                Kind::BadUpstream,
                format!("{} does not tell the blob's size", upstream.name()),
            )),
        }
    }
}
