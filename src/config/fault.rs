//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;

use serde::Serialize;

use super::auth::HIDDEN;
use super::tree::Origin;

/// After so many faults the rest is noise, and a hostile file would keep us busy.
pub(super) const FAULTS_MAX: usize = 50;

/// What of a message or an excerpt fits a few lines of a terminal.
const TEXT_CHARS_MAX: usize = 400;
const EXCERPT_CHARS_MAX: usize = 160;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// `FILE:LINE:COLUMN`, or the variable or flag that is to blame.
    pub place: String,
    /// The line in the file, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in the file, in characters counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What is wrong; what to do.
    pub message: String,
    /// The line of the file with a mark under the column, secrets hidden.
    #[serde(skip)]
    excerpt: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        self.excerpt.as_ref().map_or(Ok(()), |excerpt| write!(f, "\n{excerpt}"))
    }
}

/// All that is wrong, in the order of the file. `Display` prints one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Sorts by place and drops what is said twice, as aliases do.
    pub(super) fn new(mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|a, b| {
            let key = |fault: &Fault| (fault.line.is_none(), fault.line, fault.column);
            key(a).cmp(&key(b)).then_with(|| (&a.place, &a.message).cmp(&(&b.place, &b.message)))
        });
        faults.dedup();
        Self(faults)
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much is wrong.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One after the other, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A text and the name it goes by.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
}

impl Source {
    /// A text without the mark that some editors put before it.
    pub(super) fn new(name: String, text: &str) -> Self {
        Self { name, text: text.trim_start_matches('\u{feff}').to_owned() }
    }

    /// The place that `origin` names, for people.
    pub(super) fn place(&self, origin: &Origin) -> String {
        match origin {
            Origin::Default => "default".to_owned(),
            Origin::File { line, column, .. } => format!("{}:{line}:{column}", self.name),
            Origin::Env(name) => format!("environment variable {name}"),
            Origin::Flag(name) => (*name).to_owned(),
        }
    }

    pub(super) fn fault(&self, origin: &Origin, message: impl Into<String>) -> Fault {
        let (line, column) = match origin {
            Origin::File { line, column, .. } => (Some(*line), Some(*column)),
            // What nobody wrote is wrong only because of the file as a whole.
            Origin::Default | Origin::Env(_) | Origin::Flag(_) => (None, None),
        };
        let place = if *origin == Origin::Default { self.name.clone() } else { self.place(origin) };
        let excerpt = line.zip(column).and_then(|(line, column)| self.excerpt(line, column));
        Fault { place, line, column, message: tame(&message.into(), TEXT_CHARS_MAX), excerpt }
    }

    fn excerpt(&self, line: usize, column: usize) -> Option<String> {
        let text = self.text.lines().nth(line.checked_sub(1)?)?;
        let text = tame(&veil(text), EXCERPT_CHARS_MAX);
        let before = (column - 1).min(text.chars().count());
        // Tabs are kept in the margin, so that the caret stands under its character.
        let margin: String =
            text.chars().take(before).map(|c| if c == '\t' { c } else { ' ' }).collect();
        Some(format!("{line:>6} | {text}\n       | {margin}^"))
    }
}

/// The text without what could play tricks on a terminal, and no longer than that.
fn tame(text: &str, chars_max: usize) -> String {
    let plain = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    let mut chars = text.chars();
    let mut tamed: String = chars.by_ref().take(chars_max).map(plain).collect();
    if chars.next().is_some() {
        tamed.push('…');
    }
    tamed
}

/// The line without the secrets that may stand in it. It errs on the side of hiding: all that
/// follows a key that looks like a password's, however it is spelt, and the user part of a URL.
fn veil(line: &str) -> String {
    let mut line = line.trim_end().to_owned();
    if let Some(end) = secret_at(&line) {
        let rest = line[end..].trim_start();
        if !rest.is_empty() && !is_reference(rest) {
            line.truncate(end);
            line.push(' ');
            line.push_str(HIDDEN);
        }
    }
    if let Some((start, at)) = user_info(&line) {
        line.replace_range(start..at, HIDDEN);
    }
    line
}

/// Where the value of the first key begins that looks like a password's.
fn secret_at(line: &str) -> Option<usize> {
    line.match_indices(':').map(|(colon, _)| colon).find_map(|colon| {
        let key = line[..colon].trim_end_matches([' ', '"', '\'']);
        let part = |c: char| !c.is_alphanumeric() && c != '_' && c != '-';
        let key = key.rsplit(part).next().unwrap_or_default().to_lowercase();
        let telling = ["pas", "secret", "token", "pwd"].iter().any(|part| key.contains(part));
        // `auth: user:password` is a slip that people make.
        let value = line[colon + 1..].trim_start();
        let slip = key == "auth" && value.contains(':') && !value.starts_with('{');
        (slip || (telling && !key.ends_with("_file"))).then_some(colon + 1)
    })
}

/// `${NAME}` and nothing else names a secret without showing it.
fn is_reference(value: &str) -> bool {
    let value = value.trim_start_matches(['"', '\'']);
    value.strip_prefix("${").and_then(|rest| rest.split_once('}')).is_some_and(|(name, _)| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// The range of `user:password` in the first URL of the line.
fn user_info(line: &str) -> Option<(usize, usize)> {
    let start = line.find("://")? + 3;
    let authority = line[start..].split(['/', ' ', '"', '\'']).next()?;
    Some((start, start + authority.rfind('@')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_veiled_however_they_are_written() {
        for (line, veiled) in [
            ("  password: hunter2", "  password: <hidden>"),
            ("auth: {username: u, password: hunter2}", "auth: {username: u, password: <hidden>"),
            (r#"auth: {"password": "hunter2"}"#, r#"auth: {"password": <hidden>"#),
            ("  passwrd: hunter2", "  passwrd: <hidden>"),
            ("  Token : hunter2", "  Token : <hidden>"),
            ("  - https://u:hunter2@ghcr.io/x", "  - https://<hidden>@ghcr.io/x"),
            ("  password: ${NAME}", "  password: ${NAME}"),
            ("  password: ${NAME:-hunter2}", "  password: <hidden>"),
            ("  password_file: /run/x", "  password_file: /run/x"),
            ("  password:", "  password:"),
            ("  path: /x", "  path: /x"),
            ("  auth: admin:hunter2", "  auth: <hidden>"),
            ("  auth: {username: u}", "  auth: {username: u}"),
        ] {
            assert_eq!(veil(line), veiled);
        }
    }

    #[test]
    fn an_excerpt_cannot_play_tricks_on_a_terminal() {
        let source = Source::new("f".into(), &format!("\tä: \x1b[31m{}", "x".repeat(1000)));
        let origin = Origin::File { line: 1, column: 2, variables: None };
        let text = source.fault(&origin, "bad \x07; mend it").to_string();
        assert!(!text.contains(['\x1b', '\x07']) && text.chars().count() < 300, "{text}");
        assert!(text.ends_with("\n       | \t^"), "{text}");
    }
}
