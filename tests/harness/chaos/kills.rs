//! Kills in turn, at random moments that a seed gives. Pure.

use std::time::Duration;

use postrider_common::entropy::Entropy;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// One of the agents.
    Agent,
    /// One of the control planes.
    ControlPlane,
    /// The only member of etcd.
    Etcd,
}

impl Victim {
    /// All of them, in turn.
    pub const ALL: [Self; 3] = [Self::Agent, Self::ControlPlane, Self::Etcd];
}

/// One kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// Who.
    pub victim: Victim,
    /// Which of them, modulo how many there are.
    pub which: usize,
    /// When so many events are accepted,
    pub at: usize,
    /// and so long after that: what is under way just then is nothing special.
    pub after: Duration,
}

/// How long after that at most.
const AFTER: Duration = Duration::from_millis(500);

/// So many kills among so many events: each victim in turn, each somewhere in its own part of the course.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "events are far below 2^52"
)]
pub fn plan(kills: usize, events: usize, entropy: &dyn Entropy) -> Vec<Kill> {
    let part = events as f64 / kills.max(1) as f64;
    let victims = Victim::ALL.into_iter().cycle();
    let one = |(number, victim): (usize, Victim)| Kill {
        victim,
        which: entropy.next_u64() as usize,
        at: ((number as f64 + entropy.fraction()) * part) as usize,
        after: AFTER.mul_f64(entropy.fraction()),
    };
    (0..kills).zip(victims).map(one).collect()
}

#[cfg(test)]
mod tests {
    use postrider_common::entropy::SystemEntropy;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_kills_in_turn_each_in_its_part() {
        let kills = plan(30, 3000, &SystemEntropy::seeded(7));
        assert_eq!(kills, plan(30, 3000, &SystemEntropy::seeded(7)));
        assert_ne!(kills, plan(30, 3000, &SystemEntropy::seeded(8)));
        for (number, kill) in kills.iter().enumerate() {
            assert_eq!((kill.at / 100, kill.victim), (number, Victim::ALL[number % 3]));
        }
    }
}
