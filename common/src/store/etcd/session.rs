//! The token that stands for the user in all that etcd is asked, and how another is got when it is over.
//!
//! A token is over when it has not been used, or was given, `--auth-token-ttl` ago, when the member that knows it was restarted, when the password or the
//! rights were changed. Etcd says so before it does anything, so whoever is told asks for another token and makes the call again. All members take the same one:
//! whoever is told first asks for the next, the others wait for it.
//!
//! A password costs etcd some 60 ms of a processor each time. So it is asked once a second at most, and while it refuses, more and more rarely until
//! the file holds another password. Who would have to wait beyond its deadline is told why the last one was refused. The token that is over is kept
//! meanwhile: some releases of etcd prolong leases whatever the token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use etcd_client::{AuthClient, Channel};
use http::{HeaderValue, Request};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tower::{BoxError, ServiceExt as _};

use super::access::{Access, Credentials, PasswordError};
use super::classify::{Failure, Kind, Sent, classify, code};
use super::member::{failure, late};
use super::trouble::{Task, Trouble, Troubles};

/// Where etcd looks for the token.
const TOKEN: &str = "token";

/// How often etcd is asked for a token at most.
const EVERY: Duration = Duration::from_secs(1);

/// How often it is asked at least while it refuses a password: it may have been mended in etcd.
const SELDOM: Duration = Duration::from_secs(8);

/// How long one member may take to give a token: with that another has time to give one within a call's deadline.
const ANSWER: Duration = Duration::from_secs(1);

/// A token, once there is one.
pub(super) type Token = Option<Arc<HeaderValue>>;

/// One program's access to etcd.
pub(super) struct Session {
    access: Access,
    token: Arc<ArcSwapOption<HeaderValue>>,
    asking: Mutex<Asking>,
    /// How often etcd was asked.
    asked: AtomicU64,
    /// Why it was not given a token when it was asked last.
    refusal: ArcSwapOption<Failure>,
    troubles: Troubles,
}

/// What whoever asks for a token must know.
struct Asking {
    last: Option<Instant>,
    /// The password that was refused last.
    refused: Option<SecretString>,
    /// How long it is not tried again.
    pause: Duration,
}

impl Session {
    pub(super) fn new(access: Access) -> Self {
        let user = access.credentials.as_ref();
        let troubles = Troubles::of(user.map(|credentials| credentials.user.clone()));
        Self {
            access,
            token: Arc::default(),
            asking: Mutex::new(Asking {
                last: None,
                refused: None,
                pause: EVERY,
            }),
            asked: AtomicU64::new(0),
            refusal: ArcSwapOption::empty(),
            troubles,
        }
    }

    /// Whether there is a user that could get a token.
    pub(super) const fn has_user(&self) -> bool {
        self.access.credentials.is_some()
    }

    /// The channel that attaches the token of the moment to each request, if there is a user.
    pub(super) fn attach(&self, channel: tonic::transport::Channel) -> Channel {
        if !self.has_user() {
            return Channel::Tonic(channel);
        }
        let token = Arc::clone(&self.token);
        let attached = channel.map_request(move |mut request: Request<tonic::body::Body>| {
            if let Some(token) = token.load_full() {
                request.headers_mut().insert(TOKEN, HeaderValue::clone(&token));
            }
            request
        });
        Channel::Custom(tower::util::BoxCloneSyncService::new(attached.map_err(BoxError::from)))
    }

    /// The token that goes with what is asked now; the first one is asked for. None where there is no user.
    ///
    /// # Errors
    /// As [`Session::renew`].
    pub(super) async fn token(&self, auth: &AuthClient, until: Instant) -> Result<Token, Failure> {
        let token = self.token.load_full();
        if token.is_some() || !self.has_user() {
            return Ok(token);
        }
        self.renew(auth, &token, until).await?;
        Ok(self.token.load_full())
    }

    /// Gets another token than the one that is over, unless somebody has.
    ///
    /// # Errors
    /// Why there is none: certainly nothing else was asked of etcd.
    pub(super) async fn renew(&self, auth: &AuthClient, over: &Token, until: Instant) -> Result<(), Failure> {
        let Some(credentials) = &self.access.credentials else {
            return Ok(());
        };
        let asked = self.asked.load(Ordering::SeqCst);
        match timeout_at(until, self.renew_once(credentials, auth, over, asked)).await {
            Ok(renewed) => renewed,
            Err(_) => Err(self.refusal().unwrap_or_else(|| unsent("no token was given in time"))),
        }
    }

    async fn renew_once(
        &self,
        credentials: &Credentials,
        auth: &AuthClient,
        over: &Token,
        asked: u64,
    ) -> Result<(), Failure> {
        let mut asking = self.asking.lock().await;
        if self.token.load_full().map(|token| Arc::as_ptr(&token)) != over.as_ref().map(Arc::as_ptr) {
            return Ok(());
        }
        // Whoever waited while somebody else asked shares what came of it.
        if self.asked.load(Ordering::SeqCst) != asked
            && let Some(refusal) = self.refusal()
        {
            return Err(refusal);
        }
        let password = asking.turn(credentials).await;
        asking.last = Some(Instant::now());
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = match &password {
            Ok(password) => ask(auth, credentials, password).await,
            Err(error) => {
                self.troubles.are(Trouble::PasswordUnread, &error.to_string());
                Err(unsent(&error.to_string()))
            }
        };
        self.take(answer, password.ok(), &mut asking)
    }

    fn take(
        &self,
        answer: Result<HeaderValue, Failure>,
        password: Option<SecretString>,
        asking: &mut Asking,
    ) -> Result<(), Failure> {
        let outcomes = &self.access.authentications;
        let failure = match answer {
            Ok(token) => {
                outcomes.granted.fetch_add(1, Ordering::Relaxed);
                self.token.store(Some(Arc::new(token)));
                self.refusal.store(None);
                asking.refused = None;
                self.troubles.let_in();
                return Ok(());
            }
            Err(failure) => failure,
        };
        let failure = match classify(&failure) {
            Kind::NotSent | Kind::MaybeApplied => {
                if password.is_some() && failure.sent == Sent::No {
                    // Nobody was asked.
                    asking.last = None;
                } else {
                    outcomes.failed.fetch_add(1, Ordering::Relaxed);
                }
                // Perhaps there is a token now that nobody knows; what it was wanted for was not asked.
                Failure {
                    sent: Sent::No,
                    ..failure
                }
            }
            Kind::Full
            | Kind::LeaseGone
            | Kind::Compacted
            | Kind::AnswerTooLarge
            | Kind::Invalid
            | Kind::Denied
            | Kind::TokenOver
            | Kind::LoginRefused
            | Kind::NotPermitted => {
                outcomes.refused.fetch_add(1, Ordering::Relaxed);
                self.troubles.are(Trouble::LoginRefused, &failure.message);
                asking.refuse(password);
                failure
            }
        };
        self.refusal.store(Some(Arc::new(failure.clone())));
        Err(failure)
    }

    fn refusal(&self) -> Option<Failure> {
        self.refusal.load_full().map(|refusal| Failure::clone(&refusal))
    }

    /// Notes what came of a call, so that people are told once what is wrong.
    pub(super) fn note<T>(&self, outcome: &Result<T, Failure>) {
        let Err(failure) = outcome else {
            return self.troubles.may_be_over();
        };
        match classify(failure) {
            Kind::TokenOver if !self.has_user() => self.troubles.are(Trouble::NoUser, &failure.message),
            Kind::LoginRefused => self.troubles.are(Trouble::LoginRefused, &failure.message),
            Kind::NotPermitted => self.troubles.are(Trouble::NotPermitted, &failure.message),
            Kind::NotSent
            | Kind::MaybeApplied
            | Kind::Full
            | Kind::LeaseGone
            | Kind::Compacted
            | Kind::AnswerTooLarge
            | Kind::Invalid
            | Kind::TokenOver
            | Kind::Denied => {}
        }
    }

    /// Notes what came of a task that some releases of etcd let only root do.
    pub(super) fn note_task<T>(&self, task: Task, outcome: &Result<T, Failure>) {
        if let Err(failure) = outcome
            && classify(failure) == Kind::NotPermitted
        {
            self.troubles.only_for_root(task, &failure.message);
        }
    }
}

impl Asking {
    /// Waits until etcd may be asked, and gives the password.
    async fn turn(&self, credentials: &Credentials) -> Result<SecretString, PasswordError> {
        loop {
            let password = credentials.password().await;
            let now = Instant::now();
            let from = self
                .last
                .map_or(now, |last| last + self.pause_of(password.as_ref().ok()));
            if from <= now {
                return password;
            }
            // The file is looked at again meanwhile.
            sleep_until(from.min(now + EVERY)).await;
        }
    }

    fn pause_of(&self, password: Option<&SecretString>) -> Duration {
        if password.is_some() && is_same(password, self.refused.as_ref()) {
            self.pause
        } else {
            EVERY
        }
    }

    fn refuse(&mut self, password: Option<SecretString>) {
        self.pause = if is_same(password.as_ref(), self.refused.as_ref()) {
            (self.pause * 2).min(SELDOM)
        } else {
            EVERY
        };
        self.refused = password;
    }
}

fn is_same(one: Option<&SecretString>, other: Option<&SecretString>) -> bool {
    one.map(|one| one.expose_secret()) == other.map(|other| other.expose_secret())
}

async fn ask(auth: &AuthClient, credentials: &Credentials, password: &SecretString) -> Result<HeaderValue, Failure> {
    let mut auth = auth.clone();
    let asked = auth.authenticate(credentials.user.clone(), password.expose_secret().to_owned());
    let answer = timeout(ANSWER, asked).await.map_err(|_| late())?.map_err(failure)?;
    let mut token = HeaderValue::from_str(answer.token()).map_err(|_| unsent("the token is no text"))?;
    token.set_sensitive(true);
    Ok(token)
}

fn unsent(why: &str) -> Failure {
    Failure {
        code: code::UNAUTHENTICATED,
        message: why.to_owned(),
        sent: Sent::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_password_that_is_refused_is_tried_more_and_more_rarely_and_another_one_soon() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials {
            user: "u".to_owned(),
            password_file: folder.path().join("password"),
        };
        std::fs::write(&credentials.password_file, "wrong").unwrap();
        let mut asking = Asking {
            last: None,
            refused: None,
            pause: EVERY,
        };
        let mut pauses = Vec::new();
        for number in 0..7 {
            if number == 6 {
                std::fs::write(&credentials.password_file, "another").unwrap();
            }
            let begun = Instant::now();
            let password = asking.turn(&credentials).await.unwrap();
            pauses.push(begun.elapsed().as_secs());
            asking.last = Some(Instant::now());
            asking.refuse(Some(password));
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 8, 1]);
    }
}
