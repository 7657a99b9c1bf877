//! Whether a password is there and usable, without ever repeating it.

use std::path::Path;

use super::hosts;

/// No registry's password or token is longer.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;
/// A bundle of certificates can be longer.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What is wrong with a password.
pub(super) fn wrong(password: &str) -> Option<String> {
    if password.is_empty() {
        return Some("the password is empty; write one, or `auth: anonymous`".to_owned());
    }
    password
        .contains(['\r', '\n', '\0'])
        .then(|| "the password has line breaks; write it on one line".to_owned())
}

/// What is wrong with a file that holds a password; its trailing line breaks do not count.
pub(super) fn wrong_file(path: &Path) -> Option<String> {
    let text = match read(path, PASSWORD_BYTES_MAX) {
        Ok(text) => text,
        Err(why) => {
            let remedy = hosts::file_path(path).unwrap_or("check the path and its permissions");
            return Some(format!(
                "the password file {} cannot be used ({why}); {remedy}",
                path.display()
            ));
        }
    };
    let wrong = wrong(text.trim_end_matches(['\r', '\n']))?;
    Some(format!("in the file {}: {wrong}", path.display()))
}

/// What is wrong with a file of certificates or keys.
pub(super) fn wrong_pem(path: &Path) -> Option<String> {
    let why = match read(path, PEM_BYTES_MAX) {
        Ok(text) if text.contains("-----BEGIN ") => return None,
        Ok(_) => "it is not PEM".to_owned(),
        Err(why) => why,
    };
    let remedy = hosts::file_path(path).unwrap_or("check the path and its permissions");
    Some(format!("the file {} cannot be used ({why}); {remedy}", path.display()))
}

/// What is wrong with a file that holds the key of a service account.
pub(super) fn wrong_key_file(path: &Path) -> Option<String> {
    let why = match read(path, PASSWORD_BYTES_MAX) {
        Ok(text) if text.contains("private_key") => return None,
        Ok(_) => "it holds no private key".to_owned(),
        Err(why) => why,
    };
    let remedy = hosts::file_path(path).unwrap_or("check the path and its permissions");
    Some(format!("the key file {} cannot be used ({why}); {remedy}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "a few bytes, before anything is served")]
fn read(path: &Path, max: u64) -> Result<String, String> {
    let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
    // Anything else, a pipe for one, could block for ever.
    if !about.is_file() {
        return Err("it is not a file".to_owned());
    }
    if about.len() > max {
        return Err(format!("it has {} bytes", about.len()));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_some_text_on_one_line() {
        assert_eq!(wrong("hunter2 "), None);
        assert!(wrong("").is_some());
        assert!(wrong("a\nb").is_some());
    }

    #[test]
    fn a_password_file_is_read_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        assert_eq!(wrong_file(&file("good", b"hunter2\r\n")), None);
        for (path, why) in [
            (file("empty", b"\n"), "the password is empty"),
            (file("two", b"hunter2\nhunter3\n"), "line breaks"),
            (file("binary", b"hunter2\xff"), "UTF-8"),
            (file("large", &vec![b'x'; 70_000]), "70000 bytes"),
            (folder.path().to_owned(), "not a file"),
            (folder.path().join("missing"), "No such file"),
            ("~/token".into(), "write the whole path"),
        ] {
            let text = wrong_file(&path).unwrap();
            assert!(text.contains(why) && !text.contains("hunter"), "{text}");
        }
    }
}
