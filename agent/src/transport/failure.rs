//! Why there was no answer, from the errors of the layers below.

use std::error::Error as _;
use std::fmt;
use std::io;

use crate::attempt::Reason;

/// Why there was no final answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is the receiver's doing, or cannot be told from it.
    Receiver(Reason),
    /// It is this machine's: a limit is reached, its name servers are away. Says which.
    Local(&'static str),
}

/// `EMFILE` and `ENFILE`: no file descriptor left, in this process or on this machine. `ENOMEM`, `ENOBUFS`: no memory for a socket. The same numbers
/// on every Linux; the standard library has no kinds for the first two.
const NO_RESOURCES: [i32; 4] = [24, 23, 12, 105];

impl Failure {
    /// A connection that could not be made.
    pub(super) fn of_dialling(error: &io::Error) -> Self {
        let ours = error.kind() == io::ErrorKind::AddrNotAvailable
            || error.raw_os_error().is_some_and(|code| NO_RESOURCES.contains(&code));
        if ours {
            Self::Local("no file descriptors, memory or ports left for a connection")
        } else {
            Self::Receiver(Reason::Connect)
        }
    }

    /// A request that was sent, at least in part.
    pub(super) fn of_exchange(error: &hyper::Error) -> Self {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(h2) = cause.downcast_ref::<h2::Error>() {
                return Self::Receiver(if h2.is_io() || h2.is_remote() {
                    Reason::Disconnected
                } else {
                    Reason::Protocol
                });
            }
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                let tls = io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
                return Self::Receiver(if tls { Reason::Tls } else { Reason::Disconnected });
            }
            source = cause.source();
        }
        let ended = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
        Self::Receiver(if ended { Reason::Disconnected } else { Reason::Protocol })
    }
}

/// What an error says, and what those that it comes from say.
pub(super) struct InFull<'a>(pub(super) &'a dyn std::error::Error);

impl fmt::Display for InFull<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(formatter, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

/// Whether an HTTP/2 receiver said that it did not process the request: it refused the stream (RFC 9113, section 8.7), or went away in peace and named
/// an earlier stream as the last one it would serve (section 6.8).
pub(super) fn is_refused(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    cause.is_some_and(|h2| {
        h2.is_remote()
            && ((h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM))
                || (h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR)))
    })
}
