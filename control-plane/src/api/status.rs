//! Errors of the API: what went wrong, with the details that a caller can act on, as a `tonic::Status`.
//!
//! Every status carries `google.rpc.ErrorInfo` with a stable upper-case reason and the domain `postrider`; bad input carries one
//! `BadRequest.FieldViolation` per mistake, all of them at once.

use std::collections::HashMap;
use std::time::Duration;

use postrider_common::store::{NotApplied, ReadError, WriteError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// The domain of every `ErrorInfo`.
pub(crate) const DOMAIN: &str = "postrider";

/// How long callers should wait when the store is away: a leader change of etcd takes about this long.
const STORE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long callers should wait when no agent is there: an agent that died is started again, or another one, in about the life of its lease.
const AGENT_RETRY_DELAY: Duration = Duration::from_secs(5);

/// How long callers should wait when the store is full: it takes deliveries and a compaction to make room.
const FULL_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Most bytes of paths and descriptions of the mistakes in one answer, and of its message. Clients commonly take 8 KiB of trailers in all, in
/// which the details stand in base64 and the message percent-encoded: a longer answer would reach nobody. Mistakes beyond are counted.
const MAX_DETAIL_BYTES: usize = 3 << 10;

/// See [`MAX_DETAIL_BYTES`].
const MAX_MESSAGE_BYTES: usize = 1 << 10;

/// The mistakes found in one request so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Violations(Vec<Violation>);

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Path of the field, such as `webhook.target_url` or `events[3].event_name`.
    pub(crate) field: String,
    /// Stable, upper-case.
    pub(crate) reason: &'static str,
    /// For people. Never repeats a secret.
    pub(crate) description: String,
}

impl Violations {
    /// Notes a mistake.
    pub(crate) fn add(&mut self, field: impl Into<String>, reason: &'static str, description: impl Into<String>) {
        self.0.push(Violation {
            field: field.into(),
            reason,
            description: description.into(),
        });
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value` if there are no mistakes, else all of them.
    pub(crate) fn or<T>(self, value: T) -> Result<T, Error> {
        if self.is_empty() {
            Ok(value)
        } else {
            Err(Error::Invalid(self))
        }
    }

    /// `value`, which is there if there are no mistakes, else all of them.
    pub(crate) fn with<T>(self, value: Option<T>) -> Result<T, Error> {
        match value {
            Some(value) => self.or(value),
            None if self.is_empty() => Err(Error::Bug("a value is missing without a mistake".into())),
            None => Err(Error::Invalid(self)),
        }
    }

    /// What a call that failed with `error` is answered: that a resource is missing comes after mistakes in the request itself.
    pub(crate) fn before(self, error: Error) -> Error {
        match error {
            Error::NotFound { .. } if !self.is_empty() => Error::Invalid(self),
            error => error,
        }
    }

    /// The mistakes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// The request has mistakes: INVALID_ARGUMENT.
    Invalid(Violations),
    /// There is no such resource: NOT_FOUND.
    NotFound {
        /// Such as `postrider.v1.Webhook`.
        kind: &'static str,
        /// The resource's name.
        name: String,
    },
    /// The resource exists already, or the request id was used with other content: ALREADY_EXISTS.
    Exists {
        /// Such as `postrider.v1.Webhook`.
        kind: &'static str,
        /// The resource's name.
        name: String,
        /// Stable, upper-case.
        reason: &'static str,
    },
    /// The resource has changed since the caller read it: ABORTED.
    EtagMismatch {
        /// The resource's name.
        name: String,
        /// The etag it has now.
        current: String,
    },
    /// The resource is not in a state that allows the call: FAILED_PRECONDITION.
    WrongState {
        /// Stable, upper-case.
        reason: &'static str,
        /// The resource's name.
        name: String,
        /// For people.
        description: String,
    },
    /// A quota is used up: RESOURCE_EXHAUSTED with QuotaFailure.
    Quota {
        /// Whose quota, such as `accounts/1010`.
        subject: String,
        /// Stable, upper-case.
        reason: &'static str,
        /// For people.
        description: String,
        /// When trying again may help; `None` if it takes more than time.
        retry_after: Option<Duration>,
    },
    /// Others kept changing the same thing: ABORTED, try again.
    Contended,
    /// The store is away: UNAVAILABLE, nothing was done.
    StoreAway(String),
    /// The store takes no more: RESOURCE_EXHAUSTED.
    StoreFull,
    /// It is not known whether the write was applied: UNAVAILABLE; repeat with the same request id.
    OutcomeUnknown(String),
    /// Whoever should do it is away: UNAVAILABLE.
    Unserved {
        /// Stable, upper-case.
        reason: &'static str,
        /// For people.
        description: &'static str,
    },
    /// The server is stopping: UNAVAILABLE, nothing was done.
    Stopping,
    /// The caller of a stream did not read it: ABORTED, to be resumed.
    SlowReader,
    /// A bug, or a store that something else wrote to: INTERNAL.
    Bug(String),
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        Self::StoreAway(error.to_string())
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Conflict => Self::Contended,
            WriteError::NotApplied(NotApplied::Full) => Self::StoreFull,
            WriteError::NotApplied(NotApplied::Away(why)) => Self::StoreAway(why),
            WriteError::NotApplied(NotApplied::LeaseGone) => Self::StoreAway("a lease ran out".into()),
            WriteError::NotApplied(NotApplied::Invalid(why)) => Self::Bug(why),
            WriteError::Unknown(why) => Self::OutcomeUnknown(why),
        }
    }
}

impl Error {
    /// The status code.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::EtagMismatch { .. } | Self::Contended | Self::SlowReader => Code::Aborted,
            Self::WrongState { .. } => Code::FailedPrecondition,
            Self::Quota { .. } | Self::StoreFull => Code::ResourceExhausted,
            Self::StoreAway(_) | Self::OutcomeUnknown(_) | Self::Unserved { .. } | Self::Stopping => Code::Unavailable,
            Self::Bug(_) => Code::Internal,
        }
    }

    /// The stable reason.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_REQUEST",
            Self::NotFound { .. } => "RESOURCE_NOT_FOUND",
            Self::Exists { reason, .. }
            | Self::WrongState { reason, .. }
            | Self::Quota { reason, .. }
            | Self::Unserved { reason, .. } => reason,
            Self::EtagMismatch { .. } => "ETAG_MISMATCH",
            Self::Contended => "CONTENDED",
            Self::StoreAway(_) => "STORE_AWAY",
            Self::StoreFull => "STORE_FULL",
            Self::OutcomeUnknown(_) => "OUTCOME_UNKNOWN",
            Self::Stopping => "STOPPING",
            Self::SlowReader => "SLOW_READER",
            Self::Bug(_) => "INTERNAL",
        }
    }

    /// What people read.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Invalid(violations) => {
                let mut text = String::new();
                for (index, violation) in violations.iter().enumerate() {
                    let one = format!("{}: {}", violation.field, violation.description);
                    if index > 0 && text.len() + one.len() > MAX_MESSAGE_BYTES {
                        return format!("{text}; and {} more", violations.0.len() - index);
                    }
                    text.push_str(if index > 0 { "; " } else { "" });
                    text.push_str(&one);
                }
                text
            }
            Self::NotFound { name, .. } => format!("{name} does not exist"),
            Self::Exists {
                name,
                reason: "REQUEST_ID_REUSED",
                ..
            } => {
                format!("the request id was used before with other content, for {name}")
            }
            Self::Exists {
                name,
                reason: "CREATED_AND_DELETED",
                ..
            } => {
                format!("this request id was used before: it created {name}, which has been deleted since")
            }
            Self::Exists { name, .. } => format!("{name} already exists"),
            Self::EtagMismatch { name, current } => format!("{name} has changed: its etag is now {current}"),
            Self::WrongState { name, description, .. } => format!("{name}: {description}"),
            Self::Quota { description, .. } => description.clone(),
            Self::Contended => "others were changing the same thing; nothing was done, try again".into(),
            Self::StoreAway(_) => "the store is away; nothing was done".into(),
            Self::StoreFull => "the store takes no more".into(),
            Self::OutcomeUnknown(_) => {
                "the store did not say whether it was done; repeat with the same request_id".into()
            }
            Self::Unserved { description, .. } => (*description).to_owned(),
            Self::Stopping => "this server is stopping; nothing was done".into(),
            Self::SlowReader => "the stream was not read; call again with the last token".into(),
            Self::Bug(_) => "internal error".into(),
        }
    }

    /// When trying again may help.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Quota { retry_after, .. } => *retry_after,
            Self::StoreAway(_) | Self::OutcomeUnknown(_) | Self::Stopping | Self::Contended => Some(STORE_RETRY_DELAY),
            Self::StoreFull => Some(FULL_RETRY_DELAY),
            Self::Unserved { .. } => Some(AGENT_RETRY_DELAY),
            Self::Invalid(_)
            | Self::NotFound { .. }
            | Self::Exists { .. }
            | Self::EtagMismatch { .. }
            | Self::WrongState { .. }
            | Self::SlowReader
            | Self::Bug(_) => None,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match &error {
            Error::Bug(why) => tracing::error!(%why, "internal error"),
            Error::StoreAway(why) | Error::OutcomeUnknown(why) => tracing::warn!(%why, "the store failed a call"),
            _ => {}
        }
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        match &error {
            Error::Invalid(violations) => {
                let mut size = 0;
                let mut shown = Vec::new();
                for violation in violations.iter() {
                    size += violation.field.len() + violation.reason.len() + violation.description.len() + 8;
                    if !shown.is_empty() && size > MAX_DETAIL_BYTES {
                        break;
                    }
                    shown.push(FieldViolation::new(
                        &violation.field,
                        format!("{}: {}", violation.reason, violation.description),
                    ));
                }
                metadata.insert("violations".to_owned(), violations.0.len().to_string());
                details.set_bad_request(shown);
            }
            Error::NotFound { kind, name } | Error::Exists { kind, name, .. } => {
                details.set_resource_info(*kind, name, "", error.message());
            }
            Error::EtagMismatch { current, .. } => {
                metadata.insert("current_etag".to_owned(), current.clone());
            }
            Error::WrongState {
                reason,
                name,
                description,
            } => {
                details.add_precondition_failure_violation(*reason, name, description);
            }
            Error::Quota {
                subject, description, ..
            } => {
                details.add_quota_failure_violation(subject, description);
            }
            Error::Contended
            | Error::StoreAway(_)
            | Error::StoreFull
            | Error::OutcomeUnknown(_)
            | Error::Unserved { .. }
            | Error::Stopping
            | Error::SlowReader
            | Error::Bug(_) => {}
        }
        if let Some(delay) = error.retry_after() {
            details.set_retry_info(Some(delay));
        }
        details.set_error_info(error.reason(), DOMAIN, metadata);
        Self::with_error_details(error.code(), error.message(), details)
    }
}
