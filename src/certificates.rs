//! The certificates of one address: chosen by name, swapped when their files change. A bad new pair
//! is refused and the old one stays.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::config::{Tls, tls};
use crate::watched::{Times, Watched};

/// The certificates of one address.
#[derive(Debug)]
pub struct Certificates {
    settings: Tls,
    current: ArcSwap<Held>,
    watched: Watched,
}

#[derive(Debug)]
struct Held {
    /// The first stands for all names that no other is for.
    pairs: Vec<Arc<CertifiedKey>>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// Certificates that have been read and are not in force yet.
#[derive(Debug)]
pub struct Fresh {
    seen: Times,
    held: Held,
}

impl Certificates {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// One sentence that says what is wrong with which file.
    pub fn load(settings: &Tls) -> Result<Arc<Self>, String> {
        let files = settings.pairs().flat_map(|(cert, key)| [cert, key]).chain(&settings.client_ca);
        let watched = Watched::new(files.cloned().collect());
        let current = ArcSwap::from_pointee(Held::load(settings)?);
        Ok(Arc::new(Self { settings: settings.clone(), current, watched }))
    }

    /// Reads the files again where one has changed, or in any case with `force`. Blocks. Returns
    /// whether there is something new.
    ///
    /// # Errors
    /// One sentence; what was in force stays in force.
    pub fn reload(&self, force: bool) -> Result<bool, String> {
        // A pair is two files, and the second may still be on its way: a failure is looked at again
        // as soon as either changes.
        self.watched.look(force, || {
            self.current.store(Arc::new(Held::load(&self.settings)?));
            Ok(())
        })
    }

    /// Reads the files, to be put into force by `take`. Blocks.
    ///
    /// # Errors
    /// One sentence.
    pub fn read(&self) -> Result<Fresh, String> {
        let seen = self.watched.times();
        Ok(Fresh { seen, held: Held::load(&self.settings)? })
    }

    /// Puts into force what was read.
    pub fn take(&self, fresh: Fresh) {
        self.watched.set(fresh.seen);
        self.current.store(Arc::new(fresh.held));
    }

    /// Where they come from.
    pub fn settings(&self) -> &Tls {
        &self.settings
    }

    /// Whether callers are asked for a certificate.
    pub fn asks_clients(&self) -> bool {
        self.settings.client_ca.is_some()
    }
}

impl Held {
    fn load(settings: &Tls) -> Result<Self, String> {
        let pairs = settings.pairs().map(|(cert, key)| tls::pair(cert, key));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let verifier = settings.client_ca.as_ref().map(|path| {
            let roots = Arc::new(tls::authorities(path)?);
            let builder = WebPkiClientVerifier::builder_with_provider(roots, tls::provider());
            let builder =
                if settings.client_optional { builder.allow_unauthenticated() } else { builder };
            let built = builder.build();
            built.map_err(|error| format!("{} cannot be used ({error})", path.display()))
        });
        Ok(Self {
            pairs,
            verifier: verifier.transpose()?.map(|v| v as Arc<dyn ClientCertVerifier>),
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.current.load();
        let asked = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let fitting = asked.filter(|_| held.pairs.len() > 1).and_then(|name| {
            held.pairs.iter().find(|pair| {
                let leaf = pair.cert.first().and_then(|c| ParsedCertificate::try_from(c).ok());
                leaf.is_some_and(|leaf| verify_server_name(&leaf, &name).is_ok())
            })
        });
        fitting.or(held.pairs.first()).cloned()
    }
}

/// Checks clients' certificates by the authorities that are in force now.
#[derive(Debug)]
pub struct Authorities(pub Arc<Certificates>);

impl Authorities {
    fn now(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let held = self.0.current.load();
        held.verifier.clone().ok_or_else(|| Error::General("no client_ca is configured".to_owned()))
    }
}

impl ClientCertVerifier for Authorities {
    fn offer_client_auth(&self) -> bool {
        self.0.asks_clients()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.asks_clients() && !self.0.settings.client_optional
    }

    /// None: they would have to outlive a swap. Clients send what they have without them.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.now()?.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now()?.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now()?.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().map(|verifier| verifier.supported_verify_schemes()).unwrap_or_default()
    }
}

/// The common name of a certificate's subject: the user's name. Whether the certificate is to be
/// believed has been decided before.
pub fn common_name(der: &[u8]) -> Option<Arc<str>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    // Two names would let whoever checks one and whoever reads the other come apart.
    let lawful = names.next().is_none() && !name.is_empty() && name != "anonymous" && name != "*";
    lawful.then(|| name.into())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that are read")]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};
    use std::path::{Path, PathBuf};

    fn pair(folder: &Path, name: &str, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.self_signed(&key).unwrap();
        let paths = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&paths.0, cert.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    fn settings((cert, key): (PathBuf, PathBuf)) -> Tls {
        Tls { cert, key, also: Vec::new(), client_ca: None, client_optional: false }
    }

    #[test]
    fn a_bad_new_pair_is_refused_and_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let one = pair(folder.path(), "one", "a.test");
        let two = pair(folder.path(), "two", "a.test");
        let certificates = Certificates::load(&settings(one.clone())).unwrap();
        let first = certificates.current.load().pairs[0].cert[0].clone();
        assert_eq!(common_name(&first).as_deref(), Some("one"));
        assert_eq!(certificates.reload(false), Ok(false));

        std::fs::copy(&two.0, &one.0).unwrap();
        let why = certificates.reload(true).unwrap_err();
        assert!(why.contains("does not belong"), "{why}");
        assert_eq!(certificates.current.load().pairs[0].cert[0], first);

        std::fs::copy(&two.1, &one.1).unwrap();
        assert_eq!(certificates.reload(true), Ok(true));
        assert_ne!(certificates.current.load().pairs[0].cert[0], first);
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let one = pair(folder.path(), "one", "a.test");
        let swapped = settings((one.1.clone(), one.0.clone()));
        assert!(Certificates::load(&swapped).unwrap_err().contains("no certificate"));
        let missing = settings((folder.path().join("x"), one.1.clone()));
        assert!(Certificates::load(&missing).unwrap_err().contains("cannot be read"));
        let keyless = settings((one.0.clone(), one.0));
        assert!(Certificates::load(&keyless).unwrap_err().contains("no private key"));
    }

    #[test]
    fn rubbish_names_nobody() {
        assert_eq!(common_name(b""), None);
        assert_eq!(common_name(&[0x30; 40]), None);
    }
}
