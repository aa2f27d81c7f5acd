//! A TCP proxy that takes its time: what goes through it arrives whole and in order, and later.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postrider_common::entropy::{Entropy, SystemEntropy};
use postrider_common::task::Group;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::port::Reserved;
use crate::wait;

/// Pieces of one direction that may be on their way: with the size of each more than any delay times any rate of a test.
const UNDER_WAY: usize = 1024;

/// Bytes that are read at once.
const PIECE: usize = 16 * 1024;

/// A proxy on a port of its own.
pub struct Proxy {
    port: Reserved,
    delay: Arc<Delay>,
    group: Group,
}

/// How long each piece is on its way.
struct Delay {
    /// Microseconds at least.
    least: AtomicU64,
    /// Microseconds that chance adds at most.
    spread: AtomicU64,
    entropy: SystemEntropy,
}

impl Delay {
    fn next(&self) -> Duration {
        let (least, spread) = (self.least.load(Ordering::SeqCst), self.spread.load(Ordering::SeqCst));
        let chance = self.entropy.next_u64();
        Duration::from_micros(least + chance % (spread + 1))
    }
}

impl Proxy {
    /// Starts one before `to`. It delays nothing yet; `seed` gives the delays that are drawn later.
    pub fn start(to: SocketAddr, seed: u64) -> Self {
        let (port, group) = (Reserved::on(Ipv4Addr::LOCALHOST), Group::default());
        let delay = Arc::new(Delay {
            least: AtomicU64::new(0),
            spread: AtomicU64::new(0),
            entropy: SystemEntropy::seeded(seed),
        });
        let (listener, connections) = (port.listen(), group.clone());
        let (stop, shared) = (group.token().clone(), delay.clone());
        group.spawn("proxy", async move {
            stop.run_until_cancelled(accept(listener, to, shared, connections))
                .await;
        });
        Self { port, delay, group }
    }

    /// Its address.
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// From now on what goes through is on its way for `least` at least and `most` at most, in each direction.
    pub fn delay(&self, least: Duration, most: Duration) {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let spread = micros(most.saturating_sub(least));
        self.delay.least.store(micros(least), Ordering::SeqCst);
        self.delay.spread.store(spread, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.group.token().cancel();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, delay: Arc<Delay>, group: Group) {
    // A proxy that cannot accept any more is a failure of its test, which will see nothing arrive.
    while let Ok((here, _)) = listener.accept().await {
        let Ok(there) = TcpStream::connect(to).await else {
            continue;
        };
        let _ = (here.set_nodelay(true), there.set_nodelay(true));
        let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
        for (name, reader, writer) in [
            ("there", boxed(from_here), boxed_writer(to_there)),
            ("here", boxed(from_there), boxed_writer(to_here)),
        ] {
            let (delay, stop) = (delay.clone(), group.token().clone());
            group.spawn(name, async move {
                stop.run_until_cancelled(carry(reader, writer, &delay)).await;
            });
        }
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

fn boxed(reader: impl AsyncRead + Send + Unpin + 'static) -> Reader {
    Box::new(reader)
}

fn boxed_writer(writer: impl AsyncWrite + Send + Unpin + 'static) -> Writer {
    Box::new(writer)
}

/// Carries one direction to its end, which is as late as what came before it.
async fn carry(mut reader: Reader, mut writer: Writer, delay: &Delay) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        loop {
            let mut piece = vec![0; PIECE];
            // One that breaks ends like one that is closed.
            let read = reader.read(&mut piece).await.unwrap_or(0);
            piece.truncate(read);
            if sender.send((Instant::now() + delay.next(), piece)).await.is_err() || read == 0 {
                return;
            }
        }
    };
    let writing = async {
        while let Some((due, piece)) = pieces.recv().await {
            wait::moment(due).await;
            if piece.is_empty() || writer.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
        // Whatever still comes is for nobody.
        pieces.close();
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_goes_through_arrives_whole_in_order_and_no_sooner_than_it_may() {
        let port = Reserved::new();
        let listener = port.listen();
        let proxy = Proxy::start(port.address(), 1);
        let mut here = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut there, _) = listener.accept().await.unwrap();
        let least = Duration::from_millis(20);
        proxy.delay(least, least * 3);
        let sent = Instant::now();
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        here.write_all(&bytes).await.unwrap();
        here.shutdown().await.unwrap();
        let mut arrived = Vec::new();
        there.read_to_end(&mut arrived).await.unwrap();
        assert_eq!(arrived, bytes);
        assert!(sent.elapsed() >= least);
        there.write_all(b"back").await.unwrap();
        drop(there);
        arrived.clear();
        here.read_to_end(&mut arrived).await.unwrap();
        assert_eq!(arrived, b"back");
    }
}
