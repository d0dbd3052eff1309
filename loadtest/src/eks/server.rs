//! Sockets: listening, TLS, connections, and their end.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::app::{App, ConnectionReset};
use super::route;

/// Thousands of pods may start at once.
const BACKLOG: u32 = 4096;
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

pub(super) fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bound = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().with_context(|| format!("cannot listen on {address}"))
}

/// A certificate authority of its own, and a server certificate by it.
pub(super) struct Tls {
    pub(super) ca_pem: String,
    acceptor: TlsAcceptor,
}

impl Tls {
    pub(super) fn for_address(address: SocketAddr) -> Result<Tls> {
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.distinguished_name.push(rcgen::DnType::CommonName, "simulated-eks CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        if !address.ip().is_loopback() && !address.ip().is_unspecified() {
            names.push(address.ip().to_string());
        }
        let mut server = CertificateParams::new(names)?;
        server.use_authority_key_identifier_extension = true;
        server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &ca)?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Tls { ca_pem: ca.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

/// Serves every connection of `listener` until `stop`.
pub(super) async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let (app, tls) = (Arc::clone(&app), tls.clone());
                let connection = connection(app, stream, peer, tls);
                tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
            }
            // A connection that was gone before it was accepted says nothing about the next; without file
            // descriptors the next attempt would fail at once, until connections end.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn connection(app: Arc<App>, stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection is gone already");
    }
    let Some(tls) = tls else { return http(app, stream, peer).await };
    match tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => http(app, stream, peer).await,
        Ok(Err(error)) => tracing::info!(%error, %peer, "no TLS handshake"),
        Err(_) => tracing::info!(%peer, "TLS handshake took too long"),
    }
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + Tcp>(app: Arc<App>, stream: S, peer: SocketAddr) {
    // Boxed: a connection that is polled without its shutdown must be `Unpin`.
    let service = service_fn(|request| {
        let app = Arc::clone(&app);
        Box::pin(async move { route::answer(&app, peer, request).await })
    });
    let mut connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    let mut stream = connection.into_parts().io.into_inner();
    match ended {
        Err(error) if is_reset(&error) => stream.reset_on_close(),
        Err(error) => tracing::debug!(%error, %peer, "connection ended"),
        Ok(()) => {
            // The client may be gone; then there is nobody to say goodbye to.
            stream.shutdown().await.unwrap_or_default();
        }
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<ConnectionReset>())
}

/// What is a TCP connection underneath.
trait Tcp {
    fn tcp(&self) -> &TcpStream;

    /// Makes the kernel send RST instead of FIN.
    fn reset_on_close(&self) {
        if let Err(error) = self.tcp().set_zero_linger() {
            tracing::debug!(%error, "the connection is gone already");
        }
    }
}

impl Tcp for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Tcp for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}
