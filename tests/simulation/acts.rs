//! What an administrator does to webhooks and their deliveries.

use std::cell::Cell;
use std::time::Duration;

use postrider_proto::v1::{
    CancelDeliveryRequest, CreateWebhookRequest, DeleteWebhookRequest, RedriveDeadLettersRequest,
    RotateSigningSecretRequest, UpdateWebhookRequest, Webhook,
};
use postrider_tests::client::request_id;
use postrider_tests::wait::simulated;
use tonic::{Code, Status};

use crate::driver::{Driver, is_full, is_stored};
use crate::forms::{self, ACCOUNT, first_place, name, url};
use crate::net::elapsed;
use crate::plan::Act;
use crate::world::{Life, Span};

/// How long an agent may work by what it knew before: until its lease is not safe any more, its last requests have ended, and its watch has caught up.
const LAG: Duration = Duration::from_secs(9);

/// The same where agents are never cut off from the store.
const GENTLE_LAG: Duration = Duration::from_secs(4);

impl Driver<'_> {
    /// Does one thing at its time.
    pub(crate) async fn act(&self, at: Duration, act: Act) -> Result<(), String> {
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
                let touched = self.update(hook, &["description"], |webhook| {
                    webhook.description = "touched".to_owned()
                });
                match touched.await {
                    // It was deleted.
                    Err(why) if why.contains("NotFound") && self.may_be_gone(hook) => {}
                    other => other?,
                }
            }
            Act::Move(hook) => {
                let place = first_place(0) + 1;
                self.update(hook, &["target_url"], |webhook| webhook.target_url = url(hook, place))
                    .await?;
                let from = elapsed() + lag;
                self.world.seen().moved.push(Span {
                    hook,
                    from,
                    until: None,
                });
            }
            Act::Rotate(hook) => self.rotate(hook).await?,
            Act::Delete(hook, again) => self.delete(hook, again, lag).await?,
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
                    && !(is_stored(&status) || status.code() == Code::NotFound && self.may_be_gone(hook))
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
                    && !is_stored(&status)
                {
                    return Err(format!("cancelling {id}: {status:?}"));
                }
            }
        }
        Ok(())
    }

    /// Whether the plan says that a webhook is deleted some time.
    fn may_be_gone(&self, hook: usize) -> bool {
        let mut acts = self.plan.acts.iter();
        acts.any(|(_, act)| matches!(act, Act::Delete(deleted, _) if *deleted == hook))
    }

    /// Deletes a webhook, and creates another of the same name after the time `again`, if there is one.
    async fn delete(&self, hook: usize, again: Option<Duration>, lag: Duration) -> Result<(), String> {
        self.change_life(hook, |life| life.end_asked = Some(elapsed()));
        let delete = DeleteWebhookRequest {
            name: name(hook),
            ..DeleteWebhookRequest::default()
        };
        // Whether all that was answered so far says that nothing was done.
        let refused = &Cell::new(true);
        let answer = self
            .attempt("deleting a webhook", 0, |client| {
                let delete = delete.clone();
                async move {
                    let answer = client.webhooks().delete_webhook(delete).await;
                    let code = answer
                        .as_ref()
                        .err()
                        .filter(|status| !is_full(status))
                        .map(Status::code);
                    match code {
                        Some(Code::NotFound) if refused.get() => {
                            Err(Status::data_loss("it was deleted by a request that was refused"))
                        }
                        Some(Code::NotFound) => Ok(()),
                        _ => {
                            refused.set(refused.get() && code.is_none());
                            answer.map(|_| ())
                        }
                    }
                }
            })
            .await?;
        answer.map_err(|status| format!("deleting a webhook: {status:?}"))?;
        self.change_life(hook, |life| life.ended = Some(elapsed() + lag));
        self.world.note(format_args!("w{hook} is deleted"));
        let Some(again) = again else { return Ok(()) };
        simulated(again).await;
        self.create_again(hook, lag).await
    }

    async fn create_again(&self, hook: usize, lag: Duration) -> Result<(), String> {
        let secret = format!("whsec_{}", "HRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgEA");
        let form = self
            .plan
            .hooks
            .get(hook)
            .map(|form| forms::form(hook, form, 1, &secret));
        let create = CreateWebhookRequest {
            parent: format!("accounts/{ACCOUNT}"),
            webhook_id: format!("w{hook}"),
            webhook: form,
            request_id: request_id(1_000 + hook as u64),
            validate_only: false,
        };
        {
            let mut seen = self.world.seen();
            seen.secrets.insert((hook, 1), vec![secret]);
            if let Some(lives) = seen.lives.get_mut(hook) {
                lives.push(Life {
                    asked: elapsed(),
                    known: Duration::MAX,
                    ..Life::default()
                });
            }
        }
        self.call("creating a webhook again", 0, |client| {
            let create = create.clone();
            async move { client.webhooks().create_webhook(create).await }
        })
        .await?;
        self.change_life(hook, |life| life.known = elapsed() + lag);
        self.world.note(format_args!("w{hook} is created again"));
        Ok(())
    }

    fn change_life(&self, hook: usize, change: impl FnOnce(&mut Life)) {
        let mut seen = self.world.seen();
        if let Some(life) = seen.lives.get_mut(hook).and_then(|lives| lives.last_mut()) {
            change(life);
        }
    }

    async fn rotate(&self, hook: usize) -> Result<(), String> {
        if !self.plan.hooks.get(hook).is_some_and(|hook| hook.signed) {
            return Ok(());
        }
        let secret = format!("whsec_{}", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd");
        if let Some(secrets) = self.world.seen().secrets.get_mut(&(hook, 0)) {
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

    /// Changes a webhook.
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
