//! Access tokens by client credentials: got through the same guarded way out as deliveries, kept until they are about to expire.
//!
//! One request for a token is under way for a webhook at a time; whoever needs one meanwhile waits for it, and shares its failure.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::token::{self, Request};
use crate::attempt::Reason;
use crate::transport::{Failure, Message, Target, Trace, Transport};

/// The longest answer of a token endpoint, in bytes: several times what the longest usable token takes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// How soon after a refused token was dropped another one is: a receiver that answers 401 to everything costs one token a minute.
const REFUSAL_PAUSE: Duration = Duration::from_secs(60);

/// The tokens of one webhook.
pub struct Tokens {
    request: Request,
    target: Target,
    /// Held while a token is asked for.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Token>>,
    /// When a token was last asked for in vain, and why.
    failed: Option<(Instant, Failure)>,
    /// When a token was last dropped because the receiver refused it.
    dropped: Option<Instant>,
}

/// An access token.
pub struct Token {
    /// The value of `authorization`.
    pub(super) value: Zeroizing<String>,
    until: Instant,
}

/// Notes why there is no token.
fn tell(trace: &mut Trace, why: impl Display) {
    tracing::debug!(%why, "no access token");
    trace.explain(why);
    if let Some(close_up) = &mut trace.close_up {
        close_up.token.clone_from(&trace.detail);
    }
}

impl Tokens {
    pub(super) fn new(request: Request, target: Target) -> Self {
        Self {
            request,
            target,
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// The token to send now.
    ///
    /// # Errors
    /// [`Failure::Receiver`] with [`Reason::Token`] if none can be had until `deadline`.
    ///
    /// Nothing is traced but why there is none: what is traced are the requests to the receiver.
    pub(super) async fn get(
        &self,
        transport: &Transport,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Arc<Token>, Failure> {
        let asked = Instant::now();
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let Ok(_turn) = timeout_at(deadline, self.turn.lock()).await else {
            trace.explain("the time was up: another request waited for the token endpoint");
            return Err(Failure::Receiver(Reason::Token));
        };
        if let Some(token) = self.current() {
            return Ok(token);
        }
        if let Some((_, failure)) = self.lock().failed.filter(|(at, _)| *at >= asked) {
            trace.explain("another request that waited for the token endpoint got no token");
            return Err(failure);
        }
        let token = self.fetch(transport, deadline, trace).await;
        let mut state = self.lock();
        match &token {
            Ok(token) => state.current = Some(Arc::clone(token)),
            Err(failure) => state.failed = Some((Instant::now(), *failure)),
        }
        token
    }

    async fn fetch(&self, transport: &Transport, deadline: Instant, trace: &mut Trace) -> Result<Arc<Token>, Failure> {
        let start = Instant::now();
        let Request { headers, body, .. } = self.request.clone();
        let mut asking = trace.beside();
        // Not counted with the requests under way: there is at most one beside those of its webhook, which are.
        let answer = transport
            .fetch(
                &self.target,
                Message { headers, body },
                MAX_ANSWER_BYTES,
                deadline,
                &mut asking,
            )
            .await;
        let (status, body) = answer.map_err(|failure| match failure {
            Failure::Receiver(reason) => {
                let (reason, detail) = (reason.as_str(), asking.detail.as_deref().unwrap_or_default());
                tell(
                    trace,
                    format_args!("the token endpoint gave no answer: {reason}: {detail}"),
                );
                Failure::Receiver(Reason::Token)
            }
            Failure::Local(why) => Failure::Local(why),
        })?;
        let grant = token::read(status, &body).map_err(|refused| {
            tell(trace, refused);
            Failure::Receiver(Reason::Token)
        })?;
        if let Some(close_up) = &mut trace.close_up {
            let (took, usable) = (start.elapsed().as_millis(), grant.usable.as_secs());
            close_up.token = Some(format!(
                "the token endpoint granted a token after {took} ms, to be used for {usable} s"
            ));
        }
        Ok(Arc::new(Token {
            value: grant.value,
            until: start + grant.usable,
        }))
    }

    /// The client's secret.
    pub(super) fn secret(&self) -> Zeroizing<String> {
        self.request.secret.clone()
    }

    /// Notes that the receiver refused a token: it is not used again, unless another was dropped lately.
    pub(super) fn refused(&self, token: &Arc<Token>) {
        let now = Instant::now();
        let mut state = self.lock();
        // Of many requests that were refused with the same token, the first one drops it.
        let is_current = state
            .current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, token));
        if is_current && state.dropped.is_none_or(|at| now >= at + REFUSAL_PAUSE) {
            state.current = None;
            state.dropped = Some(now);
        }
    }

    fn current(&self) -> Option<Arc<Token>> {
        let state = self.lock();
        let token = state.current.as_ref().filter(|token| Instant::now() < token.until);
        token.cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
