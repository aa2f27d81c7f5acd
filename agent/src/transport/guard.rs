//! The egress guard: resolves, judges every address, dials exactly what it judged, and checks where it arrived.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use postrider_common::egress::{self, Policy};
use postrider_common::net::{Connection, ResolveError, SharedDialer, SharedResolver};
use tokio::time::timeout;

use super::failure::Failure;
use crate::attempt::Reason;

/// How long a name may take to resolve: several tries at slow name servers.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);

/// How long one address may take to connect: two lost packets, with the first retransmission after one second and the second after three, are
/// already a dead host.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// How many addresses of a name are dialled, so that a long answer cannot make one attempt knock at many doors.
const MAX_DIALLED: usize = 4;

/// Opens connections that the policy allows.
pub(super) struct Guard {
    dialer: SharedDialer,
    resolver: SharedResolver,
    policy: Arc<Policy>,
}

impl Guard {
    pub(super) fn new(dialer: SharedDialer, resolver: SharedResolver, policy: Arc<Policy>) -> Self {
        Self {
            dialer,
            resolver,
            policy,
        }
    }

    /// A TCP connection to the host, by an address that was judged now.
    pub(super) async fn connect(&self, host: &egress::Host, port: u16) -> Result<Connection, Failure> {
        if !self.policy.allows_port(port) {
            return Err(Failure::Receiver(Reason::BlockedAddress));
        }
        let mut last = Failure::Receiver(Reason::NameNotFound);
        for address in self.vetted(host).await? {
            match self.dial(SocketAddr::new(address, port)).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// The addresses to dial, all of them allowed. One that is not refuses the whole name: whoever mixes a forbidden address into an answer does not
    /// mean well.
    async fn vetted(&self, host: &egress::Host) -> Result<Vec<IpAddr>, Failure> {
        let mut addresses = match host {
            egress::Host::Address(address) => vec![*address],
            // These never leave the machine (RFC 6761), so no name server is asked. Whichever loopback addresses are open are meant.
            egress::Host::Name(name) if egress::is_localhost(name) => {
                let mut both = vec![IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
                both.retain(|address| self.policy.allows(*address));
                if both.is_empty() {
                    return Err(Failure::Receiver(Reason::BlockedAddress));
                }
                both
            }
            egress::Host::Name(name) => match timeout(RESOLVE_DEADLINE, self.resolver.resolve(name)).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(ResolveError::NotFound)) => return Err(Failure::Receiver(Reason::NameNotFound)),
                Ok(Err(ResolveError::Failed(_))) | Err(_) => {
                    return Err(Failure::Local("the name servers do not answer"));
                }
            },
        };
        if !addresses.iter().all(|address| self.policy.allows(*address)) {
            return Err(Failure::Receiver(Reason::BlockedAddress));
        }
        for address in &mut addresses {
            *address = address.to_canonical();
        }
        Ok(choose(&addresses))
    }

    async fn dial(&self, address: SocketAddr) -> Result<Connection, Failure> {
        let connection = match timeout(CONNECT_DEADLINE, self.dialer.dial(address)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(Failure::of_dialling(&error)),
            Err(_) => return Err(Failure::Receiver(Reason::Connect)),
        };
        let arrived = SocketAddr::new(connection.peer.ip().to_canonical(), connection.peer.port());
        if arrived == address {
            Ok(connection)
        } else {
            Err(Failure::Receiver(Reason::BlockedAddress))
        }
    }
}

/// Up to [`MAX_DIALLED`] addresses, the two families in turn, so that a machine without one of them finds the other among them.
fn choose(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut v4 = addresses.iter().filter(|address| address.is_ipv4());
    let mut v6 = addresses.iter().filter(|address| address.is_ipv6());
    let mut chosen = Vec::with_capacity(MAX_DIALLED);
    while chosen.len() < MAX_DIALLED {
        let (a, b) = (v4.next(), v6.next());
        if a.is_none() && b.is_none() {
            break;
        }
        chosen.extend(a.into_iter().chain(b));
    }
    chosen
}

#[cfg(test)]
mod tests;
