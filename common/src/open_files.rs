//! How many files, and with them sockets, this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as this process may (`ulimit -Hn`), and says how far. The one it is started with is often 1,024, for the sake of programs that use `select`.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // None is without limit. That it may not be raised is no reason not to start.
    let reached = setrlimit(Resource::Nofile, raised).map_or(current, |()| maximum);
    reached.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let before = getrlimit(Resource::Nofile);
        let low = before.maximum.map_or(1024, |maximum| maximum.min(1024));
        let lowered = Rlimit {
            current: Some(low),
            ..before
        };
        setrlimit(Resource::Nofile, lowered).unwrap();
        assert_eq!(raise_limit(), before.maximum.unwrap_or(u64::MAX));
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }
}
