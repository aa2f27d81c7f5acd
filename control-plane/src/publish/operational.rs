//! Publishing what the system itself has to tell.

use std::sync::Arc;

use postrider_common::id::{AccountId, EventName, RequestId, WebhookId};
use postrider_common::model::segment::Event;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::admission::{Admitted, Identity};
use super::{Checked, Pending, Publisher, fanout, too_wide};
use crate::api::status::Error;

impl Publisher {
    /// Puts an event of the system's own in line for every webhook of its account that asked for it, but for `about`: no webhook is told of itself.
    /// The same `request` again stores nothing for as long as any request id is kept.
    ///
    /// # Errors
    /// As [`Publisher::submit`].
    pub(crate) fn announce(&self, event: &Event, request: &RequestId, about: &WebhookId) -> Result<Pending, Error> {
        let accept_time = self.clock.now();
        // Of the id alone: the next release may word the same event in another way.
        let fingerprint = Sha256::digest(request.as_str()).into();
        let admitted = Admitted {
            account: event.account.clone(),
            events: vec![Arc::new(Event {
                accept_time,
                ..event.clone()
            })],
            identity: Some(Identity::new(&event.account, request, fingerprint)),
            accept_time,
        };
        let others = self.catalog.table(&admitted.account).changed([(about.clone(), None)]);
        let begun = Instant::now();
        let fanout = fanout::fan_out(&admitted.events, &others, &|| begun.elapsed()).map_err(|_| too_wide())?;
        self.enqueue(Checked {
            admitted,
            fanout,
            strangers: 0,
        })
    }

    /// Whether any webhook but `about` asked for events of this name.
    pub(crate) fn is_wanted(&self, account: &AccountId, name: &EventName, about: &WebhookId) -> bool {
        let table = self.catalog.table(account);
        table.matching(name).iter().any(|other| other.webhook.id != *about)
    }
}
