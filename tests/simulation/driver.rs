//! Who publishes, administers and looks, through the control planes' own API.

use std::time::Duration;

use futures_util::future::join_all;
use postrider_proto::v1::{CreateAccountRequest, CreateWebhookRequest, Event, PublishRequest, PublishResponse};
use postrider_tests::client::{Client, may_be_sent_again, request_id};
use postrider_tests::wait::simulated;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::forms::{ACCOUNT, form, name, sent, shard_of};
use crate::net::{self, elapsed};
use crate::plan::{Dice, Host, Order, Plan};
use crate::world::{Life, Published, World};

/// Pause before a call is made again.
const PAUSE: Duration = Duration::from_millis(150);

/// How long a call is made again and again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does all that a plan says; what goes wrong is noted as a failure.
pub(crate) async fn drive(plan: &Plan, world: &World) {
    let driver = Driver {
        plan,
        world,
        clients: (0..plan.controls)
            .map(|number| Client::over(net::channel(Host::Control(number).address())))
            .collect(),
    };
    if let Err(why) = driver.run().await {
        world.seen().failures.push(why);
    }
}

/// Who does it.
pub(crate) struct Driver<'a> {
    /// What is to be done.
    pub(crate) plan: &'a Plan,
    /// What everybody shares.
    pub(crate) world: &'a World,
    /// The control planes.
    pub(crate) clients: Vec<Client>,
}

impl Driver<'_> {
    async fn run(&self) -> Result<(), String> {
        self.set_up().await?;
        self.world.settle();
        let begin = elapsed();
        let publishing = join_all((0..self.plan.publishers).map(|number| self.publish(number)));
        let acting = join_all(self.plan.acts.iter().map(|(at, act)| self.act(begin + *at, *act)));
        let (published, acted, audited) = tokio::join!(publishing, acting, self.audit());
        published
            .into_iter()
            .chain(acted)
            .chain([audited])
            .collect::<Result<Vec<()>, String>>()?;
        self.publish_last().await?;
        self.calm().await?;
        self.dump().await
    }

    /// Makes a call at one control plane after the other until one answers.
    pub(crate) async fn call<T, F>(&self, what: &str, first: usize, call: impl Fn(Client) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<T, Status>>,
    {
        match self.attempt(what, first, call).await? {
            Ok(value) => Ok(value),
            Err(status) => Err(format!("{what}: {status:?}")),
        }
    }

    /// As `call`, and a refusal is an answer too.
    pub(crate) async fn attempt<T, F>(
        &self,
        what: &str,
        first: usize,
        call: impl Fn(Client) -> F,
    ) -> Result<Result<T, Status>, String>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let end = elapsed() + PATIENCE;
        for turn in first.. {
            let client = self
                .clients
                .get(turn % self.clients.len())
                .cloned()
                .ok_or("no control plane")?;
            match call(client).await {
                Err(status) if (may_be_sent_again(&status) || is_full(&status)) && !is_stored(&status) => {
                    if elapsed() > end {
                        return Err(format!("{what}: no answer in {PATIENCE:?}, at last {status:?}"));
                    }
                    simulated(PAUSE).await;
                }
                // Answers of the client's own making for a connection that broke.
                Err(status) if status.code() == Code::Internal && status.message().contains("h2 protocol error") => {
                    simulated(PAUSE).await;
                }
                answer => return Ok(answer),
            }
        }
        Err(format!("{what}: no turn left"))
    }

    async fn set_up(&self) -> Result<(), String> {
        let account = CreateAccountRequest {
            account_id: ACCOUNT.to_owned(),
            request_id: request_id(1),
            account: Some(postrider_proto::v1::Account {
                max_webhooks: 20,
                ..postrider_proto::v1::Account::default()
            }),
            ..CreateAccountRequest::default()
        };
        self.call("creating the account", 0, |client| {
            let account = account.clone();
            async move { client.accounts().create_account(account).await }
        })
        .await?;
        for (number, hook) in self.plan.hooks.iter().enumerate() {
            let create = CreateWebhookRequest {
                parent: format!("accounts/{ACCOUNT}"),
                webhook_id: format!("w{number}"),
                webhook: Some(form(number, hook, 0, "")),
                request_id: request_id(2 + number as u64),
                validate_only: false,
            };
            self.call("creating a webhook", 0, |client| {
                let create = create.clone();
                async move { client.webhooks().create_webhook(create).await }
            })
            .await?;
            self.world.seen().shards.push(shard_of(number, self.plan.shards)?);
            self.world.seen().lives.push(vec![Life::default()]);
            if hook.signed {
                let client = self.clients.first().ok_or("no control plane")?;
                let secret = client.signing_secret(&name(number)).await;
                self.world.seen().secrets.insert((number, 0), vec![secret]);
            }
        }
        // Everywhere, so that it is known what each event is accepted for.
        for (number, client) in self.clients.iter().enumerate() {
            let wanted = i32::try_from(self.plan.hooks.len()).unwrap_or(0);
            let end = elapsed() + PATIENCE;
            while self.probe(client).await != Some(wanted) {
                if elapsed() > end {
                    return Err(format!("control plane {number} does not know the webhooks"));
                }
                simulated(PAUSE).await;
            }
        }
        Ok(())
    }

    /// How many webhooks an event that all of them want would match. Publishes nothing.
    async fn probe(&self, client: &Client) -> Option<i32> {
        let probe = Published {
            key: "probe".to_owned(),
            ..Published::default()
        };
        let request = PublishRequest {
            parent: format!("accounts/{ACCOUNT}"),
            events: vec![sent(&probe)],
            validate_only: true,
            ..PublishRequest::default()
        };
        let answer = client.publishing().publish(request).await.ok()?.into_inner();
        answer.events.first().map(|event| event.matched_webhooks)
    }

    /// Publishes one request after the other.
    async fn publish(&self, publisher: usize) -> Result<(), String> {
        let dice = Dice::new(self.plan.seed, 100 + publisher as u64);
        let pace = u64::try_from(self.plan.storm.as_millis()).unwrap_or(1) / self.plan.requests as u64;
        for request in 0..self.plan.requests {
            self.publish_request(&dice, publisher, request).await?;
            simulated(dice.millis(0, pace * 2)).await;
        }
        Ok(())
    }

    /// Publishes once more when there is no trouble any more and everybody knows the webhooks that came into being in it.
    async fn publish_last(&self) -> Result<(), String> {
        let known = self.world.seen().lives.iter().flatten().map(|life| life.known).max();
        let Some(known) = known.filter(|known| *known > Duration::ZERO) else {
            return Ok(());
        };
        simulated(known.saturating_sub(elapsed())).await;
        let dice = Dice::new(self.plan.seed, 99);
        self.publish_request(&dice, 0, self.plan.requests).await
    }

    /// Publishes one request: until it is accepted, or, now and then, once.
    async fn publish_request(&self, dice: &Dice, publisher: usize, request: usize) -> Result<(), String> {
        // An event that has expired blocks an order until somebody cancels it.
        let may_expire = self
            .plan
            .hooks
            .iter()
            .all(|hook| hook.order == Order::None || hook.dead_letters);
        let event = |number| Published {
            id: format!("e{}", publisher * 10_000 + request * 10 + number + 1),
            publisher,
            number,
            key: if dice.chance(0.15) {
                String::new()
            } else {
                format!("k{publisher}-{}", dice.below(3))
            },
            not_before: dice.chance(0.05).then(|| elapsed() + dice.millis(1_000, 4_000)),
            expires: (may_expire && dice.chance(0.05)).then(|| elapsed() + dice.millis(6_000, 9_000)),
            asked: elapsed(),
            told: None,
        };
        let published: Vec<Published> = (0..=dice.below(4)).map(event).collect();
        let events: Vec<Event> = published.iter().map(sent).collect();
        let first = dice.below(self.clients.len());
        if dice.chance(0.15) {
            return self.publish_once(&events, first, published).await;
        }
        let id = request_id(10_000 + (publisher * 1_000 + request) as u64);
        let Some(accepted) = self.publish_one(&events, &id, first).await? else {
            self.world.seen().doubtful.extend(published);
            return Ok(());
        };
        self.world.note(format_args!(
            "accepted {:?}",
            published.iter().map(|one| &one.id).collect::<Vec<_>>()
        ));
        self.accepted(published, &accepted)?;
        if dice.chance(0.2) {
            let again = self.publish_one(&events, &id, first + 1).await?;
            if let Some(again) = again.filter(|again| !again.duplicate || again.events != accepted.events) {
                return Err(format!("a repeated request is answered {again:?}, not {accepted:?}"));
            }
        }
        Ok(())
    }

    /// Publishes without a request id: what is not answered may be accepted or not; what is refused is not.
    async fn publish_once(&self, events: &[Event], first: usize, published: Vec<Published>) -> Result<(), String> {
        let client = self.clients.get(first).cloned().ok_or("no control plane")?;
        match client.try_publish(ACCOUNT, events.to_vec(), "").await {
            Ok(accepted) => self.accepted(published, &accepted)?,
            Err(status) if is_full(&status) => {}
            Err(status) if may_be_sent_again(&status) || status.message().contains("h2 protocol error") => {
                self.world.seen().doubtful.extend(published);
            }
            Err(status) => return Err(format!("publishing: {status:?}")),
        }
        Ok(())
    }

    /// Publishes under a request id until it is answered; nothing if that took longer than the events may wait: an earlier try may have been accepted.
    async fn publish_one(&self, events: &[Event], id: &str, first: usize) -> Result<Option<PublishResponse>, String> {
        let answer = self
            .attempt("publishing", first, |client| {
                let events = events.to_vec();
                async move { client.try_publish(ACCOUNT, events, id).await }
            })
            .await?;
        match answer {
            Ok(accepted) => Ok(Some(accepted)),
            Err(status) if status.message().contains("must be in the future") => Ok(None),
            Err(status) => Err(format!("publishing: {status:?}")),
        }
    }

    /// Notes what a publisher was told.
    fn accepted(&self, published: Vec<Published>, accepted: &PublishResponse) -> Result<(), String> {
        if accepted.events.len() != published.len() {
            return Err(format!("{} events were accepted as {accepted:?}", published.len()));
        }
        let told = published.into_iter().zip(&accepted.events).map(|(event, told)| {
            let webhooks = usize::try_from(told.matched_webhooks).unwrap_or(0);
            let told = Some((elapsed(), webhooks));
            Published { told, ..event }
        });
        self.world.seen().published.extend(told);
        Ok(())
    }
}

/// Whether a call was refused because the store is full, and the caller told when to try again.
pub(crate) fn is_full(status: &Status) -> bool {
    let details = status.get_error_details();
    let said = details.error_info().is_some_and(|info| info.reason == "STORE_FULL");
    said && status.code() == Code::ResourceExhausted && details.retry_info().is_some()
}

/// Whether a command is durable, though it is not carried out yet.
pub(crate) fn is_stored(status: &Status) -> bool {
    status.message().starts_with("the command is stored")
}
