//! Tests of name resolution, against a name server of the test.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig};
use hickory_resolver::proto::op::{Message, MessageType};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use postrider_common::task::Group;
use tokio::net::UdpSocket;

use super::*;

/// How the name server answers for an IPv4 address.
#[derive(Clone)]
enum Says {
    Addresses(Vec<Ipv4Addr>),
    Code(ResponseCode),
    Nothing,
}

/// A resolver that asks a name server which answers so, by the name's first label. Gives the names that it is asked.
async fn resolver(group: &Group, says: fn(&str) -> Says) -> (SystemResolver, Arc<Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&asked);
    group.spawn("name server", async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            let query = message.queries[0].clone();
            let name = query.name().to_string();
            record.lock().unwrap().push(name.clone());
            message.metadata.message_type = MessageType::Response;
            match says(name.split('.').next().unwrap()) {
                Says::Nothing => continue,
                Says::Code(code) => message.metadata.response_code = code,
                Says::Addresses(addresses) if query.query_type() == RecordType::A => {
                    for address in addresses {
                        message.add_answer(Record::from_rdata(query.name().clone(), 300, RData::A(address.into())));
                    }
                }
                Says::Addresses(_) => {}
            }
            socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
        }
    });
    let mut connection = ConnectionConfig::udp();
    connection.port = port;
    let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
    let resolver = SystemResolver::with_name_servers(ResolverConfig::from_name_servers(vec![server])).unwrap();
    (resolver, asked)
}

fn by_label(label: &str) -> Says {
    match label {
        "one" => Says::Addresses(vec![Ipv4Addr::new(192, 0, 2, 1)]),
        "many" => Says::Addresses((1..=20).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect()),
        "missing" => Says::Code(ResponseCode::NXDomain),
        "broken" => Says::Code(ResponseCode::ServFail),
        "refused" => Says::Code(ResponseCode::Refused),
        "silent" => Says::Nothing,
        _ => Says::Addresses(Vec::new()),
    }
}

#[tokio::test]
async fn a_name_is_asked_for_as_it_stands_and_all_its_addresses_are_given() {
    let group = Group::default();
    let (resolver, asked) = resolver(&group, by_label).await;
    assert_eq!(
        resolver.resolve("one.example.com").await,
        Ok(vec!["192.0.2.1".parse().unwrap()])
    );
    assert_eq!(resolver.resolve("many").await.unwrap().len(), 20);
    let mut asked = asked.lock().unwrap().clone();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, ["many.", "one.example.com."]);
}

#[tokio::test]
async fn a_name_without_an_address_is_not_found() {
    let group = Group::default();
    let (resolver, asked) = resolver(&group, by_label).await;
    for name in ["missing.example.com", "empty.example.com", "broken.example.com"] {
        assert_eq!(resolver.resolve(name).await, Err(ResolveError::NotFound), "{name}");
    }
    assert!(asked.lock().unwrap().iter().all(|name| name.ends_with(".example.com.")));
}

#[tokio::test]
async fn name_servers_that_refuse_are_our_own_failure() {
    let group = Group::default();
    let (resolver, _) = resolver(&group, by_label).await;
    assert!(matches!(
        resolver.resolve("refused.example.com").await,
        Err(ResolveError::Failed(_))
    ));
}

#[tokio::test]
async fn silence_is_the_names_fault_only_while_others_are_answered() {
    let group = Group::default();
    let (resolver, _) = resolver(&group, by_label).await;
    let start = Instant::now();
    let unknown = resolver.resolve("silent.example.com").await;
    assert!(matches!(unknown, Err(ResolveError::Failed(_))), "{unknown:?}");
    assert!(start.elapsed() < BUDGET * 2);
    assert!(resolver.resolve("one.example.com").await.is_ok());
    assert_eq!(
        resolver.resolve("silent.example.org").await,
        Err(ResolveError::NotFound)
    );
}
