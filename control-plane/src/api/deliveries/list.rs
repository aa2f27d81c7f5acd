//! ListDeliveries.

use postrider_proto::v1;

use super::rules::{self, Bodies};
use super::{Deliveries, PAGE_READS, messages};
use crate::api::page::{self, Scope};
use crate::api::status::{Error, Violations};
use crate::api::{fingerprint, names};
use crate::history::place::{PHASES, Phase};
use crate::history::shelves::Shelves;
use crate::history::standing::WithDead;
use crate::history::walk::{Most, Walk};

impl Deliveries {
    pub(super) async fn list(&self, request: &v1::ListDeliveriesRequest) -> Result<v1::ListDeliveriesResponse, Error> {
        let mut violations = Violations::default();
        let id = names::webhook("parent", &request.parent, &mut violations);
        let filter = rules::filter(request, &mut violations);
        let size = page::size(request.page_size, &mut violations);
        let id = violations.with(id)?;
        let chosen = chosen(request);
        let scope = Scope {
            method: "ListDeliveries",
            parent: &request.parent,
            filter: &chosen,
        };
        let (place, revision) = self.place(scope, &request.page_token, Phase::Pending)?;
        let (_, subject) = self.subject(&id).await?;
        let mut shelves = Shelves::new(&*self.deps.store, &subject, revision, PAGE_READS);
        let walk = Walk {
            shelves: &mut shelves,
            filter: &filter,
            phases: &PHASES,
            most: Most {
                deliveries: size,
                body_bytes: usize::MAX,
            },
            with_dead: WithDead::No,
        };
        let found = walk.from(place).await?;
        let deliveries = found.deliveries.iter();
        Ok(v1::ListDeliveriesResponse {
            deliveries: deliveries
                .map(|(standing, _)| messages::delivery(&subject, standing, Bodies::Hidden))
                .collect(),
            next_page_token: self.token(scope, found.next, shelves.revision()),
        })
    }
}

/// What a page token is bound to besides its parent: everything that chooses.
fn chosen(request: &v1::ListDeliveriesRequest) -> String {
    let chosen = v1::ListDeliveriesRequest {
        parent: String::new(),
        page_size: 0,
        page_token: String::new(),
        ..request.clone()
    };
    fingerprint(&chosen).iter().map(|byte| format!("{byte:02x}")).collect()
}
