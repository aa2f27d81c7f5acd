//! ListAttempts.

use postrider_proto::v1;

use super::{Deliveries, PAGE_READS, messages};
use crate::api::names;
use crate::api::page::{self, Scope};
use crate::api::status::{Error, Violations};
use crate::history::place::Phase;
use crate::history::shelves::Shelves;
use crate::history::walk;

impl Deliveries {
    pub(super) async fn attempts(&self, request: &v1::ListAttemptsRequest) -> Result<v1::ListAttemptsResponse, Error> {
        let mut violations = Violations::default();
        let name = names::delivery("parent", &request.parent, &mut violations);
        let size = page::size(request.page_size, &mut violations);
        let (account, webhook, event) = violations.with(name)?;
        let scope = Scope {
            method: "ListAttempts",
            parent: &request.parent,
            filter: "",
        };
        let (place, revision) = self.place(scope, &request.page_token, Phase::Ended)?;
        let (_, subject) = self.subject(&(account, webhook)).await?;
        let mut shelves = Shelves::new(&*self.deps.store, &subject, revision, PAGE_READS);
        let (made, next) = walk::attempts(&mut shelves, &event, place, size).await?;
        let made = made.iter();
        Ok(v1::ListAttemptsResponse {
            attempts: made
                .map(|made| messages::attempt(&made.entry, &made.attempt, &made.events))
                .collect(),
            next_page_token: self.token(scope, next, shelves.revision()),
        })
    }
}
