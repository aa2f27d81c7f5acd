//! The small etcd against a real one: both are asked the same, through the same client, and must answer the same, revision for revision.
//!
//! What Postrider reads of answers is compared: not versions of keys, numbers of all keys of a range, or what a transaction says of each change. Two things
//! are left out because etcd 3.4 is not sure of them itself: a deletion at the very revision of a compaction, which it forgets in a watch from there,
//! and how changes are cut into messages.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use postrider_common::entropy::SystemEntropy;
use postrider_common::store::memory::MemoryStore;
use postrider_common::task::Group;
use postrider_tests::etcd::Etcd;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use crate::etcd::Member;
use crate::history::{self, Step};
use crate::mishaps::Mishaps;
use crate::net::Accepted;
use crate::plan::Dice;
use crate::side::Side;

/// How often a shorter history is tried when one has been found that shows a difference.
const TRIES: usize = 300;

/// How long the last tasks may take.
const GRACE: Duration = Duration::from_secs(1);

/// Plays histories until so many steps were compared; prints the shortest history it can find that shows a difference. Says whether there was none.
pub(crate) fn compare(steps: usize, seed: u64) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be built");
    runtime.block_on(async {
        let etcd = Etcd::start(1).await;
        let tasks = Group::default();
        let simulated = serve(&tasks).await;
        let mut both = Both {
            real: Side::new(etcd.address(0)).await,
            simulated: Side::new(simulated).await,
        };
        let same = both.compare(steps, seed).await;
        tasks.shut_down(GRACE).await;
        same
    })
}

/// Serves a small etcd on a port of this machine.
async fn serve(tasks: &Group) -> SocketAddr {
    let begin = Instant::now();
    let member = Member {
        store: MemoryStore::timed(Box::new(move || begin.elapsed())),
        entropy: Arc::new(SystemEntropy::seeded(1)),
        witness: Arc::new(|_, _, _| {}),
        mishaps: Arc::new(Mishaps::new(Dice::new(1, 3))),
        tasks: tasks.clone(),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a port is free");
    let address = listener.local_addr().expect("it listens");
    let incoming = TcpListenerStream::new(listener).map(|accepted| accepted.map(Accepted::real));
    tasks.spawn("etcd", async move {
        // It ends with the comparison.
        let _ = member.serve(incoming).await;
    });
    address
}

struct Both {
    real: Side,
    simulated: Side,
}

/// Where the two differ.
struct Difference {
    step: usize,
    real: String,
    simulated: String,
}

impl Both {
    async fn compare(&mut self, steps: usize, seed: u64) -> bool {
        let (begin, mut done) = (Instant::now(), 0);
        for number in 0.. {
            if done >= steps {
                break;
            }
            let history = history::random(&Dice::new(seed, number));
            if let Err(difference) = self.play(&history).await {
                println!("history {number} of seed {seed} is answered differently");
                self.explain(history, difference).await;
                return false;
            }
            done += history.len();
        }
        println!(
            "the simulated etcd and a real one gave the same {done} answers in {:.1} s",
            begin.elapsed().as_secs_f64()
        );
        true
    }

    /// Plays a history on both, from the same beginning.
    async fn play(&mut self, history: &[Step]) -> Result<(), Difference> {
        tokio::join!(self.real.begin(), self.simulated.begin());
        for (number, step) in history.iter().enumerate() {
            let (real, simulated) = tokio::join!(self.real.play(step), self.simulated.play(step));
            if real != simulated {
                return Err(Difference {
                    step: number,
                    real,
                    simulated,
                });
            }
        }
        Ok(())
    }

    /// Leaves out of a history what the difference does not need, and prints the rest.
    async fn explain(&mut self, mut history: Vec<Step>, mut difference: Difference) {
        history.truncate(difference.step + 1);
        let (mut size, mut tries) = (history.len() / 2, 0);
        while size > 0 {
            let mut at = 0;
            while at < history.len() && tries < TRIES {
                tries += 1;
                let mut shorter = history.clone();
                shorter.drain(at..(at + size).min(history.len()));
                match self.play(&shorter).await {
                    Err(found) => {
                        shorter.truncate(found.step + 1);
                        (history, difference) = (shorter, found);
                    }
                    Ok(()) => at += size,
                }
            }
            size /= 2;
        }
        for step in history {
            println!("    {step:?}");
        }
        println!("    etcd says      {}", difference.real);
        println!("    simulated says {}", difference.simulated);
    }
}
