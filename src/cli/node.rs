//! `prepare`: a folder of a node, made ready for a mirror that does not run as root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Everything for owner and group; what is made in it belongs to the same group.
const MODE: u32 = 0o2770;

/// Makes a folder where it is not there, and hands it to a group. What lies in it stays as it is.
///
/// # Errors
/// One sentence that says what failed.
#[expect(clippy::disallowed_methods, reason = "a command, before anything is served")]
pub(super) fn prepare(folder: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let name = folder.display();
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {name}"))?;
    let Some(group) = group else { return Ok(()) };
    let about = fs::metadata(folder).with_context(|| format!("cannot look at {name}"))?;
    if about.gid() != group {
        std::os::unix::fs::chown(folder, None, Some(group)).with_context(|| {
            format!("cannot hand {name} to the group {group}; run this as the folder's owner, in that group")
        })?;
    }
    // After the change of group, which may take the bit for it away.
    if about.mode() & 0o7777 != MODE {
        fs::set_permissions(folder, Permissions::from_mode(MODE))
            .with_context(|| format!("cannot open {name} to the group {group}"))?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests look at what was made")]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_and_opened_to_its_group_as_often_as_one_likes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let group = fs::metadata(folder.path()).unwrap().gid();
        for _ in 0..2 {
            prepare(&path, Some(group)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        }
        fs::write(path.join("file"), "").unwrap();
        assert!(prepare(&path.join("file"), None).is_err());
    }
}
