//! Who publishes, administers and looks, through the control planes' own API.

use std::time::Duration;

use futures_util::future::join_all;
use postrider_proto::v1::{
    CancelDeliveryRequest, CreateAccountRequest, CreateWebhookRequest, Event, PublishResponse,
    RedriveDeadLettersRequest, RotateSigningSecretRequest, UpdateWebhookRequest, Webhook,
};
use postrider_tests::client::{Client, event, may_be_sent_again, request_id};
use postrider_tests::wait::simulated;
use tonic::{Code, Status};

use crate::forms::{ACCOUNT, form, moment, name, shard_of, url};
use crate::net::{self, elapsed};
use crate::plan::{Act, Dice, Host, Order, Plan};
use crate::world::{Published, Span, World};

/// How an answer begins that says that a command is durable, though not carried out yet.
const STORED: &str = "the command is stored";

/// Pause before a call is made again.
const PAUSE: Duration = Duration::from_millis(150);

/// How long a call is made again and again.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long an agent may work by what it knew before: until its lease is not safe any more, its last requests have ended, and its watch has caught up.
const LAG: Duration = Duration::from_secs(9);

/// The same where agents are never cut off from the store.
const GENTLE_LAG: Duration = Duration::from_secs(4);

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
                Err(status) if may_be_sent_again(&status) && !status.message().starts_with(STORED) => {
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
                webhook: Some(form(number, hook)),
                request_id: request_id(2 + number as u64),
                validate_only: false,
            };
            self.call("creating a webhook", 0, |client| {
                let create = create.clone();
                async move { client.webhooks().create_webhook(create).await }
            })
            .await?;
            self.world.seen().shards.push(shard_of(number, self.plan.shards)?);
            let secret = if hook.signed {
                let client = self.clients.first().ok_or("no control plane")?;
                vec![client.signing_secret(&name(number)).await]
            } else {
                Vec::new()
            };
            self.world.seen().secrets.push(secret);
        }
        // Everywhere, so that it is known what each event is accepted for.
        for (number, client) in self.clients.iter().enumerate() {
            let wanted = i32::try_from(self.plan.hooks.len()).unwrap_or(0);
            let end = elapsed() + PATIENCE;
            while client.matches(ACCOUNT, "E").await.ok() != Some(wanted) {
                if elapsed() > end {
                    return Err(format!("control plane {number} does not know the webhooks"));
                }
                simulated(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Publishes one request after the other, each until it is accepted.
    async fn publish(&self, publisher: usize) -> Result<(), String> {
        let dice = Dice::new(self.plan.seed, 100 + publisher as u64);
        // An event that has expired blocks an order until somebody cancels it.
        let may_expire = self
            .plan
            .hooks
            .iter()
            .all(|hook| hook.order == Order::None || hook.dead_letters);
        let pace = u64::try_from(self.plan.storm.as_millis()).unwrap_or(1) / self.plan.requests as u64;
        for request in 0..self.plan.requests {
            let count = 1 + dice.below(4);
            let mut events = Vec::with_capacity(count);
            let mut published = Vec::with_capacity(count);
            for index in 0..count {
                let one = Published {
                    id: format!("e{}", publisher * 10_000 + request * 10 + index + 1),
                    publisher,
                    key: if dice.chance(0.15) {
                        String::new()
                    } else {
                        format!("k{publisher}-{}", dice.below(3))
                    },
                    not_before: dice.chance(0.05).then(|| elapsed() + dice.millis(1_000, 4_000)),
                    expires: (may_expire && dice.chance(0.05)).then(|| elapsed() + dice.millis(6_000, 9_000)),
                };
                events.push(Event {
                    ordering_key: one.key.clone(),
                    not_before_time: one.not_before.map(moment),
                    expire_time: one.expires.map(moment),
                    ..event(&one.id, "E", format!(r#"{{"number":{index},"text":"{}"}}"#, one.id))
                });
                published.push(one);
            }
            let id = request_id(10_000 + (publisher * 1_000 + request) as u64);
            let first = dice.below(self.clients.len());
            if dice.chance(0.15) {
                self.publish_once(&events, first, published).await?;
                simulated(dice.millis(0, pace * 2)).await;
                continue;
            }
            let Some(accepted) = self.publish_one(&events, &id, first).await? else {
                self.world
                    .seen()
                    .doubtful
                    .extend(published.into_iter().map(|event| event.id));
                continue;
            };
            self.world.note(format_args!(
                "accepted {:?}",
                published.iter().map(|one| &one.id).collect::<Vec<_>>()
            ));
            self.world.seen().published.extend(published);
            if dice.chance(0.2) {
                let again = self.publish_one(&events, &id, first + 1).await?;
                if let Some(again) = again.filter(|again| !again.duplicate || again.events != accepted.events) {
                    return Err(format!("a repeated request is answered {again:?}, not {accepted:?}"));
                }
            }
            simulated(dice.millis(0, pace * 2)).await;
        }
        Ok(())
    }

    /// Publishes without a request id: what is not answered may be accepted or not.
    async fn publish_once(&self, events: &[Event], first: usize, published: Vec<Published>) -> Result<(), String> {
        let client = self.clients.get(first).cloned().ok_or("no control plane")?;
        match client.try_publish(ACCOUNT, events.to_vec(), "").await {
            Ok(_) => self.world.seen().published.extend(published),
            Err(status) if may_be_sent_again(&status) || status.message().contains("h2 protocol error") => {
                self.world
                    .seen()
                    .doubtful
                    .extend(published.into_iter().map(|event| event.id));
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
        let accepted = match answer {
            Ok(accepted) => accepted,
            Err(status) if status.message().contains("must be in the future") => return Ok(None),
            Err(status) => return Err(format!("publishing: {status:?}")),
        };
        let all = i32::try_from(self.plan.hooks.len()).unwrap_or(0);
        if accepted.events.len() != events.len() || accepted.events.iter().any(|event| event.matched_webhooks != all) {
            return Err(format!("{} events were accepted as {accepted:?}", events.len()));
        }
        Ok(Some(accepted))
    }

    async fn act(&self, at: Duration, act: Act) -> Result<(), String> {
        simulated(at.saturating_sub(elapsed())).await;
        self.world.note(format_args!("{act:?}"));
        let lag = if self.plan.gentle { GENTLE_LAG } else { LAG };
        match act {
            Act::Retire(hook, lasts) => {
                self.update(hook, &["active"], |webhook| webhook.active = Some(false))
                    .await?;
                let from = elapsed() + lag;
                simulated(lasts).await;
                let until = Some(elapsed());
                self.world.seen().retired.push(Span { hook, from, until });
                self.update(hook, &["active"], |webhook| webhook.active = Some(true))
                    .await?;
            }
            Act::Touch(hook) => {
                self.update(hook, &["description"], |webhook| {
                    webhook.description = "touched".to_owned()
                })
                .await?;
            }
            Act::Move(hook) => {
                self.update(hook, &["target_url"], |webhook| webhook.target_url = url(hook, 1))
                    .await?;
                let from = elapsed() + lag;
                self.world.seen().moved.push(Span {
                    hook,
                    from,
                    until: None,
                });
            }
            Act::Rotate(hook) => self.rotate(hook).await?,
            Act::Redrive(hook) => {
                let request = RedriveDeadLettersRequest {
                    parent: name(hook),
                    ..RedriveDeadLettersRequest::default()
                };
                self.world.seen().redriven.insert(hook);
                let answer = self
                    .attempt("redriving", 0, |client| {
                        let request = request.clone();
                        async move { client.deliveries().redrive_dead_letters(request).await }
                    })
                    .await?;
                if let Err(status) = answer
                    && !status.message().starts_with(STORED)
                {
                    return Err(format!("redriving: {status:?}"));
                }
            }
            Act::Cancel(hook, ago) => {
                let id = {
                    let seen = self.world.seen();
                    seen.published.iter().rev().nth(ago).map(|event| event.id.clone())
                };
                let Some(id) = id else { return Ok(()) };
                // Before it is asked: an answer that is lost may have been a yes.
                self.world.seen().cancelled.insert((hook, id.clone()));
                let request = CancelDeliveryRequest {
                    name: format!("{}/deliveries/{id}", name(hook)),
                };
                let answer = self
                    .attempt("cancelling", 0, |client| {
                        let request = request.clone();
                        async move { client.deliveries().cancel_delivery(request).await }
                    })
                    .await?;
                if let Err(status) = answer
                    && !matches!(status.code(), Code::NotFound | Code::FailedPrecondition)
                    && !status.message().starts_with(STORED)
                {
                    return Err(format!("cancelling {id}: {status:?}"));
                }
            }
        }
        Ok(())
    }

    async fn rotate(&self, hook: usize) -> Result<(), String> {
        if !self.plan.hooks.get(hook).is_some_and(|hook| hook.signed) {
            return Ok(());
        }
        let secret = format!("whsec_{}", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd");
        if let Some(secrets) = self.world.seen().secrets.get_mut(hook) {
            secrets.insert(0, secret.clone());
        }
        let rotate = RotateSigningSecretRequest {
            name: name(hook),
            secret,
            ..RotateSigningSecretRequest::default()
        };
        let answer = self
            .attempt("rotating a secret", 0, |client| {
                let rotate = rotate.clone();
                async move { client.webhooks().rotate_signing_secret(rotate).await }
            })
            .await?;
        match answer {
            // Asked again after an answer that was lost: the secret is there already.
            Err(status)
                if !matches!(
                    status.code(),
                    Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists
                ) =>
            {
                Err(format!("rotating a secret: {status:?}"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn update(
        &self,
        hook: usize,
        paths: &[&str],
        change: impl Fn(&mut Webhook),
    ) -> Result<(), String> {
        let mut webhook = Webhook {
            name: name(hook),
            ..Webhook::default()
        };
        change(&mut webhook);
        let request = UpdateWebhookRequest {
            webhook: Some(webhook),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(|&path| path.to_owned()).collect(),
            }),
            validate_only: false,
        };
        self.call("updating a webhook", 0, |client| {
            let request = request.clone();
            async move { client.webhooks().update_webhook(request).await }
        })
        .await
        .map(|_| ())
    }
}
