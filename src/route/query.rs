//! The parameters of a request.

use super::{Action, Page, STATE, Start, Target};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Kind};
use crate::limits::{PATH_BYTES_MAX, PUSHED_TAGS_MAX};
use crate::name::{Repository, Tag};

/// The parameters of a request; unknown ones are ignored.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: Option<&str>) -> Result<Self, Error> {
        let text = text.unwrap_or_default();
        if text.len() > 4 * PATH_BYTES_MAX {
            return Err(Error::new(Kind::BadRequest, "query is too long"));
        }
        Ok(Self(url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()))
    }

    pub(super) fn one(&self, key: &str) -> Result<Option<String>, Error> {
        let mut values = self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.cloned()),
            _ => Err(Error::new(Kind::BadRequest, format!("{key} is given more than once"))),
        }
    }

    /// As `one`; in an address of an upload, which has it already, a client may say it once more.
    pub(super) fn namespace(&self) -> Result<Option<String>, Error> {
        let ours = self.0.iter().any(|(key, _)| key == STATE);
        let mut values = self.0.iter().filter(|(key, _)| key == "ns").map(|(_, value)| value);
        let first = values.next();
        if ours && values.all(|other| Some(other) == first) {
            return Ok(first.cloned());
        }
        self.one("ns")
    }

    pub(super) fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.clone()).collect()
    }

    pub(super) fn n(&self) -> Result<Option<u32>, Error> {
        match self.one("n")? {
            None => Ok(None),
            Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Some(n.parse().unwrap_or(u32::MAX)))
            }
            Some(_) => Err(Error::new(Kind::PaginationInvalid, "n is not a number")),
        }
    }

    pub(super) fn page(&self) -> Result<Page, Error> {
        let n = self.n()?;
        let last = self
            .one("last")?
            .filter(|l| !l.is_empty())
            .map(|l| Tag::parse(&l))
            .transpose()
            .map_err(|_| Error::new(Kind::PaginationInvalid, "last is not a tag"))?;
        Ok(Page { n, last })
    }

    pub(super) fn catalog(&self) -> Result<Action, Error> {
        let last = self
            .one("last")?
            .filter(|last| !last.is_empty())
            .map(|last| Repository::parse(&last))
            .transpose()
            .map_err(|_| Error::new(Kind::PaginationInvalid, "last is not a repository"))?;
        Ok(Action::Catalog(self.n()?, last))
    }

    /// Further tags for a manifest.
    pub(super) fn tags(&self) -> Result<Vec<Tag>, Error> {
        let tags = self.all("tag");
        if tags.len() > PUSHED_TAGS_MAX {
            let text = format!("more than {PUSHED_TAGS_MAX} tags; push the manifest once more");
            return Err(Error::new(Kind::TagInvalid, text));
        }
        tags.iter().map(|tag| Tag::parse(tag)).collect()
    }

    pub(super) fn start(&self) -> Result<Start, Error> {
        let digest = self.one("digest")?.map(|text| Digest::parse(&text)).transpose()?;
        let mount = self.one("mount")?.map(|text| Digest::parse(&text)).transpose()?;
        let algorithm = match self.one("digest-algorithm")? {
            Some(word) => Algorithm::parse(&word).ok_or_else(|| {
                Error::new(Kind::DigestInvalid, "digest-algorithm is neither sha256 nor sha512")
            })?,
            None => digest.or(mount).map_or(Algorithm::Sha256, |digest| digest.algorithm()),
        };
        Ok(Start { digest, algorithm, mount: mount.map(|mount| (mount, None)) })
    }

    /// What is to be mounted, and from where. A client names that place as it names its target, so
    /// it is read the same way; from elsewhere nothing is mounted, and the upload begins instead.
    pub(super) fn mount(
        &self,
        target: &Target,
        origin: impl Fn(&str) -> Result<Target, Error>,
    ) -> Result<Option<(Digest, Option<Repository>)>, Error> {
        let Some(mount) = self.one("mount")? else { return Ok(None) };
        let mount = Digest::parse(&mount)?;
        let Some(from) = self.one("from")? else { return Ok(Some((mount, None))) };
        match origin(&from) {
            Ok(from) if from.upstream == target.upstream => {
                Ok(Some((mount, Some(from.repository))))
            }
            Err(error) if error.kind() == Kind::NameInvalid => Err(error),
            Ok(_) | Err(_) => Ok(None),
        }
    }
}
