//! `warm`: pulls images through the running mirror, so that they are held when they are wanted.

#![expect(clippy::print_stderr, reason = "progress is for people and goes to standard error")]

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, RANGE};
use indicatif::ProgressBar;
use serde_json::json;

use super::ask::Admin;
use super::ops::{bar, pretty, word};
use crate::digest::Digest;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::media::{ACCEPT_MANIFESTS, Descriptor, Manifest, Platform};

/// Blobs of one image pulled at once.
const AT_ONCE: usize = 4;

/// What is to be pulled.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) images: Vec<String>,
    pub(super) file: Option<PathBuf>,
    pub(super) platform: Option<String>,
}

/// What came of one image.
#[derive(Clone, Copy, Debug, Default)]
struct Pulled {
    objects: u64,
    bytes: u64,
    held: u64,
}

/// Pulls all images, one after the other; one that fails does not stop the rest.
pub(super) async fn run(admin: &Admin, wanted: &Wanted) -> anyhow::Result<String> {
    let mut images = wanted.images.clone();
    if let Some(file) = &wanted.file {
        images.extend(read_list(file)?);
    }
    let platform = Choice::parse(wanted.platform.as_deref())?;
    let mirror = admin.pull_url().await?;
    let (mut rows, mut failures) = (Vec::new(), 0);
    for image in &images {
        let bar = bar(admin.json, 0);
        bar.set_message(image.clone());
        let pulled = pull(admin, &mirror, image, &platform, &bar).await;
        bar.finish_and_clear();
        match pulled {
            Ok(p) => {
                if !admin.json {
                    let size = ByteSize(p.bytes);
                    eprintln!("{image}: {} objects, {size}, {} were held", p.objects, p.held);
                }
                rows.push(
                    json!({"image": image, "objects": p.objects, "bytes": p.bytes, "held": p.held}),
                );
            }
            Err(error) => {
                failures += 1;
                if !admin.json {
                    eprintln!("{image}: {error:#}");
                }
                rows.push(json!({"image": image, "error": format!("{error:#}")}));
            }
        }
    }
    let text = if admin.json { pretty(&json!(rows)) } else { String::new() };
    if failures > 0 {
        if admin.json {
            say!("{text}");
        }
        bail!("{failures} of {} images could not be pulled", images.len());
    }
    Ok(text)
}

#[expect(clippy::disallowed_methods, reason = "the list is the operator's file, read once")]
fn read_list(file: &Path) -> anyhow::Result<Vec<String>> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
    } else {
        text = std::fs::read_to_string(file)
            .with_context(|| format!("{} cannot be read", file.display()))?;
    }
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Which children of an index are wanted.
#[derive(Debug)]
enum Choice {
    All,
    One(Platform),
}

impl Choice {
    fn parse(text: Option<&str>) -> anyhow::Result<Self> {
        let text = match text {
            Some("all") => return Ok(Self::All),
            Some(text) => text.to_owned(),
            None => format!("linux/{}", this_architecture()),
        };
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) => {
                Ok(Self::One(Platform { architecture, os, variant }))
            }
            _ => bail!("{text} is no platform; write OS/ARCHITECTURE, such as linux/arm64, or all"),
        }
    }

    fn takes(&self, child: &Descriptor) -> bool {
        let (Self::One(wanted), Some(given)) = (self, &child.platform) else { return true };
        wanted.os == given.os
            && wanted.architecture == given.architecture
            && (wanted.variant.is_none() || wanted.variant == given.variant)
    }
}

fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn pull(
    admin: &Admin,
    mirror: &str,
    image: &str,
    platform: &Choice,
    bar: &ProgressBar,
) -> anyhow::Result<Pulled> {
    let means = admin.get("/api/image", &[("image", image)]).await?;
    let base = format!("{mirror}{}", word(&means["path"]));
    let mut pulled = Pulled::default();
    let mut references = vec![word(&means["reference"]).to_owned()];
    let mut blobs = BTreeSet::new();
    let mut seen = BTreeSet::new();
    while let Some(reference) = references.pop() {
        let manifest =
            manifest(admin, &format!("{base}/manifests/{reference}"), &mut pulled).await?;
        let children: Vec<_> = manifest.manifests.iter().filter(|c| platform.takes(c)).collect();
        if children.is_empty() && !manifest.manifests.is_empty() {
            bail!("it is not made for this platform; name another one with --platform");
        }
        for child in children {
            if seen.insert(child.digest) {
                references.push(child.digest.to_string());
            }
        }
        blobs.extend(manifest.blobs.iter().map(|blob| (blob.digest, blob.size)));
    }
    bar.set_length(blobs.iter().map(|(_, size)| size).sum());
    let pulls = blobs.into_iter().map(|(digest, size)| blob(admin, &base, digest, size, bar));
    let mut pulls = stream::iter(pulls).buffer_unordered(AT_ONCE);
    while let Some(done) = pulls.next().await {
        let (bytes, held) = done?;
        pulled.objects += 1;
        pulled.bytes += bytes;
        pulled.held += u64::from(held);
    }
    Ok(pulled)
}

async fn manifest(admin: &Admin, url: &str, pulled: &mut Pulled) -> anyhow::Result<Manifest> {
    let answer = admin.pull(url).header(ACCEPT, ACCEPT_MANIFESTS).send().await;
    let answer = good(answer.context("the mirror does not answer")?).await?;
    let held = is_hit(&answer);
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let bytes = answer.bytes().await.context("the manifest broke off")?;
    if bytes.len() > MANIFEST_BYTES_MAX {
        bail!("the manifest is too large");
    }
    pulled.objects += 1;
    pulled.bytes += bytes.len() as u64;
    pulled.held += u64::from(held);
    Ok(Manifest::read(&bytes, kind.as_deref())?)
}

/// Pulls a blob: of one that is held a byte, which costs the upstream nothing and says that it is
/// held, of another all. How many bytes it has, and whether it was held.
async fn blob(
    admin: &Admin,
    base: &str,
    digest: Digest,
    size: u64,
    bar: &ProgressBar,
) -> anyhow::Result<(u64, bool)> {
    let url = format!("{base}/blobs/{digest}");
    let failed = || format!("{digest} cannot be pulled");
    if size > 0 {
        let first =
            admin.pull(&url).header(RANGE, "bytes=0-0").send().await.with_context(failed)?;
        let first = good(first).await.with_context(failed)?;
        if is_hit(&first) {
            bar.inc(size);
            return Ok((size, true));
        }
    }
    let answer =
        good(admin.pull(&url).send().await.with_context(failed)?).await.with_context(failed)?;
    let held = size == 0 && is_hit(&answer);
    let mut body = answer.bytes_stream();
    let mut bytes = 0;
    while let Some(piece) = body.next().await {
        let length = piece.with_context(failed)?.len() as u64;
        bytes += length;
        bar.inc(length);
    }
    Ok((bytes, held))
}

fn is_hit(answer: &reqwest::Response) -> bool {
    let word = answer.headers().get("cache-status").and_then(|v| v.to_str().ok());
    word.is_some_and(|word| word.starts_with("pierhead; hit"))
}

/// The answer, or what the mirror says is wrong.
async fn good(answer: reqwest::Response) -> anyhow::Result<reqwest::Response> {
    let status = answer.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(answer);
    }
    let text = answer.text().await.unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match value["errors"][0]["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => bail!("the mirror answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_two_or_three_words() {
        for bad in ["linux", "", "a/b/c/d"] {
            assert!(Choice::parse(Some(bad)).is_err(), "{bad}");
        }
        let Ok(Choice::One(wanted)) = Choice::parse(Some("linux/arm/v7")) else { panic!("lawful") };
        assert_eq!(wanted.variant.as_deref(), Some("v7"));
        assert!(matches!(Choice::parse(Some("all")), Ok(Choice::All)));
    }
}
