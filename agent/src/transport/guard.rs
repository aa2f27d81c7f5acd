//! The egress guard: resolves, judges every address, dials exactly what it judged, and checks where it arrived.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use postrider_common::egress::{self, Policy};
use postrider_common::net::{Connection, ResolveError, SharedDialer, SharedResolver};
use tokio::time::timeout;

use super::failure::Failure;
use super::trace::{Phase, Trace};
use crate::attempt::Reason;

/// How long a name may take to resolve: several tries at slow name servers.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);

/// How long one address may take to connect: two lost packets, with the first retransmission after one second and the second after three, are
/// already a dead host.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// How many addresses of a name are dialled, so that a long answer cannot make one attempt knock at many doors.
const MAX_DIALLED: usize = 4;

/// How many addresses of a name are told where they are asked for.
const MAX_TOLD: usize = 32;

const BLOCKED: Failure = Failure::Receiver(Reason::BlockedAddress);

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
    pub(super) async fn connect(
        &self,
        host: &egress::Host,
        port: u16,
        trace: &mut Trace,
    ) -> Result<Connection, Failure> {
        if !self.policy.allows_port(port) {
            return Err(trace.fail(BLOCKED, "the port is not allowed"));
        }
        let mut last = Failure::Receiver(Reason::NameNotFound);
        let addresses = self.vetted(host, trace).await?;
        trace.begin(Phase::Connect);
        for address in addresses {
            match self.dial(SocketAddr::new(address, port), trace).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// The addresses to dial, all of them allowed. One that is not refuses the whole name: whoever mixes a forbidden address into an answer does not
    /// mean well.
    async fn vetted(&self, host: &egress::Host, trace: &mut Trace) -> Result<Vec<IpAddr>, Failure> {
        let mut addresses = match host {
            egress::Host::Address(address) => vec![*address],
            // These never leave the machine (RFC 6761), so no name server is asked. Whichever loopback addresses are open are meant.
            egress::Host::Name(name) if egress::is_localhost(name) => {
                let mut both = vec![IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
                both.retain(|address| self.policy.allows(*address));
                if both.is_empty() {
                    return Err(trace.fail(BLOCKED, "loopback addresses are not allowed"));
                }
                both
            }
            egress::Host::Name(name) => {
                trace.begin(Phase::Resolve);
                match timeout(RESOLVE_DEADLINE, self.resolver.resolve(name)).await {
                    Ok(Ok(addresses)) => addresses,
                    Ok(Err(error @ ResolveError::NotFound)) => {
                        return Err(trace.fail(Failure::Receiver(Reason::NameNotFound), error));
                    }
                    Ok(Err(ResolveError::Failed(_))) | Err(_) => {
                        return Err(Failure::Local("the name servers do not answer"));
                    }
                }
            }
        };
        if !addresses.iter().all(|address| self.policy.allows(*address)) {
            // Which one is not said: whoever may name hosts is not to find out by it what they are within this network.
            return Err(trace.fail(BLOCKED, "the host has an address that is not allowed"));
        }
        for address in &mut addresses {
            *address = address.to_canonical();
        }
        if let Some(close_up) = &mut trace.close_up {
            close_up.resolved = addresses.iter().copied().take(MAX_TOLD).collect();
        }
        Ok(choose(&addresses))
    }

    async fn dial(&self, address: SocketAddr, trace: &mut Trace) -> Result<Connection, Failure> {
        trace.address = Some(address);
        let Connection { io, peer } = match timeout(CONNECT_DEADLINE, self.dialer.dial(address)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(trace.fail(Failure::of_dialling(&error), error)),
            Err(_) => {
                let detail = format_args!("no connection within {} s", CONNECT_DEADLINE.as_secs());
                return Err(trace.fail(Failure::Receiver(Reason::Connect), detail));
            }
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        if peer == address {
            Ok(Connection { io, peer })
        } else {
            Err(trace.fail(
                BLOCKED,
                "the connection went to another address than the one that was dialled",
            ))
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
