//! `gc`: garbage of hosted repositories, collected by the running mirror.

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::Admin;
use super::ops::pretty;
use crate::config::units::{Size, Span};

/// What is removed, as it is told.
#[derive(Debug, Deserialize)]
struct Told {
    repositories: u64,
    manifests: u64,
    blobs: u64,
    uploads: u64,
    bytes: u64,
    items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    repository: String,
    digest: String,
    size: u64,
    why: String,
}

/// `gc`: has the mirror collect garbage.
pub(super) async fn run(
    admin: &Admin,
    dry_run: bool,
    grace: Option<Span>,
) -> anyhow::Result<String> {
    let report = admin.post_at_length("/gc", &json!({"dry_run": dry_run, "grace": grace})).await?;
    if admin.json { Ok(pretty(&report)) } else { in_words(&report) }
}

/// What a collection did, for people.
fn in_words(report: &Value) -> anyhow::Result<String> {
    let told = Told::deserialize(report).context("the mirror said something else than a report")?;
    let dry = report["dry_run"] == true;
    let mut lines: Vec<String> = told
        .items
        .iter()
        .map(|item| {
            let size = Size::new(item.size);
            format!("{}@{}  {size}  {}", item.repository, item.digest, item.why)
        })
        .collect();
    let unseen = (told.manifests + told.blobs).saturating_sub(lines.len() as u64);
    if unseen > 0 {
        lines.push(format!("… and {unseen} more"));
    }
    let done = if dry { "would remove" } else { "removed" };
    lines.push(format!(
        "{done} {} manifests, {} blobs and {} uploads; room on disk: {}; repositories: {}",
        told.manifests,
        told.blobs,
        told.uploads,
        Size::new(told.bytes),
        told.repositories
    ));
    Ok(lines.join("\n") + "\n")
}
