//! Tests of the guard: no forbidden address is ever dialled. Nothing here leaves this process.

use std::io;
use std::sync::Mutex;

use async_trait::async_trait;
use postrider_common::net::{Dialer, Resolver};
use tokio::time::Instant;

use super::*;

/// What a dialler without a network does.
enum Dials {
    Succeeds,
    Elsewhere,
    Refused,
    NoFileDescriptors,
    Hangs,
}

struct Recorder {
    behaviour: Dials,
    dialled: Mutex<Vec<SocketAddr>>,
}

#[async_trait]
impl Dialer for Recorder {
    async fn dial(&self, address: SocketAddr) -> io::Result<Connection> {
        self.dialled.lock().unwrap().push(address);
        let peer = match self.behaviour {
            Dials::Succeeds => address,
            Dials::Elsewhere => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
            Dials::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
            Dials::NoFileDescriptors => return Err(io::Error::from_raw_os_error(24)),
            Dials::Hangs => std::future::pending().await,
        };
        Ok(Connection {
            io: Box::pin(tokio::io::empty()),
            peer,
        })
    }
}

/// Answers from a list, in order; the last one for ever.
struct Names {
    answers: Vec<Result<Vec<IpAddr>, ResolveError>>,
    asked: Mutex<usize>,
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, _: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let number = {
            let mut asked = self.asked.lock().unwrap();
            *asked += 1;
            *asked - 1
        };
        match self.answers.get(number).or(self.answers.last()) {
            Some(answer) => answer.clone(),
            None => std::future::pending().await,
        }
    }
}

struct Bench {
    guard: Guard,
    dialer: Arc<Recorder>,
    names: Arc<Names>,
}

impl Bench {
    fn new(policy: Policy, behaviour: Dials, answers: Vec<Result<Vec<IpAddr>, ResolveError>>) -> Self {
        let dialer = Arc::new(Recorder {
            behaviour,
            dialled: Mutex::default(),
        });
        let names = Arc::new(Names {
            answers,
            asked: Mutex::default(),
        });
        let guard = Guard::new(Arc::clone(&dialer) as _, Arc::clone(&names) as _, Arc::new(policy));
        Self { guard, dialer, names }
    }

    async fn connect(&self, host: &str) -> Result<SocketAddr, Failure> {
        let host = match host.parse() {
            Ok(address) => egress::Host::Address(address),
            Err(_) => egress::Host::Name(host.to_owned()),
        };
        let connected = self.guard.connect(&host, 443, &mut Trace::default()).await;
        connected.map(|connection| connection.peer)
    }

    fn dialled(&self) -> Vec<String> {
        self.dialer
            .dialled
            .lock()
            .unwrap()
            .iter()
            .map(|address| address.ip().to_string())
            .collect()
    }
}

fn found(addresses: &[&str]) -> Result<Vec<IpAddr>, ResolveError> {
    Ok(addresses.iter().map(|text| text.parse().unwrap()).collect())
}

const BLOCKED: Failure = Failure::Receiver(Reason::BlockedAddress);

#[tokio::test]
async fn a_name_with_any_forbidden_address_is_refused_and_nothing_is_dialled() {
    for answer in [
        &["10.0.0.1"][..],
        &["169.254.169.254"],
        &["127.0.0.1"],
        &["::1"],
        &["::ffff:10.0.0.1"],
        &["64:ff9b::a00:1"],
        &["8.8.8.8", "10.0.0.1"],
        &["10.0.0.1", "8.8.8.8"],
        &["8.8.8.8", "1.1.1.1", "9.9.9.9", "8.8.4.4", "1.0.0.1", "192.168.0.1"],
        &["2606:4700::1111", "fe80::1"],
        &["8.8.8.8", "fd00::1"],
    ] {
        let bench = Bench::new(Policy::default(), Dials::Succeeds, vec![found(answer)]);
        assert_eq!(bench.connect("a.example.com").await, Err(BLOCKED), "{answer:?}");
        assert_eq!(bench.dialled(), [""; 0], "{answer:?}");
    }
}

#[tokio::test]
async fn a_name_that_is_pointed_elsewhere_between_two_connections_is_refused() {
    let answers = vec![
        found(&["8.8.8.8"]),
        found(&["127.0.0.1"]),
        found(&["8.8.8.8", "10.0.0.1"]),
    ];
    let bench = Bench::new(Policy::default(), Dials::Succeeds, answers);
    assert_eq!(bench.connect("a.example.com").await, Ok("8.8.8.8:443".parse().unwrap()));
    assert_eq!(bench.connect("a.example.com").await, Err(BLOCKED));
    assert_eq!(bench.connect("a.example.com").await, Err(BLOCKED));
    assert_eq!(bench.dialled(), ["8.8.8.8"]);
}

#[tokio::test]
async fn an_address_is_judged_without_being_resolved() {
    let bench = Bench::new(Policy::default(), Dials::Succeeds, vec![found(&["8.8.8.8"])]);
    for host in ["127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254"] {
        assert_eq!(bench.connect(host).await, Err(BLOCKED), "{host}");
    }
    assert_eq!(
        bench.connect("::ffff:1.1.1.1").await,
        Ok("1.1.1.1:443".parse().unwrap())
    );
    assert_eq!(bench.dialled(), ["1.1.1.1"]);
    assert_eq!(*bench.names.asked.lock().unwrap(), 0);
}

#[tokio::test]
async fn this_machine_is_reached_by_name_only_where_loopback_is_open() {
    for host in ["localhost", "a.localhost"] {
        let bench = Bench::new(Policy::default(), Dials::Succeeds, vec![found(&["8.8.8.8"])]);
        assert_eq!(bench.connect(host).await, Err(BLOCKED));
        let open = Policy::allowing(["127.0.0.0/8".parse().unwrap()]);
        let bench = Bench::new(open, Dials::Succeeds, vec![found(&["8.8.8.8"])]);
        assert_eq!(bench.connect(host).await, Ok("127.0.0.1:443".parse().unwrap()));
        assert_eq!(*bench.names.asked.lock().unwrap(), 0);
    }
}

#[tokio::test]
async fn a_connection_that_arrived_elsewhere_is_refused() {
    let bench = Bench::new(Policy::default(), Dials::Elsewhere, vec![found(&["8.8.8.8"])]);
    assert_eq!(bench.connect("a.example.com").await, Err(BLOCKED));
}

#[tokio::test]
async fn a_forbidden_port_is_not_dialled() {
    let bench = Bench::new(Policy::default(), Dials::Succeeds, vec![found(&["8.8.8.8"])]);
    let host = egress::Host::Name("a.example.com".to_owned());
    for port in [0, 22, 25, 6379] {
        let connected = bench.guard.connect(&host, port, &mut Trace::default()).await;
        assert_eq!(connected.err(), Some(BLOCKED));
    }
    assert_eq!(bench.dialled(), [""; 0]);
}

#[tokio::test]
async fn at_most_four_addresses_are_dialled_of_both_families() {
    let many: Vec<String> = (0..50)
        .map(|last| format!("2606:4700::{last:x}"))
        .chain(["8.8.8.8".to_owned()])
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bench = Bench::new(Policy::default(), Dials::Refused, vec![found(&many)]);
    assert_eq!(
        bench.connect("a.example.com").await,
        Err(Failure::Receiver(Reason::Connect))
    );
    assert_eq!(
        bench.dialled(),
        ["8.8.8.8", "2606:4700::", "2606:4700::1", "2606:4700::2"]
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_for_names_and_for_connections_ends() {
    let bench = Bench::new(Policy::default(), Dials::Hangs, vec![found(&["8.8.8.8", "1.1.1.1"])]);
    let start = Instant::now();
    assert_eq!(
        bench.connect("a.example.com").await,
        Err(Failure::Receiver(Reason::Connect))
    );
    assert_eq!(start.elapsed(), CONNECT_DEADLINE * 2);
    let bench = Bench::new(Policy::default(), Dials::Succeeds, Vec::new());
    let start = Instant::now();
    assert!(matches!(bench.connect("a.example.com").await, Err(Failure::Local(_))));
    assert_eq!(start.elapsed(), RESOLVE_DEADLINE);
}

#[tokio::test]
async fn what_is_our_own_doing_is_told_from_the_receivers() {
    let bench = Bench::new(Policy::default(), Dials::NoFileDescriptors, vec![found(&["8.8.8.8"])]);
    assert!(matches!(bench.connect("a.example.com").await, Err(Failure::Local(_))));
    for (answer, expected) in [
        (Err(ResolveError::NotFound), Some(Reason::NameNotFound)),
        (Ok(Vec::new()), Some(Reason::NameNotFound)),
        (Err(ResolveError::Failed("refused".to_owned())), None),
    ] {
        let bench = Bench::new(Policy::default(), Dials::Succeeds, vec![answer]);
        match (bench.connect("a.example.com").await, expected) {
            (Err(Failure::Receiver(reason)), Some(expected)) => assert_eq!(reason, expected),
            (Err(Failure::Local(_)), None) => {}
            (other, _) => panic!("{other:?}"),
        }
    }
}
