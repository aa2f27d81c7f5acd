//! Known bugs that can be switched on, one at a time for a thread, to see whether the simulation finds them. Without the feature `planted`
//! none can be, and nothing of this is left in a program.

/// A known bug. Its name says what is then done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Switches a bug on for this thread, and every other one off.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether a bug is switched on.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether a bug is switched on: none ever is.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
