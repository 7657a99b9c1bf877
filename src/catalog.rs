//! What the records tell: which repositories there are, their tags, the content that each was shown
//! to contain, and what a manifest refers to. Read from the folder as it is asked for, since there
//! is no index that could be wrong.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Digest;
use crate::disk::{Disk, found};
use crate::media::Manifest;
use crate::name::{Repository, Tag};
use crate::sendfile;
use crate::store::{Content, Place, Store};

/// Objects of one image that are followed, against an index that names everything.
const CLOSURE_MAX: usize = 10_000;

/// Looks at each repository that there are records of, in the order of names, until told to stop.
/// Blocks the thread.
///
/// # Errors
/// What the file system says.
pub fn each_place(
    disk: &Disk,
    upstream: Option<&str>,
    look: &mut dyn FnMut(Place) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let root = disk.root().join("repos");
    for name in names(&root)? {
        // What begins with `_` is not of an upstream: hosted repositories are.
        if name.starts_with('_') || upstream.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let shared: Arc<str> = name.as_str().into();
        if descend(&root.join(&name), &shared, "", look)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn descend(
    folder: &Path,
    upstream: &Arc<str>,
    repository: &str,
    look: &mut dyn FnMut(Place) -> io::Result<ControlFlow<()>>,
) -> io::Result<ControlFlow<()>> {
    let names = names(folder)?;
    let has_records = names.iter().any(|name| name == "_tags" || name == "_links");
    if let Ok(repository) = Repository::parse(repository)
        && has_records
        && look(Place { upstream: Arc::clone(upstream), repository })?.is_break()
    {
        return Ok(ControlFlow::Break(()));
    }
    for name in names.iter().filter(|name| !name.starts_with('_')) {
        let below =
            if repository.is_empty() { name.clone() } else { format!("{repository}/{name}") };
        if descend(&folder.join(name), upstream, &below, look)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The tags of a repository that there are records of. Blocks the thread.
///
/// # Errors
/// What the file system says.
pub fn tags(disk: &Disk, place: &Place) -> io::Result<Vec<Tag>> {
    let folder = disk.repository_path(&place.upstream, &place.repository).join("_tags");
    Ok(names(&folder)?.iter().filter_map(|name| Tag::parse(name).ok()).collect())
}

/// The digests that a repository was shown to contain. Blocks the thread.
///
/// # Errors
/// What the file system says.
pub fn links(disk: &Disk, place: &Place) -> io::Result<Vec<Digest>> {
    let folder = disk.repository_path(&place.upstream, &place.repository).join("_links");
    let mut found = Vec::new();
    for algorithm in names(&folder)? {
        let digests = names(&folder.join(&algorithm))?;
        found
            .extend(digests.iter().filter_map(|d| Digest::parse(&format!("{algorithm}:{d}")).ok()));
    }
    Ok(found)
}

/// The names in a folder, sorted; none where there is no such folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = found(std::fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        // A name that is no text is none of ours.
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// A manifest with all that it refers to, whether that is held or not.
pub async fn closure(store: &Arc<Store>, root: Digest) -> HashSet<Digest> {
    let mut found = HashSet::from([root]);
    let mut manifests = vec![root];
    while let Some(digest) = manifests.pop() {
        let Some(manifest) = manifest(store, digest).await else { continue };
        for child in manifest.manifests {
            if found.len() < CLOSURE_MAX && found.insert(child.digest) {
                manifests.push(child.digest);
            }
        }
        for blob in manifest.blobs {
            if found.len() < CLOSURE_MAX {
                found.insert(blob.digest);
            }
        }
    }
    found
}

/// A held manifest, read.
pub async fn manifest(store: &Arc<Store>, digest: Digest) -> Option<Manifest> {
    let content = store.find(digest).await.ok()??;
    Manifest::read(&bytes(content).await?, None).ok()
}

async fn bytes(content: Content) -> Option<Bytes> {
    match content {
        Content::Small(bytes) => Some(bytes),
        Content::Large(large) => {
            large.ensure(0, large.size).await.ok()?;
            sendfile::read(&large.file, 0, usize::try_from(large.size).ok()?).await.ok()
        }
    }
}
