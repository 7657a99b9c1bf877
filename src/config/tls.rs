//! Certificates and keys from their files, checked before anything is built of them.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// No chain of certificates is longer.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// The one TLS provider in the tree.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a certificate with its chain and its key, and makes sure that they belong together.
///
/// # Errors
/// One sentence that says which file is wrong, how, and what to do.
pub fn pair(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, String> {
    let chain: Vec<CertificateDer<'static>> = certificates(cert)?;
    let pem = read(key)?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        format!("{} holds no private key; write the path of one in PEM", key.display())
    })?;
    let pair = CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "the key {} does not belong to the certificate {}; use the pair that was issued together",
            key.display(),
            cert.display()
        ),
        error => format!(
            "{} and {} cannot be used ({error}); use an RSA, ECDSA or Ed25519 pair in PEM",
            cert.display(),
            key.display()
        ),
    })?;
    Ok(Arc::new(pair))
}

/// Reads the authorities that clients' certificates may come from.
///
/// # Errors
/// One sentence, as [`pair`].
pub fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| {
            format!("{} holds a certificate that cannot be used ({error})", path.display())
        })?;
    }
    Ok(store)
}

/// Whether the first certificate of a file is within its time; `None` where that cannot be read.
pub fn is_valid_now(pair: &CertifiedKey) -> Option<bool> {
    let (_, parsed) = x509_parser::parse_x509_certificate(pair.cert.first()?).ok()?;
    Some(parsed.validity().is_valid())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(format!("{} holds no certificate; write the path of one in PEM", path.display())),
    }
}

#[expect(clippy::disallowed_methods, reason = "a few kilobytes, at start and when they change")]
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let about = std::fs::metadata(path);
    let read = about.and_then(|about| {
        if !about.is_file() || about.len() > PEM_BYTES_MAX {
            return Err(std::io::Error::other("it is no file of a fitting size"));
        }
        std::fs::read(path)
    });
    read.map_err(|error| {
        format!("{} cannot be read ({error}); check the path and its permissions", path.display())
    })
}
