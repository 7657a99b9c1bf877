//! Lists: tags by page and referrers, passed on from the upstream and cut to what was asked.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::limits::{PAGE_BYTES_MAX, REFERRER_PAGES_MAX};
use crate::media::OCI_INDEX;
use crate::name::Repository;
use crate::route::{Page, Target};
use crate::upstream::ask::{Ask, Object};
use crate::upstream::{Answer, Patience, Upstream};

/// A page of tags, and the link to the next one on ourselves.
#[derive(Debug)]
pub struct Tags {
    /// The document.
    pub body: Bytes,
    /// The value of `Link`.
    pub link: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct TagList {
    name: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// Asks for a page of tags. Registries that ignore `n` and `last` (distribution before 3.0) are
/// made up for: the list is sorted and cut here, which changes nothing where they were heeded.
///
/// # Errors
/// The upstream's, or `BadUpstream` where its answer is no list of tags.
pub async fn tags(
    upstream: &Upstream,
    target: &Target,
    page: &Page,
    namespace: Option<&str>,
) -> Result<Tags> {
    let repository = &target.repository;
    let path = format!("{repository}/tags/list{}", query(page, None));
    let answer = upstream.ask(&Ask::page(Object::Tags, repository, path), Patience::Full).await?;
    let has_more = next_page(&answer).is_some();
    let body = answer.whole(PAGE_BYTES_MAX).await?;
    let list: TagList = serde_json::from_slice(&body).map_err(|e| {
        Error::new(
            Kind::BadUpstream,
            format!("{} answered with something that is no list of tags", upstream.name()),
        )
        .because(e)
    })?;
    let mut tags = list.tags.unwrap_or_default();
    tags.sort_unstable();
    tags.dedup();
    if let Some(last) = &page.last {
        tags.retain(|t| t.as_str() > last.as_str());
    }
    let n = page.n.map_or(usize::MAX, |n| n as usize);
    let cut = tags.len() > n;
    tags.truncate(n);
    let link = (cut || has_more).then(|| tags.last()).flatten().map(|last| {
        let next = Page { n: page.n, last: crate::name::Tag::parse(last).ok() };
        format!(
            "<{}{repository}/tags/list{}>; rel=\"next\"",
            target.prefix,
            query(&next, namespace)
        )
    });
    let list = TagList { name: repository.to_string(), tags: Some(tags) };
    let body =
        serde_json::to_vec(&list).map_err(|e| Error::internal("cannot write a list of tags", e))?;
    Ok(Tags { body: body.into(), link })
}

fn query(page: &Page, namespace: Option<&str>) -> String {
    let mut out = url::form_urlencoded::Serializer::new(String::new());
    if let Some(n) = page.n {
        out.append_pair("n", &n.to_string());
    }
    if let Some(last) = &page.last {
        out.append_pair("last", last.as_str());
    }
    if let Some(ns) = namespace {
        out.append_pair("ns", ns);
    }
    let text = out.finish();
    if text.is_empty() { text } else { format!("?{text}") }
}

/// The query of the next page, from a `Link` header. Only its query is taken: the path stays ours,
/// so no upstream leads us anywhere else.
fn next_page(answer: &Answer) -> Option<String> {
    let link = answer.headers().get(http::header::LINK)?.to_str().ok()?;
    let target =
        link.strip_prefix('<')?.split_once('>').filter(|(_, rest)| rest.contains("next"))?.0;
    target.split_once('?').map(|(_, query)| query.to_owned())
}

/// Whether the upstream has the referrers API.
#[derive(Debug)]
pub enum Referrers {
    /// It answered with these descriptors.
    Listed(Vec<Value>),
    /// It lacks the API: the fallback tag tells.
    Unsupported,
}

/// Asks for all that is attached to a manifest, page by page, unfiltered: ECR answers empty to
/// several filters.
///
/// # Errors
/// The upstream's where it is a refusal or an outage; an error is never an empty list.
pub async fn referrers(
    upstream: &Upstream,
    repository: &Repository,
    subject: &Digest,
) -> Result<Referrers> {
    let base = format!("{repository}/referrers/{subject}");
    let mut path = base.clone();
    let mut found = Vec::new();
    let mut seen = std::collections::HashSet::new();
    while seen.len() < REFERRER_PAGES_MAX && seen.insert(path.clone()) {
        let answer = match upstream
            .ask(&Ask::page(Object::Referrers, repository, path), Patience::Full)
            .await
        {
            Ok(answer) => answer,
            // 400, 405, 406 and 303 to a web page are other ways to lack the API.
            Err(e) if e.is_absence() || e.kind() == Kind::BadUpstream => {
                return Ok(Referrers::Unsupported);
            }
            Err(e) => return Err(e),
        };
        let content_type =
            answer.headers().get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        if content_type.is_none_or(|t| t.split(';').next().map(str::trim) != Some(OCI_INDEX)) {
            return Ok(Referrers::Unsupported);
        }
        let next = next_page(&answer);
        found.extend(descriptors(&answer.whole(PAGE_BYTES_MAX).await?).ok_or_else(|| {
            Error::new(
                Kind::BadUpstream,
                format!("{} answered with something that is no index", upstream.name()),
            )
        })?);
        match next {
            Some(query) => path = format!("{base}?{query}"),
            None => break,
        }
    }
    Ok(Referrers::Listed(found))
}

/// The descriptors of an index, as they stand there.
pub fn descriptors(index: &[u8]) -> Option<Vec<Value>> {
    match serde_json::from_slice::<Value>(index).ok()?.get_mut("manifests")?.take() {
        Value::Array(list) => Some(list),
        _ => None,
    }
}

/// The answer of the referrers API, filtered.
pub fn referrers_index(mut found: Vec<Value>, types: &[String]) -> Bytes {
    if !types.is_empty() {
        found.retain(|d| {
            d["artifactType"].as_str().is_some_and(|t| types.iter().any(|want| want == t))
        });
    }
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found})
        .to_string()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn referrers_are_filtered_by_type() {
        let index =
            br#"{"manifests":[{"artifactType":"a","size":1},{"artifactType":"b"},{"size":3}]}"#;
        let filtered = |types: &[&str]| {
            let types: Vec<String> = types.iter().map(ToString::to_string).collect();
            let body = referrers_index(descriptors(index).unwrap(), &types);
            descriptors(&body).unwrap().len()
        };
        assert_eq!(
            (filtered(&[]), filtered(&["a"]), filtered(&["a", "b"]), filtered(&["c"])),
            (3, 1, 2, 0)
        );
    }
}
