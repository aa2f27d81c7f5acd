//! A name server that says what a test wants: over UDP, for one question at a time, with addresses that nobody may keep (TTL 0).
//!
//! It knows the little of RFC 1035 that this takes: it sends the question back, and A records that point to its name.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postrider_common::task::Group;
use tokio::net::UdpSocket;

/// The port that name servers are asked at: a `resolv.conf` can name no other.
const PORT: u16 = 53;

/// The largest question.
const QUESTION: usize = 512;

/// Bytes of the head of a message.
const HEAD: usize = 12;

/// The type of a question for IPv4 addresses.
const A: u16 = 1;

/// What is said of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// These addresses; those for one question after those for the other, and from the start again. None at all is an answer, too.
    Addresses(Vec<Vec<Ipv4Addr>>),
    /// A code: 2 is SERVFAIL, 3 is NXDOMAIN.
    Code(u8),
    /// Nothing.
    Silence,
}

impl Says {
    /// Always these addresses.
    pub fn these(addresses: &[Ipv4Addr]) -> Self {
        Self::Addresses(vec![addresses.to_vec()])
    }
}

#[derive(Default)]
struct Names {
    /// By name, without the final dot. Others do not exist.
    said: HashMap<String, Says>,
    /// How often addresses were asked for.
    asked: usize,
}

/// A name server on an address of this machine that is the test's own.
pub struct NameServer {
    names: Arc<Mutex<Names>>,
    group: Group,
}

impl NameServer {
    /// Starts one.
    pub async fn start(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((address, PORT))
            .await
            .expect("the address is ours alone");
        let (names, group) = (Arc::new(Mutex::new(Names::default())), Group::default());
        let (said, stop) = (names.clone(), group.token().clone());
        group.spawn("name server", async move {
            stop.run_until_cancelled(serve(socket, said)).await;
        });
        Self { names, group }
    }

    /// From now on says this of a name.
    pub fn say(&self, name: &str, says: Says) {
        lock(&self.names).said.insert(name.to_owned(), says);
    }

    /// How often addresses were asked for.
    pub fn asked(&self) -> usize {
        lock(&self.names).asked
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.group.token().cancel();
    }
}

fn lock(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(socket: UdpSocket, names: Arc<Mutex<Names>>) {
    let mut buffer = [0; QUESTION];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let answer = answer(&buffer[..length], &mut lock(&names));
        if let Some(answer) = answer {
            // Who asked may have gone.
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// The answer to a message with one question, if one is given.
fn answer(message: &[u8], names: &mut Names) -> Option<Vec<u8>> {
    let (name, end) = name(message.get(HEAD..)?)?;
    let question = message.get(HEAD..HEAD + end + 4)?;
    let asks_for = u16::from_be_bytes([question[end], question[end + 1]]);
    let turn = names.asked;
    names.asked += usize::from(asks_for == A);
    let (code, addresses) = match names.said.get(&name) {
        Some(Says::Silence) => return None,
        Some(Says::Code(code)) => (*code, &[][..]),
        Some(Says::Addresses(turns)) if asks_for == A && !turns.is_empty() => (0, &turns[turn % turns.len()][..]),
        Some(Says::Addresses(_)) => (0, &[][..]),
        None => (3, &[][..]),
    };
    let mut answer = message.get(..2)?.to_vec();
    // An answer, to a query, with authority, as recursion was asked for and is there.
    answer.extend([0x85, 0x80 | code]);
    for count in [1, u16::try_from(addresses.len()).ok()?, 0, 0] {
        answer.extend(count.to_be_bytes());
    }
    answer.extend(question);
    for address in addresses {
        // The name at byte 12, type A, class IN, TTL 0, four bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The name that a question begins with, and where it ends.
fn name(question: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 0);
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = question.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: u16) -> Vec<u8> {
        let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question.extend(b"\x01a\x07Example\x03com\x00");
        question.extend(kind.to_be_bytes());
        question.extend([0, 1]);
        question
    }

    #[test]
    fn a_question_is_sent_back_with_what_is_said_of_its_name_in_turn() {
        let mut names = Names::default();
        assert_eq!(answer(&ask(A), &mut names).unwrap()[3], 0x83, "nobody knows it");
        let (one, two) = (Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2));
        let turns = Says::Addresses(vec![vec![one, two], vec![two]]);
        names.said.insert("a.example.com".to_owned(), turns);
        let answers = [0, 1].map(|_| answer(&ask(A), &mut names).unwrap());
        let alone = answers.iter().find(|answer| answer[7] == 1).unwrap();
        let both = answers.iter().find(|answer| answer[7] == 2).unwrap();
        assert_eq!(&alone[..12], [7, 7, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert!(alone.ends_with(&[0, 4, 127, 0, 0, 2]) && both.len() == alone.len() + 16);
        assert_eq!(answer(&ask(28), &mut names).unwrap()[7], 0, "it has no IPv6 address");
        names.said.insert("a.example.com".to_owned(), Says::Silence);
        assert_eq!(answer(&ask(A), &mut names), None);
        names.said.insert("a.example.com".to_owned(), Says::Code(2));
        assert_eq!(answer(&ask(A), &mut names).unwrap()[3], 0x82);
        assert_eq!(answer(&[0; 5], &mut names), None);
        assert_eq!(names.asked, 5);
    }
}
