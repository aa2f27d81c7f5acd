//! A network namespace with one link to this machine, in which a program can be cut from a port of it, in one direction or in both; or the link loses
//! packets, or carries little.
//!
//! Needs root, `ip` (iproute2), `unshare` and `nsenter` (util-linux) and `nft` (nftables). Where one of them is missing a test fails and says so: that an
//! agent is cut off cannot be tested without. The namespace, its link and its rules go away with the process that holds it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;

use crate::process::Process;
use crate::wait;

/// How long the namespace may take to be there.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// The networks that links are made of: set aside for tests between machines (RFC 2544), so nothing else is reached by them.
const NETWORK: &str = "198.18.0.0/15";

/// Links of four addresses each that fit into the network.
const LINKS: u32 = 1 << 15;

/// A network namespace.
pub struct Namespace {
    holder: Process,
    host: Ipv4Addr,
    inside: Ipv4Addr,
    _folder: TempDir,
}

/// Which packets between the namespace and a port of this machine are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Those to the port.
    To,
    /// Those from it.
    From,
    /// Both.
    Both,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Panics
    /// If this machine cannot, with what to install.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let script = "ip link set lo up && echo ready && exec sleep infinity";
        let arguments = ["--net", "--", "sh", "-c", script];
        let holder = Process::start(Path::new("unshare"), "namespace", arguments, folder.path());
        let namespace = Self {
            host: address(holder.pid(), 1),
            inside: address(holder.pid(), 2),
            holder,
            _folder: folder,
        };
        wait::until(
            "the namespace (run as root; apt-get install iproute2 util-linux nftables)",
            READY_DEADLINE,
            async || namespace.holder.output().contains("ready").then_some(()),
        )
        .await;
        let (pid, link) = (namespace.holder.pid().to_string(), namespace.link());
        let (host, inside) = (format!("{}/30", namespace.host), format!("{}/30", namespace.inside));
        run(
            "ip",
            &[
                "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid,
            ],
        )
        .await;
        run("ip", &["addr", "add", &host, "dev", &link]).await;
        run("ip", &["link", "set", &link, "up"]).await;
        namespace.inside(&["ip", "addr", "add", &inside, "dev", "eth0"]).await;
        namespace.inside(&["ip", "link", "set", "eth0", "up"]).await;
        namespace.inside(&["nft", "add", "table", "ip", "cut"]).await;
        for hook in ["input", "output"] {
            let chain = format!("add chain ip cut {hook} {{ type filter hook {hook} priority 0; }}");
            namespace.inside(&["nft", &chain]).await;
        }
        namespace
    }

    /// This machine's address on the link.
    pub const fn host(&self) -> Ipv4Addr {
        self.host
    }

    /// The namespace's address.
    pub const fn address(&self) -> Ipv4Addr {
        self.inside
    }

    /// A network that holds the addresses of all namespaces.
    #[allow(clippy::unused_self, reason = "whoever asks has one")]
    pub const fn network(&self) -> &'static str {
        NETWORK
    }

    /// The command that goes into the namespace, and becomes the command behind it.
    pub fn enter(&self) -> Vec<String> {
        let pid = self.holder.pid().to_string();
        ["nsenter", "-t", &pid, "-n", "--"].map(str::to_owned).to_vec()
    }

    /// What a program in the namespace answers to GET `path`, as [`crate::http::get`].
    pub async fn get(&self, address: SocketAddr, path: &str) -> String {
        let (host, port) = (address.ip(), address.port());
        let request = format!("GET {path} HTTP/1.1\\r\\nhost: {host}\\r\\nconnection: close\\r\\n\\r\\n");
        let script = format!("exec 3<>/dev/tcp/{host}/{port} && printf '{request}' >&3 && cat <&3");
        self.inside(&["bash", "-c", &script]).await
    }

    /// Starts a program in the namespace.
    pub fn start(&self, program: &Path, name: &str, arguments: &[&str], folder: &Path) -> Process {
        let mut command = self.enter();
        command.push(program.display().to_string());
        command.extend(arguments.iter().map(ToString::to_string));
        Process::start(Path::new(&command[0]), name, &command[1..], folder)
    }

    /// From now on drops packets between the namespace and a port of this machine, without a word to either side.
    pub async fn cut(&self, cut: Cut, port: u16) {
        if cut != Cut::From {
            self.inside(&["nft", &format!("add rule ip cut output tcp dport {port} counter drop")])
                .await;
        }
        if cut != Cut::To {
            self.inside(&["nft", &format!("add rule ip cut input tcp sport {port} counter drop")])
                .await;
        }
    }

    /// From now on so many of a hundred packets on the link are lost, in each direction, at random.
    pub async fn lose(&self, percent: u8) {
        for (hook, interface) in [("input", "iifname"), ("output", "oifname")] {
            let rule =
                format!("add rule ip cut {hook} {interface} eth0 numgen random mod 100 < {percent} counter drop");
            self.inside(&["nft", &rule]).await;
        }
    }

    /// From now on the link carries so many kilobits a second in each direction; what comes faster waits for up to 400 ms, and is lost then.
    pub async fn narrow(&self, kilobits: u32) {
        let rate = format!("{kilobits}kbit");
        let shape = [
            "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "16kb", "latency", "400ms",
        ];
        self.inside(&shape).await;
        let link = self.link();
        let mut outside = shape;
        outside[4] = &link;
        run(outside[0], &outside[1..]).await;
    }

    /// The link is as wide as before.
    pub async fn widen(&self) {
        self.inside(&["tc", "qdisc", "del", "dev", "eth0", "root"]).await;
        run("tc", &["qdisc", "del", "dev", &self.link(), "root"]).await;
    }

    /// Gives the namespace, and nobody else, an address, and counts the packets to it from now on.
    pub async fn watch_address(&self, address: Ipv4Addr) {
        self.inside(&["ip", "addr", "add", &format!("{address}/32"), "dev", "lo"])
            .await;
        self.inside(&["nft", "add", "table", "ip", "watch"]).await;
        let chain = "add chain ip watch output { type filter hook output priority -10; }";
        self.inside(&["nft", chain]).await;
        self.inside(&["nft", &format!("add rule ip watch output ip daddr {address} counter")])
            .await;
    }

    /// Sends something to an address of its own, whoever listens there.
    pub async fn knock(&self, address: Ipv4Addr) {
        let script = format!("exec 3<>/dev/tcp/{address}/9 || true");
        self.inside(&["bash", "-c", &script]).await;
    }

    /// How many packets went to the address that is watched.
    pub async fn watched(&self) -> u64 {
        dropped(&self.inside(&["nft", "list", "table", "ip", "watch"]).await)
    }

    /// Drops nothing any more, and returns how many packets were dropped.
    pub async fn heal(&self) -> u64 {
        let rules = self.inside(&["nft", "list", "table", "ip", "cut"]).await;
        self.inside(&["nft", "flush", "table", "ip", "cut"]).await;
        dropped(&rules)
    }

    /// The name of its link's end on this machine.
    fn link(&self) -> String {
        format!("pr{}", self.holder.pid())
    }

    async fn inside(&self, command: &[&str]) -> String {
        let pid = self.holder.pid().to_string();
        run("nsenter", &[&["-t", &pid, "-n", "--"], command].concat()).await
    }
}

/// The address number `number` of the link of the process `pid`: different for all that live at a time.
fn address(pid: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + pid % LINKS * 4 + number)
}

/// The packets that `counter packets N` of a listing count.
fn dropped(rules: &str) -> u64 {
    let counts = rules.split("packets ").skip(1);
    counts
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// Runs a program to its end, and returns what it printed.
async fn run(program: &str, arguments: &[&str]) -> String {
    const NEEDED: &str = "network namespaces need root, and: apt-get install iproute2 util-linux nftables";
    let output = Command::new(program).args(arguments).output().await;
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; {NEEDED}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}; {NEEDED}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::port::Reserved;

    #[test]
    fn links_have_addresses_of_their_own() {
        assert_eq!(address(7, 1), Ipv4Addr::new(198, 18, 0, 29));
        assert_eq!(address(7, 2), Ipv4Addr::new(198, 18, 0, 30));
        assert_eq!(address(LINKS - 1, 2), Ipv4Addr::new(198, 19, 255, 254));
        assert_eq!(
            dropped("counter packets 3 bytes 7 drop\n counter packets 4 bytes 0 drop"),
            7
        );
    }

    #[tokio::test]
    async fn a_port_is_reached_from_the_namespace_unless_it_is_cut() {
        let namespace = Namespace::new().await;
        for cut in [None, Some(Cut::To), Some(Cut::From), Some(Cut::Both), None] {
            let port = Reserved::on(namespace.host());
            let listener = port.listen();
            let number = port.address().port();
            if let Some(cut) = cut {
                namespace.cut(cut, number).await;
            }
            let script = format!(
                "exec 3<>/dev/tcp/{}/{number} && head -c 2 <&3 && echo ' reached'",
                namespace.host()
            );
            let folder = tempfile::tempdir().unwrap();
            let mut client = namespace.start(Path::new("bash"), "client", &["-c", &script], folder.path());
            if cut.is_none() {
                let (mut stream, peer) = listener.accept().await.unwrap();
                assert_eq!(peer.ip(), namespace.address());
                stream.write_all(b"hi").await.unwrap();
                assert!(client.ended(READY_DEADLINE).await.success());
                wait::until("what it printed", READY_DEADLINE, async || {
                    client.output().contains("hi reached").then_some(())
                })
                .await;
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                assert_eq!(namespace.heal().await, 0);
            } else {
                wait::until("a packet to be dropped", READY_DEADLINE, async || {
                    let rules = namespace.inside(&["nft", "list", "table", "ip", "cut"]).await;
                    (dropped(&rules) > 0).then_some(())
                })
                .await;
                assert!(!client.has_ended());
                client.kill().await;
                assert!(namespace.heal().await > 0);
            }
        }
    }
}
