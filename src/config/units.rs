//! Sizes, durations and shares as people write them: `100GiB`, `1h30m`, `5%`.
//!
//! Each type has one way in (`parse`) and one way out (`Display`), and what goes out parses back to
//! the same value; serde and the schema use the same two.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SpanRelativeTo;
use jiff::fmt::friendly::{Designator, Spacing, SpanParser, SpanPrinter};

/// The longest duration that is believed. Clocks cannot be moved by arbitrary spans without
/// overflow, and a longer one is a slip of the pen.
const SPAN_DAYS_MAX: u64 = 3650;

/// Why a text is not a size, a duration or a share: what is wrong and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many mebibytes.
    #[must_use]
    pub const fn mib(mebibytes: u64) -> Self {
        Self(mebibytes << 20)
    }

    /// So many gibibytes.
    #[must_use]
    pub const fn gib(gibibytes: u64) -> Self {
        Self(gibibytes << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Reads `100GiB`, `10 GB`, `512M` or a plain number of bytes.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        match ByteSize::from_str(text.trim()).map(|size| size.as_u64()) {
            // The parser saturates, so this value stands for everything that does not fit.
            Ok(u64::MAX) => {
                Err(UnitError(format!("`{text}` is larger than any disk; write a smaller size")))
            }
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(UnitError(format!(
                "`{text}` is not a size; write a number and a unit, for example 100GiB or 500MB"
            ))),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: &[(&str, u64)] = &[
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
            ("TB", 1_000_000_000_000),
            ("GB", 1_000_000_000),
            ("MB", 1_000_000),
            ("kB", 1_000),
        ];
        // Only a unit that divides evenly, so that nothing is lost on the way back.
        match UNITS.iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A duration that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

impl Span {
    /// So many seconds.
    #[must_use]
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Reads `60s`, `1h30m`, `500ms` or `2d`; a day is 24 hours.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(UnitError(format!("`{text}` has no unit; write {text}s for seconds")));
        }
        let wrong = || {
            UnitError(format!(
                "`{text}` is not a duration; write numbers and units, for example 60s, 1h30m or 2d"
            ))
        };
        let span = SpanParser::new().parse_span(text).map_err(|_| wrong())?;
        if span.is_negative() {
            return Err(UnitError(format!("`{text}` is negative; write a duration from 0s up")));
        }
        // Months and years have no fixed length and are refused here.
        let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
        let duration = Duration::try_from(signed).map_err(|_| wrong())?;
        if duration > Duration::from_secs(SPAN_DAYS_MAX * 86_400) {
            return Err(UnitError(format!("`{text}` is too long; write at most {SPAN_DAYS_MAX}d")));
        }
        Ok(Self(duration))
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printer = SpanPrinter::new().designator(Designator::Compact).spacing(Spacing::None);
        f.write_str(&printer.unsigned_duration_to_string(&self.0))
    }
}

/// How much of a file system must stay free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// So many bytes.
    Size(Size),
    /// A share of the whole, in hundredths of a per cent: 10000 is everything.
    Share(u16),
}

impl Free {
    /// So many per cent of the whole.
    #[must_use]
    pub const fn percent(percent: u8) -> Self {
        Self::Share(percent as u16 * 100)
    }

    /// The bytes that must stay free of `bytes_total`.
    #[must_use]
    pub fn of(self, bytes_total: u64) -> u64 {
        match self {
            Self::Size(size) => size.bytes(),
            Self::Share(share) => {
                let part = u128::from(bytes_total) * u128::from(share) / 10_000;
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        }
    }

    /// Reads a size, or a percentage with at most two decimals such as `5%` or `2.5%`.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            return Size::parse(text).map(Self::Size).map_err(|error| {
                let hint = if error.0.contains("not a size") {
                    ", or a percentage such as 5%"
                } else {
                    ""
                };
                UnitError(format!("{}{hint}", error.0))
            });
        };
        match hundredths(percent.trim_end()) {
            Some(share) if share <= 10_000 => Ok(Self::Share(share)),
            _ => Err(UnitError(format!(
                "`{text}` is not a percentage; write a number from 0% to 100%, for example 5%"
            ))),
        }
    }
}

/// `"2.5"` to 250; `None` where that is not exact.
fn hundredths(number: &str) -> Option<u16> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 2 {
        return None;
    }
    let scale = if fraction.len() == 1 { 10 } else { 1 };
    whole.parse::<u16>().ok()?.checked_mul(100)?.checked_add(fraction.parse::<u16>().ok()? * scale)
}

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            Self::Share(share) if share % 100 == 0 => write!(f, "{}%", share / 100),
            Self::Share(share) => write!(f, "{}.{:02}%", share / 100, share % 100),
        }
    }
}

/// A share, from 0 to 1, to the millionth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u32);

impl Ratio {
    /// All of it.
    const WHOLE: u32 = 1_000_000;

    /// One of ten.
    pub const TENTH: Self = Self(Self::WHOLE / 10);

    /// The share.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from(self.0) / f64::from(Self::WHOLE)
    }

    /// Reads a share: `0.1`, `10%`.
    ///
    /// # Errors
    /// A sentence that says what to write instead.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to a million, as was just seen"
    )]
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let (number, whole) = match text.trim().strip_suffix('%') {
            Some(percent) => (percent, 100.0),
            None => (text, 1.0),
        };
        let share = number.trim().parse().map(|number: f64| number / whole);
        match share {
            Ok(share) if (0.0..=1.0).contains(&share) => {
                Ok(Self((share * f64::from(Self::WHOLE)).round() as u32))
            }
            _ => {
                Err(UnitError(format!("`{text}` is no share; write one from 0 to 1, such as 0.1")))
            }
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// What a unit shares with the others: text in, text out, and its entry in the schema.
macro_rules! reads_as_text {
    ($unit:ident, $expecting:literal, $types:expr, $examples:expr) => {
        impl FromStr for $unit {
            type Err = UnitError;

            fn from_str(text: &str) -> Result<Self, UnitError> {
                Self::parse(text)
            }
        }

        impl serde::Serialize for $unit {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $unit {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $unit;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$unit, E> {
                        $unit::parse(text).map_err(E::custom)
                    }

                    // Numbers go the same way, so that one place decides what a bare one means.
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$unit, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$unit, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<$unit, E> {
                        self.visit_str(&number.to_string())
                    }
                }

                deserializer.deserialize_any(Visitor)
            }
        }

        impl schemars::JsonSchema for $unit {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($unit).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "description": concat!("Written as ", $expecting, "."),
                    "type": $types,
                    "examples": $examples,
                })
            }
        }
    };
}

reads_as_text!(Size, "a size such as 100GiB or 500MB", ["string", "integer"], ["100GiB", "500MB"]);
reads_as_text!(Span, "a duration such as 60s or 1h30m", "string", ["60s", "1h30m", "500ms", "2d"]);
reads_as_text!(
    Free,
    "a size such as 20GiB or a percentage such as 5%",
    ["string", "integer"],
    ["5%", "20GiB"]
);
reads_as_text!(Ratio, "a share from 0 to 1 such as 0.1", ["number", "string"], ["0.1", "10%"]);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_are_read_and_written() {
        for (text, wanted) in
            [("0", "0"), ("1", "1"), ("0.1", "0.1"), ("10%", "0.1"), ("1e-6", "0.000001")]
        {
            let ratio = Ratio::parse(text).unwrap();
            assert_eq!(ratio.to_string(), wanted);
            assert_eq!(Ratio::parse(wanted).unwrap(), ratio);
        }
        for text in ["", "-0.1", "1.1", "101%", "nan", "inf", "all"] {
            assert!(Ratio::parse(text).unwrap_err().to_string().contains("from 0 to 1"), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("100GiB", 100 << 30),
            ("10 GB", 10_000_000_000),
            ("512M", 512_000_000),
            ("1.5KiB", 1536),
            ("64k", 64_000),
            ("0", 0),
            (" 4096 ", 4096),
        ] {
            assert_eq!(Size::parse(text).unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("60s", 60_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("2d", 172_800_000),
            ("0", 0),
            ("1h 5m", 3_900_000),
        ] {
            assert_eq!(Span::parse(text).unwrap().get().as_millis(), milliseconds, "{text}");
        }
    }

    #[test]
    fn shares_are_taken_of_the_whole() {
        for (text, free) in
            [("5%", 50), ("2.5 %", 25), ("0.05%", 0), ("100%", 1000), ("1KiB", 1024), ("7", 7)]
        {
            assert_eq!(Free::parse(text).unwrap().of(1000), free, "{text}");
        }
        assert_eq!(Free::percent(100).of(u64::MAX), u64::MAX);
    }

    #[test]
    fn refusals_say_what_to_write() {
        let size = |text| Size::parse(text).unwrap_err().to_string();
        let span = |text| Span::parse(text).unwrap_err().to_string();
        let free = |text| Free::parse(text).unwrap_err().to_string();
        for (found, wanted) in [
            (
                size("10 apples"),
                "`10 apples` is not a size; write a number and a unit, for example 100GiB or 500MB",
            ),
            (size("99999999EiB"), "`99999999EiB` is larger than any disk; write a smaller size"),
            (span("60"), "`60` has no unit; write 60s for seconds"),
            (span("-5s"), "`-5s` is negative; write a duration from 0s up"),
            (
                span("1mo"),
                "`1mo` is not a duration; write numbers and units, for example 60s, 1h30m or 2d",
            ),
            (span("99999d"), "`99999d` is too long; write at most 3650d"),
            (
                free("101%"),
                "`101%` is not a percentage; write a number from 0% to 100%, for example 5%",
            ),
            (
                free("+5%"),
                "`+5%` is not a percentage; write a number from 0% to 100%, for example 5%",
            ),
            (
                free("some"),
                "`some` is not a size; write a number and a unit, for example 100GiB or 500MB, or a percentage such as 5%",
            ),
        ] {
            assert_eq!(found, wanted);
        }
        for text in ["", "-1", "1e3GB", "GiB", "٣GB"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
        for text in ["", "s", "1y", "1 fortnight", "٣s"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_survives_its_text(bytes in 0..u64::MAX, unit in 0..64) {
            let size = Size::new(bytes >> unit << unit);
            prop_assert_eq!(Size::parse(&size.to_string()).unwrap(), size);
        }

        #[test]
        fn a_duration_survives_its_text(seconds in 0..SPAN_DAYS_MAX * 86_400, nanos in 0..1_000_000_000_u32) {
            let span = Span::from(Duration::new(seconds, nanos));
            prop_assert_eq!(Span::parse(&span.to_string()).unwrap(), span);
            prop_assert_eq!(Span::parse(&Span::secs(seconds).to_string()).unwrap(), Span::secs(seconds));
        }

        #[test]
        fn a_share_survives_its_text(share in 0..=10_000_u16) {
            prop_assert_eq!(Free::parse(&Free::Share(share).to_string()).unwrap(), Free::Share(share));
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,20}") {
            let _ = (Size::parse(&text), Span::parse(&text), Free::parse(&text));
        }
    }
}
