//! Credential helpers: programs named `docker-credential-NAME` that print a login.

use std::process::Stdio;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::credentials::Login;
use crate::error::{Error, Kind, Result};
use crate::limits::{HELPER_BYTES_MAX, HELPER_WITHIN};

/// The user name that stands for "the secret is an identity token".
const IDENTITY: &str = "<token>";

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Runs a helper's `get` for a server; `None` where it knows no login for it.
///
/// # Errors
/// `NoLogin` that names the upstream, the helper and the remedy, and never what the helper said:
/// that may be a secret.
pub(super) async fn get(upstream: &str, name: &str, server: &str) -> Result<Option<Login>> {
    let program = format!("docker-credential-{name}");
    let fail = |why: &str| {
        Error::new(
            Kind::NoLogin,
            format!(
                "no login for {upstream}: {program} {why}; run `echo {server} | {program} get` as pierhead's user to see what is wrong"
            ),
        )
    };
    match tokio::time::timeout(HELPER_WITHIN, run(&program, server)).await {
        Err(_) => Err(fail(&format!("did not answer within {} s", HELPER_WITHIN.as_secs()))),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::new(
            Kind::NoLogin,
            format!(
                "no login for {upstream}: there is no program {program}; install it into a folder of pierhead's PATH, or correct the upstream's `auth`"
            ),
        )),
        Ok(Err(e)) => Err(fail("cannot be run").because(e)),
        Ok(Ok((_, said))) if said.len() as u64 > HELPER_BYTES_MAX => {
            Err(fail(&format!("prints more than {HELPER_BYTES_MAX} bytes")))
        }
        Ok(Ok((false, said))) if is_unknown(&said) => Ok(None),
        Ok(Ok((false, _))) => Err(fail("failed")),
        Ok(Ok((true, said))) => {
            // The parser's own words would repeat what was printed.
            let Answer { username, secret } = serde_json::from_slice(&said)
                .map_err(|_| fail("prints something that is no login"))?;
            if secret.is_empty() {
                return Err(fail("prints an empty secret"));
            }
            Ok(Some(match username.as_str() {
                IDENTITY => Login::Identity { token: secret },
                _ => Login::Basic { username, password: secret },
            }))
        }
    }
}

/// Whether it ended well, and what it printed. Dropped, the program is killed.
async fn run(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its question may still know the answer.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(HELPER_BYTES_MAX + 1).read_to_end(&mut said).await?;
    }
    if said.len() as u64 > HELPER_BYTES_MAX {
        return Ok((false, said)); // it may never end
    }
    Ok((child.wait().await?.success(), said))
}

/// The words by which docker-credential-helpers say that they know no such login.
fn is_unknown(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said).to_lowercase();
    said.contains("credentials not found")
}
