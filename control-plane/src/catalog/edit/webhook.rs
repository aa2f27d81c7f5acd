//! Creating and deleting webhooks: the quota is kept by a count that every such transaction is guarded by and writes.

use bytes::Bytes;
use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{self, DedupeKind, Key};
use postrider_common::model::account::Account;
use postrider_common::model::webhook::Webhook;
use postrider_common::store::{Entry, Guard, Op, Revision, Write};
use postrider_common::wire::stored::{decode, decode_account, encode, encode_account};
use postrider_proto::stored::WebhookCount;

use super::{Apply, Edit, Missing, RequestKey, Resource as _, Written};
use crate::api::status::Error;
use crate::catalog::etag::Etag;

impl Edit {
    /// Creates a webhook; the account comes into being with it if it does not exist.
    ///
    /// # Errors
    /// Quota if the account has as many webhooks as it may; else as [`Edit::create`].
    pub(crate) async fn create_webhook(
        &self,
        webhook: Webhook,
        request: Option<RequestKey>,
        apply: Apply,
    ) -> Result<Written<Webhook>, Error> {
        let account = webhook.account.clone();
        let id = (account.clone(), webhook.id.clone());
        let request = request.map(|request| (key::dedupe(&account, DedupeKind::CreateWebhook, &request.id), request));
        let new = Account::new(account.clone(), self.entropy.uid(self.now()), self.now());
        let beside = [key::account(&account), key::webhook_count(&account)];
        let decide = |entries: &[Option<Entry>]| {
            let mut write = Write::default();
            let quota = match at(entries, 0) {
                Some(entry) => {
                    // Guarded too: a quota that is lowered at this moment is kept.
                    write
                        .guards
                        .push(Guard::Modified(entry.key.clone(), entry.mod_revision));
                    decode_account(account.clone(), entry.value.clone())?.webhook_quota()
                }
                None => {
                    let key = Account::key(&account);
                    write.guards.push(Guard::Absent(key.clone()));
                    write.ops.push(Op::put(key, encode_account(&new)));
                    new.webhook_quota()
                }
            };
            let count = count(at(entries, 1))?;
            if count >= quota {
                return Err(Error::Quota {
                    subject: format!("accounts/{account}"),
                    reason: "WEBHOOK_QUOTA",
                    description: format!("accounts/{account} has {count} webhooks and may have {quota}"),
                    retry_after: None,
                });
            }
            put_count(&mut write, &account, at(entries, 1), count.saturating_add(1));
            Ok(write)
        };
        self.create_with(&id, webhook, request, apply, &beside, decide).await
    }

    /// Deletes a webhook. Answers the revision of the deletion; 0 if there was nothing to delete.
    ///
    /// # Errors
    /// As [`Edit::delete`].
    pub(crate) async fn delete_webhook(
        &self,
        id: &(AccountId, WebhookId),
        etag: Option<&Etag>,
        missing: Missing,
    ) -> Result<Revision, Error> {
        let beside = [key::webhook_count(&id.0)];
        let decide = |entries: &[Option<Entry>]| {
            let mut write = Write::default();
            let count = count(at(entries, 0))?;
            put_count(&mut write, &id.0, at(entries, 0), count.saturating_sub(1));
            Ok(write)
        };
        self.delete_with::<Webhook>(id, etag, missing, &beside, decide).await
    }
}

fn at(entries: &[Option<Entry>], index: usize) -> Option<&Entry> {
    entries.get(index).and_then(Option::as_ref)
}

fn count(entry: Option<&Entry>) -> Result<u32, Error> {
    let bytes = entry.map_or_else(Bytes::new, |entry| entry.value.clone());
    Ok(decode::<WebhookCount>(bytes)?.count)
}

/// The key stays when the count is 0 again: a transaction guarded by its absence can never apply a second time.
fn put_count(write: &mut Write, account: &AccountId, before: Option<&Entry>, count: u32) {
    let key: Key = key::webhook_count(account);
    write.guards.push(match before {
        Some(entry) => Guard::Modified(key.clone(), entry.mod_revision),
        None => Guard::Absent(key.clone()),
    });
    write.ops.push(Op::put(key, encode(&WebhookCount { count })));
}
