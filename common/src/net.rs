//! The network, injected: listening, dialling and name resolution, so that a cluster can run in a simulation. TLS is wrapped around
//! these streams above this layer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a peer.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connected stream, with the address it is connected to.
pub struct Connection {
    /// The stream.
    pub io: Pin<Box<dyn Io>>,
    /// The peer's address, as the operating system tells it.
    pub peer: SocketAddr,
}

/// Dials addresses.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Opens a TCP connection to exactly `address`. The caller sets the deadline.
    async fn dial(&self, address: SocketAddr) -> io::Result<Connection>;
}

/// Resolves names.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of a fully qualified host name (no search domains). The caller sets the deadline.
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError>;
}

/// Why a name gave no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no such name, or it has no address: the receiver's fault.
    #[error("the name has no address")]
    NotFound,
    /// The name servers did not answer, or answered with an error.
    #[error("the name could not be resolved: {0}")]
    Failed(String),
}

/// A shared dialer.
pub type SharedDialer = Arc<dyn Dialer>;

/// A shared resolver.
pub type SharedResolver = Arc<dyn Resolver>;

/// Dials over the operating system's TCP, with Nagle's algorithm off.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDialer;

#[async_trait]
impl Dialer for TcpDialer {
    async fn dial(&self, address: SocketAddr) -> io::Result<Connection> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?;
        Ok(Connection {
            io: Box::pin(stream),
            peer,
        })
    }
}
