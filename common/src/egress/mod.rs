//! The egress guard's judgement: which addresses may be dialled, and which URLs may be stored. Pure.
//!
//! A URL is judged twice. When a webhook is written, [`check_url`] judges its text and, if the host is an address in any spelling, that address. When
//! a request is made, the transport judges every address that the name resolves to at that moment ([`Policy::allows`]), because a name can be
//! pointed elsewhere at any time. Both judge by one table: what is not known to be a public unicast address is forbidden.

mod table;
mod url;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub use self::url::{CanonicalUrl, Host, MAX_URL_BYTES, Scheme, UrlError, check_url};

/// Ports from here on are open to every user of a machine, so that listeners are commonly found there; below are those of system services, of which
/// only the two of HTTP are allowed.
const FIRST_USER_PORT: u16 = 1024;

/// Ports above [`FIRST_USER_PORT`] on which services listen that take commands from anyone who reaches them and that an HTTP request could talk to or
/// disturb: databases, caches, cluster and container managers, remote desktops.
const DENIED_PORTS: [u16; 28] = [
    1433,  // SQL Server
    1521,  // Oracle
    2049,  // NFS
    2181,  // ZooKeeper
    2375,  // Docker
    2376,  // Docker
    2379,  // etcd
    2380,  // etcd
    3306,  // MySQL
    3389,  // remote desktop
    4369,  // Erlang port mapper
    5432,  // PostgreSQL
    5672,  // AMQP
    5900,  // VNC
    5984,  // CouchDB
    6000,  // X11
    6379,  // Redis
    6443,  // Kubernetes
    6667,  // IRC
    8500,  // Consul
    9042,  // Cassandra
    9092,  // Kafka
    9200,  // Elasticsearch
    9300,  // Elasticsearch
    10250, // kubelet
    11211, // memcached
    27017, // MongoDB
    27018, // MongoDB
];

/// What may be dialled. By default: public unicast addresses, `http` and `https`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Networks that are opened although they are not public (`--egress-allow`). Ports stay checked.
    pub allow: Vec<IpNet>,
    /// Which schemes are allowed.
    pub schemes: Schemes,
}

/// Which schemes a [`Policy`] allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schemes {
    /// `http` and `https`.
    #[default]
    HttpAndHttps,
    /// `https` only.
    HttpsOnly,
}

impl Policy {
    /// A policy that opens these networks besides the public ones.
    pub fn allowing(allow: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            allow: allow.into_iter().collect(),
            schemes: Schemes::default(),
        }
    }

    /// Whether this address may be dialled. An IPv6 address that stands for an IPv4 one (mapped, RFC 4291; translated by `64:ff9b::/96`, RFC 6052)
    /// is judged as that IPv4 address, and no IPv6 network opens it.
    pub fn allows(&self, address: IpAddr) -> bool {
        let judged = embedded_v4(address).map_or(address, IpAddr::V4);
        let public = match judged {
            IpAddr::V4(v4) => table::is_public_v4(v4),
            IpAddr::V6(v6) => table::is_public_v6(v6),
        };
        public || self.allow.iter().any(|network| network.contains(&judged))
    }

    /// Whether this port may be dialled.
    pub fn allows_port(&self, port: u16) -> bool {
        matches!(port, 80 | 443) || (port >= FIRST_USER_PORT && !DENIED_PORTS.contains(&port))
    }

    /// Whether names of this machine itself (`localhost`) may be dialled.
    fn allows_loopback(&self) -> bool {
        self.allows(Ipv4Addr::LOCALHOST.into()) || self.allows(Ipv6Addr::LOCALHOST.into())
    }
}

/// Whether `host` (lower case, without a final dot) names this machine itself: RFC 6761, section 6.3.
pub fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// The IPv4 address that an IPv6 address is another spelling of.
fn embedded_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    if table::is_translated(v6) {
        let [.., a, b, c, d] = v6.octets();
        return Some(Ipv4Addr::new(a, b, c, d));
    }
    v6.to_ipv4_mapped()
}

#[cfg(test)]
mod tests;
