//! What the doors rest on: users, and keys that may be random. A reload keeps what has not changed, so
//! that nobody has to log in anew.

use std::sync::{Arc, OnceLock};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::Doors;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::issuer::Issuer;
use crate::pass::Keys;
use crate::people::People;

/// The users of the configured file, with the passwords that are remembered of it.
pub(super) fn people(config: &Config, before: Option<&Doors>) -> Result<Option<Arc<People>>> {
    let Some(file) = config.clients.as_ref().and_then(|clients| clients.htpasswd.clone()) else {
        return Ok(None);
    };
    let known = before.and_then(Doors::people).filter(|people| people.file() == file);
    let people = match known {
        Some(people) => people.renewed(),
        None => People::load(file, random_key()?),
    };
    people.map(|people| Some(Arc::new(people))).map_err(|why| Error::new(Kind::Internal, why))
}

/// The configured token service of others. One whose keys come from a URL keeps those it has.
pub(super) fn issuer(config: &Config, before: Option<&Doors>) -> Result<Option<Arc<Issuer>>> {
    let Some(jwt) = config.clients.as_ref().and_then(|clients| clients.jwt.as_ref()) else {
        return Ok(None);
    };
    if let Some(known) = before.and_then(Doors::issuer).filter(|known| known.is_fetching(jwt)) {
        return Ok(Some(Arc::clone(known)));
    }
    let issuer = Issuer::load(jwt).map_err(|why| Error::new(Kind::Internal, why))?;
    let issuer = Arc::new(issuer);
    tokio::spawn(Issuer::tend(Arc::downgrade(&issuer)));
    Ok(Some(issuer))
}

/// What this process signs with where nothing is configured.
static OWN: OnceLock<Zeroizing<[u8; 32]>> = OnceLock::new();

/// What this process signs with where nothing is configured; for the process that takes over from it,
/// so that nobody has to log in anew and uploads that were begun go on.
///
/// # Errors
/// `Internal` where there is no randomness.
pub fn own_secret() -> Result<&'static [u8; 32]> {
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let fresh = random::<32>()?;
    Ok(OWN.get_or_init(|| fresh))
}

/// Signs from now on with what the process before this one signed with. To be called before any key is
/// made; what is no secret of ours changes nothing.
pub fn inherit_secret(secret: &[u8]) {
    if let Ok(secret) = <[u8; 32]>::try_from(secret) {
        let _ = OWN.set(Zeroizing::new(secret)); // set here, before anybody else
    }
}

/// What signs our tokens. The same as before, where the same is configured, or nothing is.
pub(super) fn keys(config: &Config, before: Option<(&Doors, &Config)>) -> Result<Arc<Keys>> {
    let secret = |config: &Config| config.clients.as_ref().and_then(|c| c.token_key.clone());
    let same = before.filter(|(_, old)| secret(old) == secret(config));
    Ok(match (same, secret(config)) {
        (Some((doors, _)), _) => Arc::clone(&doors.keys),
        (None, Some(secret)) => Arc::new(Keys::new(secret.reveal().as_bytes())?),
        (None, None) => Arc::new(Keys::new(own_secret()?)?),
    })
}

/// A key of this process alone.
///
/// # Errors
/// `Internal` where there is no randomness.
pub fn random_key() -> Result<hmac::Key> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &*random::<32>()?))
}

pub(super) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new()
        .fill(&mut *bytes)
        .map_err(|_| Error::internal("no key can be made", "the system gives no randomness"))?;
    Ok(bytes)
}
