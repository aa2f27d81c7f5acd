//! Ports that stay ours while nobody listens on them, so that a server can go down and come back at the same address.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted: more than any test opens at once.
const ACCEPT_QUEUE: u32 = 4096;

/// A port, of 127.0.0.1 unless another address is asked for, held by a socket that is bound but does not listen: connecting is refused, nobody else is given the port, and
/// whoever binds it with `SO_REUSEADDR` (as servers do) may listen on it.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    _holder: TcpSocket,
}

impl Reserved {
    /// Takes a free port.
    pub fn new() -> Self {
        Self::on(Ipv4Addr::LOCALHOST)
    }

    /// Takes a free port of an address of this machine.
    pub fn on(address: Ipv4Addr) -> Self {
        let holder = socket();
        holder.bind((address, 0).into()).expect("there is a free port");
        let address = holder.local_addr().expect("a bound socket has an address");
        Self {
            address,
            _holder: holder,
        }
    }

    /// Its address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens on it.
    pub fn listen(&self) -> TcpListener {
        let socket = socket();
        socket.bind(self.address).expect("a reserved port can be bound");
        socket.listen(ACCEPT_QUEUE).expect("a reserved port can be listened on")
    }
}

impl Default for Reserved {
    fn default() -> Self {
        Self::new()
    }
}

fn socket() -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("sockets can be made");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR is known");
    socket
}
