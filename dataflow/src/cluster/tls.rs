//! Mutual TLS between processes: whoever shows a certificate of the cluster's own authority is a peer.
//!
//! TLS 1.3 only, as both ends are this program. The caller also checks that the certificate names the
//! host that it called. The authority must vouch for nothing but this cluster (docs/cluster.md).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::ClusterError;

/// PEM files of one process.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority (or several, while one replaces another).
    pub ca: PathBuf,
    /// This process's certificate, intermediate ones after it.
    pub cert: PathBuf,
    /// Its key, which nobody else may read.
    pub key: PathBuf,
}

/// Both roles of one process.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    /// Reads and checks the files.
    pub fn load(files: &TlsFiles) -> Result<Tls, ClusterError> {
        let mut roots = RootCertStore::empty();
        for cert in certificates(&files.ca)? {
            roots.add(cert).map_err(|e| bad(&files.ca, e))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&files.cert)?;
        let key = key(&files.key)?;

        let provider = Arc::new(ring::default_provider());
        let versions = [&rustls::version::TLS13];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| bad(&files.ca, e))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|e| bad(&files.cert, e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|e| bad(&files.cert, e))?;
        // Nobody resumes a session here.
        server.send_tls13_tickets = 0;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| bad(&files.cert, e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| bad(&files.cert, e))?;
        Ok(Tls { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }

    /// Listener's side.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        Ok(self.acceptor.accept(stream).await?.into())
    }

    /// Caller's side; `host` is the name or address that the certificate must carry.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(self.connector.connect(name, stream).await?.into())
    }
}

/// Whether trying again cannot help: one of the two does not accept the other's certificate.
pub fn is_certificate_error(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClusterError> {
    let pem = std::fs::read(path).map_err(|e| bad(path, e))?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certs {
        Ok(certs) if certs.is_empty() => Err(bad(path, "no certificate in it (PEM expected)")),
        Ok(certs) => Ok(certs),
        Err(e) => Err(bad(path, e)),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, ClusterError> {
    let mut file = File::open(path).map_err(|e| bad(path, e))?;
    // Asked of the open file, so that what is checked is what is read. The group may read: a Kubernetes
    // secret belongs to root and reaches us through fsGroup.
    let mode = file.metadata().map_err(|e| bad(path, e))?.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(ClusterError::KeyReadable { path: path.into(), mode });
    }
    let mut pem = Vec::new();
    file.read_to_end(&mut pem).map_err(|e| bad(path, e))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| bad(path, e))
}

fn bad(path: &Path, reason: impl std::fmt::Display) -> ClusterError {
    ClusterError::TlsFile { path: path.into(), reason: reason.to_string() }
}
