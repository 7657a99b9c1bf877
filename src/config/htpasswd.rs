//! A file of users and bcrypt hashes, as `htpasswd -B` writes it.

use std::collections::HashMap;
use std::path::Path;

/// A file of users is some kilobytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Above this, one log-in would take a thread for seconds: 2^14 rounds are about one second.
const COST_MAX: u32 = 14;

/// Reads a file of users: name to bcrypt hash.
///
/// # Errors
/// One sentence that names the line and says what to write.
#[expect(clippy::disallowed_methods, reason = "a few kilobytes, at start and when they change")]
pub fn load(path: &Path) -> Result<HashMap<String, String>, String> {
    let fail = |why: &dyn std::fmt::Display| {
        format!(
            "the file {} cannot be read ({why}); check the path and its permissions",
            path.display()
        )
    };
    let about = std::fs::metadata(path).map_err(|e| fail(&e))?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(fail(&"it is no file of a fitting size"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
    parse(&text).map_err(|(line, why)| format!("{}:{line}: {why}", path.display()))
}

/// Reads the lines; the second of two for one user is a slip.
///
/// # Errors
/// The line's number and what is wrong. Hashes are not repeated.
pub fn parse(text: &str) -> Result<HashMap<String, String>, (usize, String)> {
    let mut users = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| (index + 1, why.to_owned());
        let (user, hash) =
            line.split_once(':').ok_or_else(|| wrong("this is not USER:HASH; use htpasswd -B"))?;
        if user.is_empty() || user == "anonymous" || user == "*" {
            return Err(wrong("this name is no user's; choose another"));
        }
        let cost = hash
            .strip_prefix("$2")
            .and_then(|rest| rest.get(2..4))
            .and_then(|cost| cost.parse::<u32>().ok());
        match cost {
            Some(cost) if hash.len() == 60 && (4..=COST_MAX).contains(&cost) => {}
            Some(cost) if hash.len() == 60 => {
                return Err(wrong(&format!(
                    "the cost {cost} is out of range; use htpasswd -B -C 10"
                )));
            }
            _ => return Err(wrong("the hash is not bcrypt; use htpasswd -B")),
        }
        if users.insert(user.to_owned(), hash.to_owned()).is_some() {
            return Err(wrong("this user stands there twice; remove one of the lines"));
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01234";

    #[test]
    fn only_bcrypt_is_taken() {
        assert_eq!(HASH.len(), 60);
        assert_eq!(parse(&format!("# people\nci:{HASH}\n\n")).unwrap().len(), 1);
        for (text, line, why) in [
            ("ci", 1, "USER:HASH"),
            ("ci:$apr1$abc$def", 1, "not bcrypt"),
            ("ci:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", 1, "not bcrypt"),
            (&format!("ci:{}", HASH.replace("$05$", "$31$")), 1, "out of range"),
            (&format!("anonymous:{HASH}"), 1, "no user's"),
            (&format!("ci:{HASH}\nci:{HASH}"), 2, "twice"),
        ] {
            let (at, told) = parse(text).unwrap_err();
            assert!(at == line && told.contains(why), "{text}: {at} {told}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "[ -~ä\n]{0,200}") {
            let _ = parse(&text);
        }
    }
}
