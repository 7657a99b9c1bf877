//! What a scripted registry holds and says when no fault is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{
    ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, LINK, LOCATION, RANGE, RETRY_AFTER,
};
use hyper::http::request::Parts;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::auth::{Auth, Bearer, Tokens};
use super::cdn::Cdn;
use super::fault::{error, status};
use super::image::{Content, OCI_INDEX};
use super::pushed::Pushes;
use super::reply::Reply;
use super::scripted::posted;

pub(crate) struct Registry {
    repositories: BTreeMap<String, Repository>,
    pub(crate) auth: Auth,
    pub(crate) tokens: Tokens,
    /// 404 unless the stored media type stands in `Accept`, as GHCR and ACR do.
    pub(crate) strict_accept: bool,
    pub(crate) referrers: Referrers,
    /// No page of tags is longer.
    pub(crate) page: usize,
    /// Links to further pages name this host too.
    pub(crate) absolute_links: bool,
    pub(crate) limit: Option<Limit>,
    /// Blobs are redirected there, with this status.
    pub(crate) blobs_at: Option<(u16, Arc<Cdn>)>,
    /// Manifests too, as at registry.k8s.io.
    pub(crate) manifests_at: Option<(u16, Arc<Cdn>)>,
    /// Where pushes are taken, and how.
    pub(crate) pushes: Option<Pushes>,
    /// The answer to several ranges at once: 200 (S3), 400 (GCS), 501 (GHCR).
    pub(crate) many_ranges: u16,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            repositories: BTreeMap::new(),
            auth: Auth::Open,
            tokens: Tokens::default(),
            strict_accept: false,
            referrers: Referrers::Present,
            page: 1000,
            absolute_links: false,
            limit: None,
            blobs_at: None,
            manifests_at: None,
            pushes: None,
            many_ranges: 200,
        }
    }
}

#[derive(Default)]
pub(crate) struct Repository {
    pub(crate) manifests: BTreeMap<String, Content>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) blobs: BTreeMap<String, Bytes>,
}

/// How the referrers API looks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Referrers {
    Present,
    Absent,
    /// A web page with status 200.
    Html,
    /// 303 to a web page.
    SeeOther,
}

/// Docker Hub's pull limit: GETs of manifests count.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) pulls: u32,
    pub(crate) remaining: u32,
    pub(crate) retry_after: Option<String>,
}

impl Registry {
    /// The repository, made if there is none.
    pub(crate) fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(crate) fn answer(&mut self, request: &Parts) -> Reply {
        let path = request.uri.path();
        if path == "/token" {
            return self.auth.token(&self.tokens, request);
        }
        if path == "/oauth2/exchange" {
            return self.exchange(request);
        }
        let (name, kind, reference) = parse(path);
        let name = if kind == "uploads" { name.trim_end_matches("/blobs") } else { name };
        if let Some(refusal) = self.auth.refuse(&self.tokens, request, name) {
            return refusal;
        }
        if path == "/v2/" {
            return Reply::text(200, "application/json", "{}");
        }
        if let Some(reply) = self.pushed(request) {
            return reply;
        }
        if request.method != Method::GET && request.method != Method::HEAD {
            return error(405);
        }
        match kind {
            "manifests" => self.manifest(request, name, reference),
            "blobs" => self.blob(request, name, reference),
            "tags" => self.tags(request, name),
            "referrers" => self.referrers(request, name, reference),
            _ => error(404),
        }
    }

    /// Azure's: a token of Entra for a refresh token of the registry.
    fn exchange(&self, request: &Parts) -> Reply {
        let body = posted(request);
        let given: BTreeMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
        let host = request.headers["host"].to_str().unwrap_or_default();
        let right = given.get("access_token").is_some_and(|token| token == "entra-token")
            && given.get("grant_type").is_some_and(|grant| grant == "access_token")
            && given.get("service").is_some_and(|service| service == host);
        match &self.auth {
            Auth::Bearer(Bearer { refresh: Some(token), .. }) if right => {
                Reply::text(200, "application/json", &json!({"refresh_token": token}).to_string())
            }
            _ => error(401),
        }
    }

    fn manifest(&mut self, request: &Parts, name: &str, reference: &str) -> Reply {
        let mut headers = HeaderMap::new();
        if let Some(limit) = &mut self.limit
            && let Some(refusal) = limit.count(&request.method, &mut headers)
        {
            return refusal;
        }
        let Some(repository) = self.repositories.get(name) else {
            return error(404);
        };
        let digest = repository.tags.get(reference).map_or(reference, String::as_str);
        let Some(manifest) = repository.manifests.get(digest) else {
            return error(404);
        };
        let accepts = |value: &str| value.contains(&manifest.media_type) || value.contains("*/*");
        let lines = request.headers.get_all(ACCEPT);
        if self.strict_accept && !lines.iter().any(|line| line.to_str().is_ok_and(accepts)) {
            return error(404);
        }
        if let Some((code, cdn)) = &self.manifests_at {
            return redirect(*code, &cdn.sign(digest, &manifest.bytes));
        }
        let mut reply = Reply::new(status(200), manifest.bytes.clone());
        reply.headers = headers;
        reply.set(CONTENT_TYPE, &manifest.media_type);
        reply.set(DIGEST, digest);
        reply
    }

    fn blob(&self, request: &Parts, name: &str, digest: &str) -> Reply {
        let Some(bytes) = self.repositories.get(name).and_then(|held| held.blobs.get(digest))
        else {
            let body = r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob"}]}"#;
            return Reply::text(404, "application/json", body);
        };
        if let Some((code, cdn)) = &self.blobs_at {
            return redirect(*code, &cdn.sign(digest, bytes));
        }
        let range = request.headers.get(RANGE).and_then(|range| range.to_str().ok());
        if self.many_ranges != 200 && range.is_some_and(|range| range.contains(',')) {
            return Reply::text(self.many_ranges, "text/plain", "one range at a time\n");
        }
        let mut reply = Reply::new(status(200), bytes.clone());
        reply.set(CONTENT_TYPE, "application/octet-stream");
        reply.set(DIGEST, digest);
        reply.set(HeaderName::from_static("set-cookie"), "session=upstream");
        reply.ranged(&request.headers)
    }

    fn tags(&self, request: &Parts, name: &str) -> Reply {
        let Some(repository) = self.repositories.get(name) else {
            let body = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}"#;
            return Reply::text(404, "application/json", body);
        };
        let query = query(request);
        let last = query.get("last").map(String::as_str).unwrap_or_default();
        let asked = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let mut rest = repository.tags.keys().filter(|tag| tag.as_str() > last);
        let page: Vec<&String> = rest.by_ref().take(asked.min(self.page)).collect();
        let body = json!({"name": name, "tags": page}).to_string();
        let mut reply = Reply::text(200, "application/json", &body);
        if let (Some(last), Some(_)) = (page.last(), rest.next()) {
            let own = format!("http://{}", request.headers["host"].to_str().unwrap_or_default());
            let host = if self.absolute_links { own.as_str() } else { "" };
            let link =
                format!("<{host}/v2/{name}/tags/list?n={}&last={last}>; rel=\"next\"", page.len());
            reply.set(LINK, &link);
        }
        reply
    }

    fn referrers(&self, request: &Parts, name: &str, subject: &str) -> Reply {
        match self.referrers {
            Referrers::Present => {}
            Referrers::Absent => return Reply::text(404, "text/plain", "404 page not found\n"),
            Referrers::Html => return Reply::text(200, "text/html", "<html>Sign in</html>"),
            Referrers::SeeOther => return redirect(303, "/login.html"),
        }
        let wanted = query(request).remove("artifactType");
        let manifests =
            self.repositories.get(name).into_iter().flat_map(|held| held.manifests.values());
        let found: Vec<Value> = manifests
            .filter_map(|manifest| {
                let body: Value = serde_json::from_slice(&manifest.bytes).ok()?;
                let kind = body["artifactType"].as_str()?;
                let fits = wanted.as_deref().is_none_or(|wanted| wanted == kind);
                let mut descriptor = manifest.descriptor();
                descriptor["artifactType"] = kind.into();
                (fits && body["subject"]["digest"] == subject).then_some(descriptor)
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
        let mut reply = Reply::text(200, OCI_INDEX, &index.to_string());
        if wanted.is_some() {
            reply.set(HeaderName::from_static("oci-filters-applied"), "artifactType");
        }
        reply
    }
}

pub(crate) const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

impl Limit {
    pub(crate) fn of(pulls: u32) -> Self {
        Self { pulls, remaining: pulls, retry_after: Some("3600".to_owned()) }
    }

    fn count(&mut self, method: &Method, headers: &mut HeaderMap) -> Option<Reply> {
        let spent = self.remaining == 0;
        if method == Method::GET {
            self.remaining = self.remaining.saturating_sub(1);
        }
        let mut refusal = error(429);
        for (name, number) in
            [("ratelimit-limit", self.pulls), ("ratelimit-remaining", self.remaining)]
        {
            let text = format!("{number};w=21600");
            refusal.set(HeaderName::from_static(name), &text);
        }
        refusal.set(HeaderName::from_static("docker-ratelimit-source"), "127.0.0.1");
        headers.extend(refusal.headers.clone());
        headers.remove(CONTENT_TYPE);
        if let Some(seconds) = &self.retry_after {
            refusal.set(RETRY_AFTER, seconds);
        }
        (spent && method == Method::GET).then_some(refusal)
    }
}

fn redirect(code: u16, to: &str) -> Reply {
    Reply::text(code, "text/html", "<a>moved</a>").header(LOCATION, to)
}

/// `/v2/<name>/<kind>/<reference>` in its parts.
pub(crate) fn parse(path: &str) -> (&str, &str, &str) {
    let path = path.strip_prefix("/v2/").unwrap_or_default();
    let mut parts = path.rsplitn(3, '/');
    let reference = parts.next().unwrap_or_default();
    let kind = parts.next().unwrap_or_default();
    (parts.next().unwrap_or_default(), kind, reference)
}

fn query(request: &Parts) -> BTreeMap<String, String> {
    let query = request.uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}
