//! Byte ranges (RFC 9110, section 14), read once and resolved against a size.

use crate::error::{Error, Kind};
use crate::limits::RANGES_MAX;

/// One range as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// `first-last`, both included; a missing last means to the end.
    From(u64, Option<u64>),
    /// `-length`: the last bytes.
    Suffix(u64),
    /// `last` before `first`: the specification lets a server ignore it, the conformance program
    /// of the distribution specification wants 416.
    Reversed,
}

/// What a `Range` header asks for, before the size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<Spec>);

/// Part of a body: `start` to `end`, the end not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Span {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// What to send for a request, once the size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it, with 200.
    Whole,
    /// One part, with 206 and `Content-Range`.
    One(Span),
    /// Several parts, with 206 and `multipart/byteranges`.
    Many(Vec<Span>),
}

impl Ranges {
    /// Reads a `Range` header. `None`: the header is to be ignored, because its unit is unknown or
    /// it asks for more parts than anyone needs.
    ///
    /// # Errors
    /// `RangeInvalid` for a malformed one.
    pub fn parse(header: &str) -> Result<Option<Self>, Error> {
        let malformed = || Error::new(Kind::RangeInvalid, "malformed Range header");
        let (unit, list) = header.split_once('=').ok_or_else(malformed)?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Ok(None);
        }
        if list.split(',').count() > RANGES_MAX {
            return Ok(None);
        }
        list.split(',')
            .map(|s| Spec::parse(s.trim()))
            .collect::<Option<Vec<_>>>()
            .map(Self)
            .map(Some)
            .ok_or_else(malformed)
    }

    /// Decides what to send of a body of `size` bytes. Parts that overlap so much that they add up
    /// to more than the whole are answered with the whole.
    ///
    /// # Errors
    /// `RangeInvalid` where no part can be met.
    pub fn select(&self, size: u64) -> Result<Selection, Error> {
        let spans: Vec<Span> = self.0.iter().filter_map(|spec| spec.resolve(size)).collect();
        match spans.as_slice() {
            [] => Err(Error::new(
                Kind::RangeInvalid,
                format!("range outside the blob's {size} bytes"),
            )),
            [one] => Ok(Selection::One(*one)),
            // Summed wide: an upstream may say any size, and a client ask for all of it many times.
            many if many.iter().map(|span| u128::from(span.len())).sum::<u128>()
                > u128::from(size) =>
            {
                Ok(Selection::Whole)
            }
            _ => Ok(Selection::Many(spans)),
        }
    }
}

impl Spec {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        match (number(first), number(last)) {
            (Some(first), Some(last)) if last < first => Some(Self::Reversed),
            (Some(first), Some(last)) => Some(Self::From(first, Some(last))),
            (Some(first), None) if last.is_empty() => Some(Self::From(first, None)),
            (None, Some(length)) if first.is_empty() => Some(Self::Suffix(length)),
            _ => None,
        }
    }

    fn resolve(self, size: u64) -> Option<Span> {
        match self {
            Self::From(first, last) if first < size => {
                let end = last.map_or(size, |l| l.saturating_add(1).min(size));
                Some(Span { start: first, end })
            }
            Self::Suffix(length) if length > 0 && size > 0 => {
                Some(Span { start: size.saturating_sub(length), end: size })
            }
            _ => None,
        }
    }
}

/// Digits only: `u64::from_str` would take a plus sign as well. Too large means beyond any blob.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(header: &str, size: u64) -> Result<Selection, Error> {
        Ranges::parse(header)?.map_or(Ok(Selection::Whole), |r| r.select(size))
    }

    fn one(start: u64, end: u64) -> Selection {
        Selection::One(Span { start, end })
    }

    #[test]
    fn the_forms_that_clients_send() {
        assert_eq!(select("bytes=500-1499", 2048).unwrap(), one(500, 1500));
        assert_eq!(select("bytes=500-", 2048).unwrap(), one(500, 2048));
        assert_eq!(select("bytes=-500", 2048).unwrap(), one(1548, 2048));
        assert_eq!(select("bytes=2000-5000", 2048).unwrap(), one(2000, 2048));
        assert_eq!(select("bytes=0-", 2048).unwrap(), one(0, 2048));
        assert_eq!(select("bytes=-9999", 10).unwrap(), one(0, 10));
        assert_eq!(
            select("bytes=0-1, 5-6", 10).unwrap(),
            Selection::Many(vec![Span { start: 0, end: 2 }, Span { start: 5, end: 7 }])
        );
    }

    #[test]
    fn what_cannot_be_met_is_refused() {
        for header in [
            "bytes=500-0",
            "bytes=5000-10000",
            "bytes=-0",
            "bytes=",
            "bytes=a-b",
            "bytes=--1",
            "bytes=+1-2",
            "bytes",
            "bytes=1",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(select(header, 2048).unwrap_err().kind(), Kind::RangeInvalid, "{header}");
        }
        assert!(select("bytes=0-", 0).is_err());
    }

    #[test]
    fn what_is_not_ours_is_ignored() {
        assert_eq!(select("items=0-5", 10).unwrap(), Selection::Whole);
        let flood = format!("bytes={}", vec!["0-0"; 10_000].join(","));
        assert_eq!(select(&flood, 10).unwrap(), Selection::Whole);
        assert_eq!(select("bytes=0-8,0-8", 10).unwrap(), Selection::Whole);
    }

    proptest! {
        #[test]
        fn a_selection_lies_within_the_body(header in "bytes=[0-9,-]{0,30}", size in 0u64..5000) {
            let spans = match select(&header, size) {
                Ok(Selection::One(span)) => vec![span],
                Ok(Selection::Many(spans)) => spans,
                _ => vec![],
            };
            for span in spans {
                prop_assert!(span.start < span.end && span.end <= size);
            }
        }
    }
}
