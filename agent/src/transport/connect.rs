//! Makes connections: guard ▸ TLS ▸ HTTP handshake. Their tasks end with the connector.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use postrider_common::egress::{self, Scheme};
use postrider_common::model::webhook::HttpVersion;
use postrider_common::net::{Connection, Io};
use postrider_common::task::Group;
use rustls::client::WebPkiServerVerifier;
use rustls_pki_types::ServerName;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::channel::{Channel, Link, Shared};
use super::failure::{Failure, InFull};
use super::guard::Guard;
use super::observer::Observer;
use super::pool::{Host, IDLE_TIMEOUT};
use super::tls::{self, Tls};
use super::trace::{Phase, Trace};
use crate::attempt::Reason;

/// How long TLS and the HTTP/2 preface may take: two or three round trips.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// The longest head of an answer, in bytes: common servers send at most 8 to 16 KiB. (hyper's own limit of 100 headers stands as it is: setting it,
/// even to the same, costs an allocation per answer.)
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// What a receiver may send on one stream, and on all streams of a connection, before it is read, in bytes. Bodies are cut at 16 KiB.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// How many HTTP/2 streams are opened before the receiver has said how many it takes. More could be refused.
const STREAMS_BEFORE_SETTINGS: usize = 1;

/// Makes connections.
pub(super) struct Connector {
    guard: Guard,
    tls: TlsConnector,
    verifier: Arc<WebPkiServerVerifier>,
    tls_http1: TlsConnector,
    tasks: Group,
    numbers: AtomicU64,
}

impl Connector {
    /// `tasks` are the connections' own; their number is bounded by the requests under way and the idle connections kept.
    pub(super) fn new(guard: Guard, tls: Tls, tasks: Group) -> Self {
        Self {
            guard,
            tls_http1: Arc::new(tls::without_http2(&tls.config)).into(),
            tls: tls.config.into(),
            verifier: tls.verifier,
            tasks,
            numbers: AtomicU64::new(0),
        }
    }

    /// Closes all connections.
    pub(super) fn close(&self) {
        self.tasks.token().cancel();
    }

    /// A connection to send one request on: a new one or, if the host speaks HTTP/2, one that was made while this request waited.
    pub(super) async fn open(&self, host: &Host, trace: &mut Trace) -> Result<Channel, Failure> {
        if !host.may_share() {
            return self.make(host, trace).await;
        }
        let start = Instant::now();
        let turn = host.gate.acquire().await;
        if let Some(shared) = host.shared() {
            return Ok(Channel::Http2(shared));
        }
        // Those who waited while a connection could not be made share that failure: a dead host would otherwise keep them until their deadlines, one
        // after the other.
        if let Some(failure) = host.failure_since(start) {
            return Err(trace.fail(failure, "another request that waited for the same connection failed"));
        }
        if !host.may_share() {
            drop(turn);
            return self.make(host, trace).await;
        }
        let made = self.make(host, trace).await;
        made.inspect_err(|failure| host.failed(*failure))
    }

    /// A new connection, which others may use too.
    async fn make(&self, host: &Host, trace: &mut Trace) -> Result<Channel, Failure> {
        let channel = self.connect(host, trace).await?;
        host.opened(&channel);
        Ok(channel)
    }

    /// A new connection that nobody else learns of.
    pub(super) async fn connect(&self, host: &Host, trace: &mut Trace) -> Result<Channel, Failure> {
        let Connection { io, peer } = self.guard.connect(&host.key.host, host.key.port, trace).await?;
        let shaken = match (host.key.scheme, host.key.version) {
            (Scheme::Http, HttpVersion::Negotiated | HttpVersion::Http1) => Ok(self.http1(io, peer, trace).await),
            (Scheme::Http, HttpVersion::Http2) => {
                let preface = timeout(HANDSHAKE_DEADLINE, self.http2(io, peer, trace)).await;
                preface.map_err(|_| Failure::Receiver(Reason::Protocol))
            }
            (Scheme::Https, _) => {
                let secure = timeout(HANDSHAKE_DEADLINE, self.secure(host, io, peer, trace)).await;
                secure.map_err(|_| Failure::Receiver(Reason::Tls))
            }
        };
        shaken.map_err(|failure| {
            let detail = format_args!("no end of the handshake within {} s", HANDSHAKE_DEADLINE.as_secs());
            trace.fail(failure, detail)
        })?
    }

    /// Sends what is left of a request that was answered already, and closes the connection.
    pub(super) fn finish(&self, mut link: Link) {
        self.tasks.spawn("http/1.1 request", async move {
            // An error means that the receiver has closed it, or takes no more.
            let _ = timeout(IDLE_TIMEOUT, link.ready()).await;
            link.close();
        });
    }

    async fn secure(&self, host: &Host, io: impl Io, peer: SocketAddr, trace: &mut Trace) -> Result<Channel, Failure> {
        trace.begin(Phase::Tls);
        let name = server_name(&host.key.host)
            .ok_or_else(|| trace.fail(Failure::Receiver(Reason::Tls), "no certificate can be for this host"))?;
        let observed = trace
            .close_up
            .is_some()
            .then(|| Observer::of(self.tls(host).config(), Arc::clone(&self.verifier) as _));
        let tls = match &observed {
            None => self.tls(host),
            Some((observer, tls)) => {
                trace.observed_by(observer);
                tls
            }
        };
        let stream = tls.connect(name, io).await;
        let stream = stream.map_err(|error| trace.fail(Failure::Receiver(Reason::Tls), error))?;
        if let Some((observer, _)) = &observed {
            observer.connected(stream.get_ref().1);
        }
        if stream.get_ref().1.alpn_protocol() == Some(tls::H2) {
            self.http2(stream, peer, trace).await
        } else if host.key.version == HttpVersion::Http2 {
            Err(trace.fail(
                Failure::Receiver(Reason::Protocol),
                "the receiver does not speak HTTP/2",
            ))
        } else {
            self.http1(stream, peer, trace).await
        }
    }

    /// How TLS is spoken with this host.
    fn tls<'a>(&'a self, host: &'a Host) -> &'a TlsConnector {
        let tls = match host.key.version {
            HttpVersion::Negotiated | HttpVersion::Http2 => &self.tls,
            HttpVersion::Http1 => &self.tls_http1,
        };
        match &host.key.identity {
            None => tls,
            Some(identity) => host
                .tls
                .get_or_init(|| Arc::new(tls::with_identity(tls.config(), identity)).into()),
        }
    }

    async fn http1(&self, io: impl Io, peer: SocketAddr, trace: &mut Trace) -> Result<Channel, Failure> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| trace.fail(Failure::of_exchange(&error), InFull(&error)))?;
        Ok(Channel::Http1(Link::new(sender, Box::pin(connection), peer)))
    }

    async fn http2(&self, io: impl Io, peer: SocketAddr, trace: &mut Trace) -> Result<Channel, Failure> {
        let (sender, connection) = http2::Builder::new(OnGroup(self.tasks.clone()))
            .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| trace.fail(Failure::of_exchange(&error), InFull(&error)))?;
        let stop = self.tasks.token().clone();
        self.tasks.spawn("http/2 connection", async move {
            let _ = stop.run_until_cancelled(connection).await;
        });
        Ok(Channel::Http2(Shared {
            sender,
            born: Instant::now(),
            peer,
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
        }))
    }
}

/// Whom the certificate must be for.
fn server_name(host: &egress::Host) -> Option<ServerName<'static>> {
    match host {
        egress::Host::Address(address) => Some(ServerName::IpAddress((*address).into())),
        egress::Host::Name(name) => ServerName::try_from(name.clone()).ok(),
    }
}

/// Runs the tasks of HTTP/2 streams on the connector's group.
#[derive(Clone)]
struct OnGroup(Group);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for OnGroup {
    fn execute(&self, future: F) {
        self.0.spawn("http/2 stream", future);
    }
}
