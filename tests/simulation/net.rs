//! The simulated network and clock, in the shape that Postrider takes them in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use postrider_common::net::{Connection, Dialer, ResolveError, Resolver};
use postrider_common::time::{Clock, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use turmoil::net::{TcpListener, TcpStream};

/// The wall time at which every simulation begins: 2026-01-01T00:00:00Z.
const EPOCH: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// How long a call of a client may take.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How long since the simulation began, by the host that asks; what is called from outside of any host gets zero.
pub(crate) fn elapsed() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// Dials in the simulated network.
pub(crate) struct SimDialer;

#[async_trait]
impl Dialer for SimDialer {
    async fn dial(&self, address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        let peer = stream.peer_addr()?;
        Ok(Connection {
            io: Box::pin(stream),
            peer,
        })
    }
}

/// Knows no names: receivers are given by their addresses.
pub(crate) struct NoNames;

#[async_trait]
impl Resolver for NoNames {
    async fn resolve(&self, _: &str) -> Result<Vec<IpAddr>, ResolveError> {
        Err(ResolveError::NotFound)
    }
}

/// The wall clock of one host, which is wrong by `skew` milliseconds.
pub(crate) struct SkewedClock {
    /// Milliseconds that it is ahead.
    pub(crate) skew: i64,
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        let true_time = EPOCH + elapsed();
        Timestamp::from_millis(true_time.as_millis() + self.skew)
    }
}

/// The true wall time at `elapsed` since the beginning.
pub(crate) fn wall(elapsed: Duration) -> Timestamp {
    EPOCH + elapsed
}

/// A connection that a server accepted.
pub(crate) struct Accepted<S> {
    stream: S,
    peer: Option<IpAddr>,
}

impl Accepted<tokio::net::TcpStream> {
    /// One of the real network.
    pub(crate) fn real(stream: tokio::net::TcpStream) -> Self {
        let peer = stream.peer_addr().ok().map(|address| address.ip());
        Self { stream, peer }
    }
}

/// Who is at the other end of an accepted connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub Option<IpAddr>);

impl<S> Connected for Accepted<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Accepted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Accepted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Listens on `port` of this host, and gives the connections.
///
/// # Errors
/// When the port is taken.
pub(crate) async fn listen(
    port: u16,
) -> io::Result<impl Stream<Item = io::Result<Accepted<TcpStream>>> + Send + 'static> {
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).await?;
    Ok(futures_util::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, peer)| Accepted {
            stream,
            peer: Some(peer.ip()),
        });
        Some((accepted, listener))
    }))
}

/// A gRPC channel to `address`.
pub(crate) fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address is a URI")
        .timeout(CALL_DEADLINE)
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(1))
        .connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| async move {
            TcpStream::connect(address).await.map(TokioIo::new)
        }))
}

/// A shared clock without skew.
pub(crate) fn true_clock() -> Arc<SkewedClock> {
    Arc::new(SkewedClock { skew: 0 })
}
