//! Lists of a hosted repository, by page: tags, what is attached to a manifest, and the catalog.

use std::collections::BinaryHeap;
use std::sync::Arc;

use serde_json::Value;

use super::{Hosted, folder, unreadable};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::limits::{PAGE_NAMES_MAX, PAGE_REFERRERS_BYTES_MAX, PAGE_REFERRERS_MAX};
use crate::name::{Repository, Tag};

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What stands on it, in order.
    pub items: Vec<T>,
    /// Whether there are more behind it.
    pub more: bool,
}

/// The least of what is offered, so that a page costs no more memory than it is long.
struct Least<T> {
    heap: BinaryHeap<T>,
    /// One more than the page, to know whether there are more.
    room: usize,
}

impl<T: Ord> Least<T> {
    fn new(page: usize) -> Self {
        Self { heap: BinaryHeap::new(), room: page + 1 }
    }

    fn offer(&mut self, item: T) {
        if self.heap.len() < self.room {
            self.heap.push(item);
        } else if let Some(mut greatest) = self.heap.peek_mut()
            && item < *greatest
        {
            *greatest = item;
        }
    }

    fn page(self) -> Page<T> {
        let page = self.room - 1;
        let mut items = self.heap.into_sorted_vec();
        let more = items.len() > page;
        items.truncate(page);
        Page { items, more }
    }
}

impl Hosted {
    /// A page of tags, in ASCII order, behind `last`.
    ///
    /// # Errors
    /// `NameUnknown` where there is no such repository, or `Internal`.
    pub async fn list_tags(
        self: &Arc<Self>,
        repository: &Repository,
        n: Option<u32>,
        last: Option<Tag>,
    ) -> Result<Page<Tag>> {
        let r = repository.clone();
        self.look(repository, move |_, folder| {
            let mut least = Least::new(page_size(n));
            folder
                .tags(|tag| {
                    if last.as_ref().is_none_or(|last| tag > *last) {
                        least.offer(tag);
                    }
                })
                .map_err(unreadable)?;
            let page = least.page();
            if page.items.is_empty() && !folder.is_there() {
                return Err(unknown(&r));
            }
            // With n=0 nothing is wanted, and nothing comes after it.
            Ok(Page { more: page.more && !page.items.is_empty(), ..page })
        })
        .await
    }

    /// A page of what is attached to a manifest, behind `last`.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn list_referrers(
        self: &Arc<Self>,
        repository: &Repository,
        subject: Digest,
        last: Option<Digest>,
    ) -> Result<(Page<Value>, Option<Digest>)> {
        self.look(repository, move |_, folder| {
            let mut least = Least::new(PAGE_REFERRERS_MAX);
            folder
                .referrers(&subject, |digest| {
                    if last.is_none_or(|last| digest > last) {
                        least.offer(digest);
                    }
                })
                .map_err(unreadable)?;
            let Page { items: digests, mut more } = least.page();
            let (mut items, mut bytes, mut end) = (Vec::new(), 0, None);
            for digest in digests {
                let before = end.replace(digest);
                // Without its link it is on its way in, or out.
                if folder.touched(&digest).map_err(unreadable)?.is_none() {
                    continue;
                }
                let Some(text) = folder.referrer(&subject, &digest).map_err(unreadable)? else {
                    continue;
                };
                if bytes > 0 && bytes + text.len() > PAGE_REFERRERS_BYTES_MAX {
                    (more, end) = (true, before);
                    break;
                }
                bytes += text.len();
                items.extend(serde_json::from_slice::<Value>(&text));
            }
            Ok((Page { items, more: more && end.is_some() }, end))
        })
        .await
    }

    /// A page of the repositories that live here, behind `last`.
    ///
    /// # Errors
    /// `Internal` where the disk fails.
    pub async fn list_repositories(
        &self,
        n: Option<u32>,
        last: Option<Repository>,
    ) -> Result<Page<Repository>> {
        let size = page_size(n);
        let listed = self.store.blocking(move |store| {
            let mut items = Vec::new();
            folder::repositories(store.disk(), last.as_ref(), |repository| {
                items.push(repository);
                items.len() <= size
            })?;
            let more = items.len() > size && size > 0;
            items.truncate(size);
            Ok(Page { items, more })
        });
        listed.await.map_err(unreadable)
    }
}

fn page_size(n: Option<u32>) -> usize {
    n.map_or(PAGE_NAMES_MAX, |n| PAGE_NAMES_MAX.min(n as usize))
}

fn unknown(repository: &Repository) -> Error {
    Error::new(Kind::NameUnknown, format!("nothing was ever pushed to {repository}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_the_least_in_order() {
        let page = |size, items: &[u32]| {
            let mut least = Least::new(size);
            for item in items {
                least.offer(*item);
            }
            let page = least.page();
            (page.items, page.more)
        };
        assert_eq!(page(2, &[5, 1, 4, 2]), (vec![1, 2], true));
        assert_eq!(page(2, &[2, 1]), (vec![1, 2], false));
        assert_eq!(page(0, &[2, 1]), (vec![], true));
        assert_eq!(page(3, &[]), (vec![], false));
    }
}
