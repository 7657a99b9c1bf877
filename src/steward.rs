//! Who may tell the mirror what to do: whoever shows the token of the admin address. Users whom a rule
//! lets administer are the business of `doors`.

use std::fmt;
use std::path::PathBuf;

use arc_swap::ArcSwapOption;
use ring::hmac;

use crate::config::{AdminListen, admin};
use crate::watched::Watched;

/// The token of the admin address, if it has one.
pub struct Steward {
    file: Option<PathBuf>,
    /// Its hash under `key`: what is compared takes the same time whatever was shown.
    token: ArcSwapOption<hmac::Tag>,
    watched: Watched,
    key: hmac::Key,
}

impl fmt::Debug for Steward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Steward({:?})", self.file)
    }
}

impl Steward {
    /// Reads the file, where there is one; `key` is of this process alone.
    ///
    /// # Errors
    /// One sentence that says what is wrong with it.
    pub fn load(settings: &AdminListen, key: hmac::Key) -> Result<Self, String> {
        let file = settings.token_file.clone();
        let watched = Watched::new(file.iter().cloned().collect());
        let steward = Self { file, token: ArcSwapOption::empty(), watched, key };
        steward.reload(true)?;
        Ok(steward)
    }

    /// Reads the file again where it has changed, or in any case with `force`. Blocks.
    ///
    /// # Errors
    /// One sentence; the token known before stays.
    pub fn reload(&self, force: bool) -> Result<bool, String> {
        let Some(file) = &self.file else { return Ok(false) };
        self.watched.look(force, || {
            let token = admin::token(file)?;
            self.token.store(Some(hmac::sign(&self.key, token.as_bytes()).into()));
            Ok(())
        })
    }

    /// Whether there is a token, so that nobody comes in for where he is.
    pub fn wants_token(&self) -> bool {
        self.file.is_some()
    }

    /// Whether this is the token.
    pub fn knows(&self, shown: &str) -> bool {
        let token = self.token.load();
        // Compares in constant time.
        token
            .as_ref()
            .is_some_and(|tag| hmac::verify(&self.key, shown.as_bytes(), (**tag).as_ref()).is_ok())
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_until_it_changes_and_a_bad_one_leaves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, format!("{}\n", "a".repeat(32))).unwrap();
        let key = || hmac::Key::new(hmac::HMAC_SHA256, b"test");
        let mut settings = AdminListen::at("127.0.0.1:0".parse().unwrap());
        assert!(!Steward::load(&settings, key()).unwrap().knows(""));
        settings.token_file = Some(file.clone());
        let steward = Steward::load(&settings, key()).unwrap();
        assert!(steward.knows(&"a".repeat(32)) && steward.wants_token());
        for wrong in ["", "a", &"a".repeat(33), &"b".repeat(32)] {
            assert!(!steward.knows(wrong), "{wrong}");
        }
        std::fs::write(&file, "short").unwrap();
        assert!(steward.reload(true).is_err() && steward.knows(&"a".repeat(32)));
        std::fs::write(&file, "b".repeat(32)).unwrap();
        assert_eq!(steward.reload(true), Ok(true));
        assert!(steward.knows(&"b".repeat(32)) && !steward.knows(&"a".repeat(32)));
    }
}
