//! EventTypeService: the catalogue of event types.

use postrider_common::id::EventName;
use postrider_common::key::{self, DedupeKind};
use postrider_common::model::event_type::EventType;
use postrider_common::model::operational::{PREFIX, is_operational};
use postrider_common::wire::stored::decode_event_type;
use postrider_proto::v1;
use tonic::{Request, Response, Status};
use v1::event_type_service_server::EventTypeService;

use super::event_type_rules::{self, Checked};
use super::listing::{Listing, list};
use super::page::Scope;
use super::status::{Error, Violations};
use super::{Deps, convert, mask, names, page};
use crate::catalog::edit::{Apply, Missing, RequestKey};

/// The service.
pub(crate) struct EventTypes(pub(crate) Deps);

#[tonic::async_trait]
impl EventTypeService for EventTypes {
    async fn create_event_type(
        &self,
        request: Request<v1::CreateEventTypeRequest>,
    ) -> Result<Response<v1::EventType>, Status> {
        Ok(Response::new(self.create(request.into_inner()).await?))
    }

    async fn get_event_type(
        &self,
        request: Request<v1::GetEventTypeRequest>,
    ) -> Result<Response<v1::EventType>, Status> {
        let mut violations = Violations::default();
        let id = names::event_type("name", &request.get_ref().name, &mut violations);
        let event_type: EventType = self.0.edit.get(&violations.with(id)?).await?;
        Ok(Response::new(convert::event_type(&event_type)))
    }

    async fn list_event_types(
        &self,
        request: Request<v1::ListEventTypesRequest>,
    ) -> Result<Response<v1::ListEventTypesResponse>, Status> {
        Ok(Response::new(self.list(request.get_ref()).await?))
    }

    async fn update_event_type(
        &self,
        request: Request<v1::UpdateEventTypeRequest>,
    ) -> Result<Response<v1::EventType>, Status> {
        Ok(Response::new(self.update(request.into_inner()).await?))
    }

    async fn delete_event_type(&self, request: Request<v1::DeleteEventTypeRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let mut violations = Violations::default();
        let id = names::event_type("name", &request.name, &mut violations);
        let etag = names::etag("etag", &request.etag, &mut violations);
        let id = violations.with(id)?;
        let missing = Missing::new(request.allow_missing);
        let revision = self.0.edit.delete::<EventType>(&id, etag.as_ref(), missing).await?;
        self.0.types_caught_up(revision).await;
        Ok(Response::new(()))
    }
}

impl EventTypes {
    async fn create(&self, request: v1::CreateEventTypeRequest) -> Result<v1::EventType, Error> {
        let mut violations = Violations::default();
        let id = names::chosen("event_type_id", &request.event_type_id, EventName::new, &mut violations);
        if request.event_type_id.is_empty() {
            violations.add("event_type_id", "REQUIRED", "must be the name that events carry");
        }
        if id.as_ref().is_some_and(is_operational) {
            let description = format!("names that begin with {PREFIX} are the system's own");
            violations.add("event_type_id", "RESERVED", description);
        }
        let key = names::request_id(&request.request_id, &mut violations).map(|id| {
            let content = v1::CreateEventTypeRequest {
                request_id: String::new(),
                validate_only: false,
                ..request.clone()
            };
            let key = key::dedupe_global(DedupeKind::CreateEventType, &id);
            let fingerprint = super::fingerprint(&content);
            (key, RequestKey { id, fingerprint })
        });
        let message = request.event_type.unwrap_or_default();
        names::no_etag("event_type.etag", &message.etag, &mut violations);
        let checked = event_type_rules::check(&message, &mut violations);
        let id = violations.with(id)?;
        let now = self.0.clock.now();
        let new = EventType {
            name: id.clone(),
            uid: self.0.entropy.uid(now),
            generation: 1,
            display_name: String::new(),
            description: String::new(),
            category: checked.category,
            schema: None,
            example: None,
            deprecated: false,
            create_time: now,
            update_time: now,
        };
        let event_type = with(new, message, checked);
        let apply = Apply::new(request.validate_only);
        let written = self.0.edit.create(&id, event_type, key, apply).await?;
        self.0.types_caught_up(written.revision).await;
        Ok(convert::event_type(&written.value))
    }

    async fn list(&self, request: &v1::ListEventTypesRequest) -> Result<v1::ListEventTypesResponse, Error> {
        let mut violations = Violations::default();
        let size = page::size(request.page_size, &mut violations);
        violations.or(())?;
        let listing = Listing {
            scope: Scope {
                method: "ListEventTypes",
                parent: "",
                filter: "",
            },
            prefix: key::event_types(),
            size,
            token: &request.page_token,
        };
        let page = list(&*self.0.store, &self.0.page_key, listing).await?;
        let event_types = page.entries.into_iter().map(|entry| {
            let name = super::last_part(&entry.key, EventName::new)?;
            Ok(convert::event_type(&decode_event_type(name, entry.value)?))
        });
        Ok(v1::ListEventTypesResponse {
            event_types: event_types.collect::<Result<_, Error>>()?,
            next_page_token: page.next_token,
        })
    }

    async fn update(&self, request: v1::UpdateEventTypeRequest) -> Result<v1::EventType, Error> {
        let mut violations = Violations::default();
        let Some(wanted) = request.event_type else {
            violations.add("event_type", "REQUIRED", "must be given");
            return violations.or(v1::EventType::default());
        };
        let id = names::event_type("event_type.name", &wanted.name, &mut violations);
        let etag = names::etag("event_type.etag", &wanted.etag, &mut violations);
        let paths = request.update_mask.unwrap_or_default().paths;
        let mut scratch = v1::EventType::default();
        mask::merge(
            &event_type_rules::FIELDS,
            &paths,
            &wanted,
            &mut scratch,
            &mut violations,
        );
        let Some(id) = id else {
            return violations.or(scratch);
        };
        let change = |present: &EventType| {
            let mut violations = violations.clone();
            let mut message = convert::event_type(present);
            // The mistakes of the mask are noted already.
            mask::merge(
                &event_type_rules::FIELDS,
                &paths,
                &wanted,
                &mut message,
                &mut Violations::default(),
            );
            let checked = event_type_rules::check(&message, &mut violations);
            violations.or(with(present.clone(), message, checked))
        };
        let apply = Apply::new(request.validate_only);
        let written = self.0.edit.update(&id, etag.as_ref(), apply, change).await;
        let written = written.map_err(|error| violations.before(error))?;
        self.0.types_caught_up(written.revision).await;
        Ok(convert::event_type(&written.value))
    }
}

/// `event_type` with everything that callers set as in the checked message.
fn with(event_type: EventType, message: v1::EventType, checked: Checked) -> EventType {
    EventType {
        display_name: message.display_name,
        description: message.description,
        category: checked.category,
        schema: checked.schema,
        example: checked.example,
        deprecated: message.deprecated,
        ..event_type
    }
}
