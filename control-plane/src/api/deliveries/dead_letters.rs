//! ListDeadLetters.

use postrider_proto::v1;

use super::rules::{self, Bodies};
use super::{Deliveries, PAGE_BODIES, PAGE_READS, messages};
use crate::api::names;
use crate::api::page::{self, Scope};
use crate::api::status::{Error, Violations};
use crate::history::filter::Filter;
use crate::history::place::Phase;
use crate::history::shelves::Shelves;
use crate::history::standing::WithDead;
use crate::history::walk::{Most, Walk};

impl Deliveries {
    pub(super) async fn dead_letters(
        &self,
        request: &v1::ListDeadLettersRequest,
    ) -> Result<v1::ListDeadLettersResponse, Error> {
        let mut violations = Violations::default();
        let id = names::webhook("parent", &request.parent, &mut violations);
        let bodies = rules::shows_bodies(request.view, &mut violations);
        let size = page::size(request.page_size, &mut violations);
        let id = violations.with(id)?;
        let scope = Scope {
            method: "ListDeadLetters",
            parent: &request.parent,
            filter: "",
        };
        let (place, revision) = self.place(scope, &request.page_token, Phase::Dead)?;
        let (_, subject) = self.subject(&id).await?;
        let mut shelves = Shelves::new(&*self.deps.store, &subject, revision, PAGE_READS);
        let walk = Walk {
            shelves: &mut shelves,
            filter: &Filter::default(),
            phases: &[Phase::Dead],
            most: Most {
                deliveries: size,
                body_bytes: match bodies {
                    Bodies::Shown => PAGE_BODIES,
                    Bodies::Hidden => usize::MAX,
                },
            },
            with_dead: WithDead::No,
        };
        let found = walk.from(place).await?;
        let dead = found.deliveries.iter();
        Ok(v1::ListDeadLettersResponse {
            dead_letters: dead
                .map(|(standing, _)| messages::delivery(&subject, standing, bodies))
                .collect(),
            next_page_token: self.token(scope, found.next, shelves.revision()),
        })
    }
}
