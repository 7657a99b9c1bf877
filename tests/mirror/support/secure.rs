//! An authority that issues certificates, and clients that speak TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::soon;

/// An authority of the tests' own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the tests' authority");
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Issues a certificate for these host names; `name` is its subject and names its files.
    pub(crate) fn issue(&self, folder: &Path, name: &str, hosts: &[&str]) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("lawful names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate");
        let pair = Pair {
            cert: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        std::fs::write(&pair.cert, cert.pem()).expect("the temporary folder takes a file");
        std::fs::write(&pair.key, key.serialize_pem()).expect("the temporary folder takes a file");
        pair
    }

    /// Its own certificate, as a file.
    pub(crate) fn file(&self, folder: &Path) -> PathBuf {
        let path = folder.join("authority.crt");
        std::fs::write(&path, self.0.pem()).expect("the temporary folder takes a file");
        path
    }

    /// A client that believes this authority and shows `own`, if any.
    pub(crate) fn client(&self, own: Option<&Pair>, alpn: &[&str]) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("our own certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider's own versions")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_file_iter(&pair.cert).expect("our own file");
                let chain = chain.collect::<Result<_, _>>().expect("our own certificate");
                let key = PrivateKeyDer::from_pem_file(&pair.key).expect("our own key");
                builder.with_client_auth_cert(chain, key).expect("our own pair")
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Client(Arc::new(config))
    }
}

/// What was answered.
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) location: String,
    pub(crate) body: Bytes,
}

/// A client that speaks TLS.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) Arc<ClientConfig>);

impl Client {
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        host: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(address).await?;
        let name = ServerName::try_from(host.to_owned()).expect("a lawful name");
        let connecting = TlsConnector::from(Arc::clone(&self.0)).connect(name, socket);
        soon("a TLS handshake", connecting).await
    }

    /// GET over a fresh connection, by HTTP/1.
    pub(crate) async fn get(
        &self,
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(u16, Bytes), String> {
        let stream = self.connect(address, "localhost").await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = request(address, path, headers);
        let sent = soon("the head of an answer", sender.send_request(request)).await;
        collect(sent.map_err(|e| e.to_string())?).await
    }

    /// Any request over a fresh connection, by HTTP/1.
    pub(crate) async fn send(
        &self,
        address: SocketAddr,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: &Bytes,
    ) -> Result<Told, String> {
        let stream = self.connect(address, "localhost").await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("host", address.to_string());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.clone())).map_err(|e| e.to_string())?;
        let sent = soon("the head of an answer", sender.send_request(request)).await;
        let response = sent.map_err(|e| e.to_string())?;
        let location = response.headers().get("location").and_then(|at| at.to_str().ok());
        let location = location.unwrap_or_default().to_owned();
        let (status, body) = collect(response).await?;
        Ok(Told { status, location, body })
    }

    /// GET over a fresh connection, by HTTP/2.
    pub(crate) async fn get_h2(
        &self,
        address: SocketAddr,
        path: &str,
    ) -> Result<(u16, Bytes), String> {
        self.h2(address).await?.get(path).await
    }

    /// A connection by HTTP/2.
    pub(crate) async fn h2(&self, address: SocketAddr) -> Result<Connection, String> {
        let stream = self.connect(address, "localhost").await.map_err(|e| e.to_string())?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Connection { address, sender })
    }
}

/// A connection by HTTP/2.
pub(crate) struct Connection {
    address: SocketAddr,
    sender: http2::SendRequest<Empty<Bytes>>,
}

impl Connection {
    pub(crate) async fn get(&mut self, path: &str) -> Result<(u16, Bytes), String> {
        let host = self.address.to_string();
        self.ask(&host, Method::GET, path).await
    }

    /// Asks for a path of a host that lives at the same address.
    pub(crate) async fn ask(
        &mut self,
        host: &str,
        method: Method,
        path: &str,
    ) -> Result<(u16, Bytes), String> {
        let Self { address, sender } = self;
        let mut request = request(*address, path, &[]);
        *request.method_mut() = method;
        *request.uri_mut() = format!("https://{host}{path}").parse().expect("a URL");
        request.headers_mut().remove("host");
        let sent = soon("the head of an answer", sender.send_request(request)).await;
        collect(sent.map_err(|e| e.to_string())?).await
    }
}

pub(crate) fn request(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Request<Empty<Bytes>> {
    let mut request = Request::get(path).header("host", address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).expect("a lawful request")
}

async fn collect(response: Response<hyper::body::Incoming>) -> Result<(u16, Bytes), String> {
    let status = response.status().as_u16();
    let body = soon("a body", response.into_body().collect()).await.map_err(|e| e.to_string())?;
    Ok((status, body.to_bytes()))
}
