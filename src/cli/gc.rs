//! Orders to the running mirror, given at its admin address.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::units::{Size, Span};
use crate::config::{Config, admin};

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

/// Has garbage collected by the mirror that this configuration runs, and returns what it says of it.
///
/// # Errors
/// Where the mirror does not answer, or refuses.
pub async fn collect(config: &Config, dry_run: bool, grace: Option<Span>) -> anyhow::Result<Value> {
    let url = format!("http://{}/gc", config.admin.address);
    let order = json!({"dry_run": dry_run, "grace": grace});
    // No proxy: the address is near, and none of its business.
    let client = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .build()
        .context("cannot make a client")?;
    let mut request = client.post(&url).json(&order);
    if let Some(file) = &config.admin.token_file {
        let token = admin::token(file).map_err(anyhow::Error::msg)?;
        request = request.bearer_auth(token.as_str());
    }
    let answer = request.send().await.with_context(|| {
        format!(
            "no mirror answers at {}; is it running, with this configuration?",
            config.admin.address
        )
    })?;
    let status = answer.status();
    let text = answer.text().await.context("the mirror's answer broke off")?;
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if !status.is_success() {
        let why = body["errors"][0]["message"]
            .as_str()
            .or(body["error"].as_str())
            .map_or_else(|| text.clone(), str::to_owned);
        bail!("the mirror refused ({status}): {}", why.trim());
    }
    Ok(body)
}

/// What a collection did, for people.
///
/// # Errors
/// Where the report is none.
pub fn in_words(report: &Value) -> anyhow::Result<String> {
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
