//! What a failed call of etcd means: certainly not applied, perhaps applied, or refused, and why. Pure.
//!
//! Some errors can be told only by their text. All of that is here, once; the texts are those of etcd 3.4 to 3.6.

use crate::store::{NotApplied, ReadError, WriteError};

/// The gRPC codes that matter here.
pub(super) mod code {
    pub(in crate::store::etcd) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(in crate::store::etcd) const DEADLINE_EXCEEDED: i32 = 4;
    pub(in crate::store::etcd) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(in crate::store::etcd) const UNAUTHENTICATED: i32 = 16;
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The gRPC code.
    pub(super) code: i32,
    /// What the server or the client said.
    pub(super) message: String,
    /// Whether the request can have left this machine.
    pub(super) sent: Sent,
}

/// Whether a request can have left this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// There was no connection to send it on.
    No,
    /// It was sent, or may have been.
    Maybe,
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Certainly not applied; another member may be tried.
    NotSent,
    /// Nothing is known; another member may be asked, but a write may not be sent again.
    MaybeApplied,
    /// The NOSPACE alarm is raised.
    Full,
    /// The lease does not exist.
    LeaseGone,
    /// The revision is no longer kept.
    Compacted,
    /// The answer is larger than this client decodes.
    AnswerTooLarge,
    /// The request is wrong in itself.
    Invalid,
    /// The server does not want it now; nothing was applied.
    Denied,
    /// The server does not know who asks: the token is over, or there is none. Nothing was applied.
    TokenOver,
    /// The user and the password are not taken: they are wrong, or there is no authentication. Nothing was applied.
    LoginRefused,
    /// The user may not. Nothing was applied.
    NotPermitted,
}

/// Tells what a failure means. What is not known for certain is [`Kind::MaybeApplied`].
pub(super) fn classify(failure: &Failure) -> Kind {
    let says = |text: &str| failure.message.contains(text);
    if failure.sent == Sent::No {
        return Kind::NotSent;
    }
    match failure.code {
        // Refused on arrival, before anything was proposed.
        code::UNAVAILABLE if says("etcdserver: no leader") => Kind::NotSent,
        code::INVALID_ARGUMENT if says("authentication failed") => Kind::LoginRefused,
        code::FAILED_PRECONDITION if says("authentication is not enabled") => Kind::LoginRefused,
        // Maintenance has no codes, and a watch that is refused has none either.
        code::INVALID_ARGUMENT | code::FAILED_PRECONDITION | code::UNKNOWN
            if says("user name is empty") || says("auth store is old") =>
        {
            Kind::TokenOver
        }
        code::UNKNOWN if says("invalid auth token") => Kind::TokenOver,
        code::UNKNOWN if says("permission denied") => Kind::NotPermitted,
        code::INVALID_ARGUMENT => Kind::Invalid,
        code::RESOURCE_EXHAUSTED if says("database space exceeded") => Kind::Full,
        code::RESOURCE_EXHAUSTED if says("received message larger than max") => Kind::Invalid,
        code::RESOURCE_EXHAUSTED if says("etcdserver: too many requests") => Kind::Denied,
        code::NOT_FOUND if says("lease not found") => Kind::LeaseGone,
        code::OUT_OF_RANGE if says("has been compacted") => Kind::Compacted,
        code::OUT_OF_RANGE if says("future revision") => Kind::Invalid,
        code::OUT_OF_RANGE if says("message length too large") => Kind::AnswerTooLarge,
        code::UNAUTHENTICATED => Kind::TokenOver,
        code::PERMISSION_DENIED => Kind::NotPermitted,
        _ => Kind::MaybeApplied,
    }
}

/// The error of a write.
pub(super) fn write_error(failure: Failure) -> WriteError {
    let why = failure.message.clone();
    match classify(&failure) {
        Kind::NotSent | Kind::Denied | Kind::TokenOver | Kind::LoginRefused | Kind::NotPermitted => {
            WriteError::NotApplied(NotApplied::Away(why))
        }
        Kind::Full => WriteError::NotApplied(NotApplied::Full),
        Kind::LeaseGone => WriteError::NotApplied(NotApplied::LeaseGone),
        Kind::Invalid => WriteError::NotApplied(NotApplied::Invalid(why)),
        // The last two are not said of writes; if they were, the write would have been applied.
        Kind::MaybeApplied | Kind::Compacted | Kind::AnswerTooLarge => WriteError::Unknown(why),
    }
}

/// The error of a read.
pub(super) fn read_error(failure: Failure) -> ReadError {
    match classify(&failure) {
        Kind::Compacted => ReadError::Compacted,
        Kind::NotSent
        | Kind::MaybeApplied
        | Kind::Full
        | Kind::LeaseGone
        | Kind::AnswerTooLarge
        | Kind::Invalid
        | Kind::Denied
        | Kind::TokenOver
        | Kind::LoginRefused
        | Kind::NotPermitted => ReadError::Away(failure.message),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure(code: i32, message: &str) -> Failure {
        Failure {
            code,
            message: message.into(),
            sent: Sent::Maybe,
        }
    }

    #[test]
    fn what_etcd_says_is_understood() {
        let said = [
            (14, "etcdserver: request timed out", Kind::MaybeApplied),
            (
                14,
                "etcdserver: request timed out, possibly due to previous leader failure",
                Kind::MaybeApplied,
            ),
            (
                14,
                "etcdserver: request timed out, possibly due to connection lost",
                Kind::MaybeApplied,
            ),
            (14, "etcdserver: leader changed", Kind::MaybeApplied),
            (14, "etcdserver: server stopped", Kind::MaybeApplied),
            (14, "etcdserver: no leader", Kind::NotSent),
            (1, "Timeout expired", Kind::MaybeApplied),
            (
                2,
                "h2 protocol error: error reading a body from connection",
                Kind::MaybeApplied,
            ),
            (13, "h2 protocol error: broken pipe", Kind::MaybeApplied),
            (4, "no answer in time", Kind::MaybeApplied),
            (8, "etcdserver: mvcc: database space exceeded", Kind::Full),
            (
                8,
                "grpc: received message larger than max (2200000 vs. 2097152)",
                Kind::Invalid,
            ),
            (8, "etcdserver: too many requests", Kind::Denied),
            (3, "etcdserver: too many operations in txn request", Kind::Invalid),
            (3, "etcdserver: duplicate key given in txn request", Kind::Invalid),
            (3, "etcdserver: request is too large", Kind::Invalid),
            (5, "etcdserver: requested lease not found", Kind::LeaseGone),
            (
                11,
                "etcdserver: mvcc: required revision has been compacted",
                Kind::Compacted,
            ),
            (
                11,
                "etcdserver: mvcc: required revision is a future revision",
                Kind::Invalid,
            ),
            (
                11,
                "Error, decoded message length too large: found 5000142 bytes, the limit is: 4194304 bytes",
                Kind::AnswerTooLarge,
            ),
            (16, "etcdserver: invalid auth token", Kind::TokenOver),
            (2, "auth: invalid auth token", Kind::TokenOver),
            (3, "etcdserver: user name is empty", Kind::TokenOver),
            (2, "auth: user name is empty", Kind::TokenOver),
            (3, "etcdserver: revision of auth store is old", Kind::TokenOver),
            (
                2,
                "watch error: rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
                Kind::TokenOver,
            ),
            (
                2,
                "watch error: rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
                Kind::TokenOver,
            ),
            (
                3,
                "etcdserver: authentication failed, invalid user ID or password",
                Kind::LoginRefused,
            ),
            (9, "etcdserver: authentication is not enabled", Kind::LoginRefused),
            (7, "etcdserver: permission denied", Kind::NotPermitted),
            (2, "auth: permission denied", Kind::NotPermitted),
            (
                2,
                "watch error: rpc error: code = PermissionDenied desc = etcdserver: permission denied",
                Kind::NotPermitted,
            ),
        ];
        for (code, message, kind) in said {
            assert_eq!(classify(&failure(code, message)), kind, "{code} {message}");
        }
    }

    #[test]
    fn a_write_without_a_connection_was_certainly_not_applied() {
        let unsent = Failure {
            sent: Sent::No,
            ..failure(14, "tcp connect error")
        };
        assert_eq!(
            write_error(unsent),
            WriteError::NotApplied(NotApplied::Away("tcp connect error".into()))
        );
    }

    proptest! {
        #[test]
        fn a_write_that_may_have_been_sent_is_unknown_whatever_else_is_said(code in 0..20_i32, message in "[ -~]{0,60}") {
            let kind = classify(&failure(code, &message));
            let certain = [3, 7, 16].contains(&code);
            prop_assert_eq!(kind == Kind::MaybeApplied, !certain);
        }
    }
}
