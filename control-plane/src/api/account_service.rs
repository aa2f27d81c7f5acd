//! AccountService: creates, shows and changes accounts.

use postrider_common::id::AccountId;
use postrider_common::key::{self, DedupeKind};
use postrider_common::model::account::{Account, DEFAULT_MAX_BACKLOG_BYTES, DEFAULT_MAX_WEBHOOKS, UnknownEventTypes};
use postrider_common::wire::stored::decode_account;
use postrider_proto::v1;
use tonic::{Request, Response, Status};
use v1::account_service_server::AccountService;

use super::listing::{Listing, list};
use super::page::Scope;
use super::status::{Error, Violations};
use super::{Deps, account_rules, convert, mask, names, page};
use crate::catalog::edit::{Apply, RequestKey};
use crate::usage;

/// The service.
pub(crate) struct Accounts(pub(crate) Deps);

#[tonic::async_trait]
impl AccountService for Accounts {
    async fn create_account(
        &self,
        request: Request<v1::CreateAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        Ok(Response::new(self.create(request.into_inner()).await?))
    }

    async fn get_account(&self, request: Request<v1::GetAccountRequest>) -> Result<Response<v1::Account>, Status> {
        let mut violations = Violations::default();
        let id = names::account("name", &request.get_ref().name, &mut violations);
        let account: Account = self.0.edit.get(&violations.with(id)?).await?;
        Ok(Response::new(convert::account(&account)))
    }

    async fn list_accounts(
        &self,
        request: Request<v1::ListAccountsRequest>,
    ) -> Result<Response<v1::ListAccountsResponse>, Status> {
        Ok(Response::new(self.list(request.get_ref()).await?))
    }

    async fn update_account(
        &self,
        request: Request<v1::UpdateAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        Ok(Response::new(self.update(request.into_inner()).await?))
    }

    async fn get_account_usage(
        &self,
        request: Request<v1::GetAccountUsageRequest>,
    ) -> Result<Response<v1::AccountUsage>, Status> {
        let mut violations = Violations::default();
        let id = names::account("name", &request.get_ref().name, &mut violations);
        let id = violations.with(id)?;
        let _exists: Account = self.0.edit.get(&id).await?;
        let usage = usage::of_account(&*self.0.store, self.0.cell.shard_count, &id).await;
        Ok(Response::new(convert::account_usage(&id, &usage.map_err(Error::from)?)))
    }
}

impl Accounts {
    async fn create(&self, request: v1::CreateAccountRequest) -> Result<v1::Account, Error> {
        let mut violations = Violations::default();
        let id = names::chosen("account_id", &request.account_id, AccountId::new, &mut violations);
        let key = names::request_id(&request.request_id, &mut violations).map(|id| {
            let content = v1::CreateAccountRequest {
                request_id: String::new(),
                validate_only: false,
                ..request.clone()
            };
            let key = key::dedupe_global(DedupeKind::CreateAccount, &id);
            let fingerprint = super::fingerprint(&content);
            (key, RequestKey { id, fingerprint })
        });
        let message = request.account.unwrap_or_default();
        names::no_etag("account.etag", &message.etag, &mut violations);
        let unknown = account_rules::check(&message, &mut violations);
        violations.or(())?;
        let now = self.0.clock.now();
        let id = id.unwrap_or_else(|| self.new_id());
        let account = with(Account::new(id.clone(), self.0.entropy.uid(now), now), message, unknown);
        let apply = Apply::new(request.validate_only);
        let written = self.0.edit.create(&id, account, key, apply).await?;
        self.0.accounts_caught_up(written.revision).await;
        Ok(convert::account(&written.value))
    }

    async fn list(&self, request: &v1::ListAccountsRequest) -> Result<v1::ListAccountsResponse, Error> {
        let mut violations = Violations::default();
        let size = page::size(request.page_size, &mut violations);
        violations.or(())?;
        let listing = Listing {
            scope: Scope {
                method: "ListAccounts",
                parent: "",
                filter: "",
            },
            prefix: key::accounts(),
            size,
            token: &request.page_token,
        };
        let page = list(&*self.0.store, &self.0.page_key, listing).await?;
        let accounts = page.entries.into_iter().map(|entry| {
            let id = super::last_part(&entry.key, AccountId::new)?;
            Ok(convert::account(&decode_account(id, entry.value)?))
        });
        Ok(v1::ListAccountsResponse {
            accounts: accounts.collect::<Result<_, Error>>()?,
            next_page_token: page.next_token,
        })
    }

    async fn update(&self, request: v1::UpdateAccountRequest) -> Result<v1::Account, Error> {
        let mut violations = Violations::default();
        let Some(wanted) = request.account else {
            violations.add("account", "REQUIRED", "must be given");
            return violations.or(v1::Account::default());
        };
        let id = names::account("account.name", &wanted.name, &mut violations);
        let etag = names::etag("account.etag", &wanted.etag, &mut violations);
        let paths = request.update_mask.unwrap_or_default().paths;
        let mut scratch = v1::Account::default();
        mask::merge(&account_rules::FIELDS, &paths, &wanted, &mut scratch, &mut violations);
        let Some(id) = id else {
            return violations.or(scratch);
        };
        let change = |present: &Account| {
            let mut violations = violations.clone();
            let mut message = convert::account(present);
            // The mistakes of the mask are noted already.
            mask::merge(
                &account_rules::FIELDS,
                &paths,
                &wanted,
                &mut message,
                &mut Violations::default(),
            );
            let unknown = account_rules::check(&message, &mut violations);
            violations.or(with(present.clone(), message, unknown))
        };
        let apply = Apply::new(request.validate_only);
        let written = self.0.edit.update(&id, etag.as_ref(), apply, change).await;
        let written = written.map_err(|error| violations.before(error))?;
        self.0.accounts_caught_up(written.revision).await;
        Ok(convert::account(&written.value))
    }

    fn new_id(&self) -> AccountId {
        let text = format!("acc-{:016x}", self.0.entropy.next_u64());
        #[allow(clippy::expect_used)] // Letters, a hyphen and digits.
        AccountId::new(&text).expect("a generated id is valid")
    }
}

/// `account` with everything that callers set as in the checked message. What is the default's stays unset, so that a later release may change it.
fn with(account: Account, message: v1::Account, unknown_event_types: UnknownEventTypes) -> Account {
    Account {
        display_name: message.display_name,
        max_webhooks: u32::try_from(message.max_webhooks)
            .ok()
            .filter(|most| ![0, DEFAULT_MAX_WEBHOOKS].contains(most)),
        max_backlog_bytes: u64::try_from(message.max_backlog_bytes)
            .ok()
            .filter(|most| ![0, DEFAULT_MAX_BACKLOG_BYTES].contains(most)),
        unknown_event_types,
        labels: message.labels,
        ..account
    }
}
