//! Traps: a receiver that kills whoever sends to it, at a chosen point of an attempt.

use std::sync::{Mutex, PoisonError};

use postrider_common::task::Group;
use tokio::process::Command;
use tokio::sync::oneshot;

use super::checker::{Arrival, Micros};

/// A point of an attempt, as its receiver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The request was read, and is not answered.
    Read,
    /// The answer goes out.
    Answered,
}

/// What sprang a trap.
#[derive(Debug, Clone, Copy)]
pub struct Sprung {
    /// The request.
    pub arrival: Arrival,
    /// When the process was killed.
    pub at: Micros,
}

/// The trap that is set, if there is one.
#[derive(Default)]
pub(super) struct Traps {
    set: Mutex<Option<Trap>>,
    /// Where processes are killed beside the answers.
    pub(super) killing: Group,
}

struct Trap {
    point: Point,
    webhooks: Vec<usize>,
    pid: u32,
    tell: oneshot::Sender<Sprung>,
}

/// A trap that was sprung by a request.
pub(super) struct Kill {
    trap: Trap,
    arrival: Arrival,
}

impl Traps {
    /// Sets a trap for the requests of a process, in the place of the one before.
    pub(super) fn set(&self, point: Point, webhooks: &[usize], pid: u32) -> oneshot::Receiver<Sprung> {
        let (tell, sprung) = oneshot::channel();
        let trap = Trap {
            point,
            webhooks: webhooks.to_vec(),
            pid,
            tell,
        };
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = Some(trap);
        sprung
    }

    /// The trap, if this request springs it. It springs once.
    pub(super) fn spring(&self, point: Point, arrival: Option<Arrival>) -> Option<Kill> {
        let arrival = arrival.filter(|arrival| arrival.taken)?;
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let trap = set.take_if(|trap| trap.point == point && trap.webhooks.contains(&usize::from(arrival.webhook)))?;
        Some(Kill { trap, arrival })
    }
}

impl Kill {
    /// Kills the process, and tells that it was killed at `at`.
    pub(super) async fn kill(self, at: Micros) {
        let pid = self.trap.pid.to_string();
        let killed = Command::new("kill").args(["-KILL", &pid]).status().await;
        assert!(killed.is_ok_and(|status| status.success()), "{pid} cannot be killed");
        let arrival = self.arrival;
        // Whoever set it may have given up.
        let _ = self.trap.tell.send(Sprung { arrival, at });
    }
}
