//! Files that are read again once they have changed: certificates, users, tokens, keys.

use std::path::PathBuf;
use std::time::SystemTime;

use parking_lot::Mutex;

/// When each of some files was changed; `None` for one that cannot be looked at.
pub type Times = Vec<Option<SystemTime>>;

/// Some files, and when they had been changed as they were last read, well or badly: a fault is told
/// once, and looked at again as soon as one of them changes.
#[derive(Debug)]
pub struct Watched {
    files: Vec<PathBuf>,
    seen: Mutex<Times>,
}

impl Watched {
    /// Files that are about to be read: what changes meanwhile is found at the next look.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let seen = Mutex::new(times(&files));
        Self { files, seen }
    }

    /// Has them read where one has changed, or in any case with `force`, and says whether. Blocks;
    /// one at a time.
    ///
    /// # Errors
    /// What `read` says.
    pub fn look(
        &self,
        force: bool,
        read: impl FnOnce() -> Result<(), String>,
    ) -> Result<bool, String> {
        let now = self.times();
        let mut seen = self.seen.lock();
        if *seen == now && !force {
            return Ok(false);
        }
        *seen = now;
        read().map(|()| true)
    }

    /// When they were changed, as of now. Blocks.
    pub fn times(&self) -> Times {
        times(&self.files)
    }

    /// Notes that they have been read as they were then.
    pub fn set(&self, seen: Times) {
        *self.seen.lock() = seen;
    }
}

/// When files were changed, as of now. Blocks.
#[expect(clippy::disallowed_methods, reason = "a stat each second, on a blocking thread")]
pub fn times<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Times {
    let modified = |path| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    files.into_iter().map(modified).collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test writes the file that is watched")]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_for_each_change_whatever_comes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let watched = Watched::new(vec![file.clone()]);
        assert_eq!(watched.look(false, || Err("not read".into())), Ok(false));
        assert_eq!(watched.look(true, || Ok(())), Ok(true));
        std::fs::write(&file, "new").unwrap();
        assert_eq!(watched.look(false, || Err("bad".into())), Err("bad".into()));
        assert_eq!(watched.look(false, || Err("not read".into())), Ok(false));
        watched.set(vec![None]);
        assert_eq!(watched.look(false, || Ok(())), Ok(true));
    }
}
