//! ClusterService: shows who does what, read from the keys by which the cluster itself goes.

use std::collections::BTreeMap;

use postrider_common::key;
use postrider_common::shard::{self, ShardId};
use postrider_common::store::{Entry, Revision, list_all};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored::decode;
use postrider_proto::{stored, v1};
use tonic::{Request, Response, Status};
use v1::cluster_service_server::ClusterService;

use super::listing::{Listing, list, list_at, position};
use super::page::{Position, Scope};
use super::status::{Error, Violations};
use super::{Deps, convert, page};

/// The service.
pub(crate) struct Cluster(pub(crate) Deps);

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn get_cluster(&self, _: Request<v1::GetClusterRequest>) -> Result<Response<v1::Cluster>, Status> {
        Ok(Response::new(self.get().await?))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Ok(Response::new(self.agents(request.get_ref()).await?))
    }

    async fn list_shards(
        &self,
        request: Request<v1::ListShardsRequest>,
    ) -> Result<Response<v1::ListShardsResponse>, Status> {
        Ok(Response::new(self.shards(request.get_ref()).await?))
    }
}

impl Cluster {
    async fn get(&self) -> Result<v1::Cluster, Error> {
        let store = &*self.0.store;
        let leader = match store.get(&key::leader()).await.map_err(Error::from)?.0 {
            Some(entry) => decode::<stored::Leader>(entry.value)?.control_plane,
            None => String::new(),
        };
        let count = |entries: &[Entry]| convert::number(u32::try_from(entries.len()).unwrap_or(u32::MAX));
        Ok(v1::Cluster {
            uid: self.0.cell.uid.to_string(),
            shard_count: self.0.cell.shard_count.get().into(),
            leader,
            control_plane: self.0.control_plane.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_count: count(&list_all(store, &key::agents(), true).await?.0),
            owned_shard_count: count(&list_all(store, &key::owners(), true).await?.0),
        })
    }

    async fn agents(&self, request: &v1::ListAgentsRequest) -> Result<v1::ListAgentsResponse, Error> {
        let mut violations = Violations::default();
        let size = page::size(request.page_size, &mut violations);
        violations.or(())?;
        let listing = Listing {
            scope: Scope {
                method: "ListAgents",
                parent: "",
                filter: "",
            },
            prefix: key::agents(),
            size,
            token: &request.page_token,
        };
        let page = list(&*self.0.store, &self.0.page_key, listing).await?;
        let holders = self.holders(page.revision).await?;
        let mut assigned: BTreeMap<&str, i32> = BTreeMap::new();
        let mut owned: BTreeMap<&str, i32> = BTreeMap::new();
        for holder in holders.values() {
            *assigned.entry(holder.assigned.as_str()).or_default() += 1;
            *owned.entry(holder.owner.as_str()).or_default() += 1;
        }
        let mut agents = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            let Some(id) = key::parse_agent(&entry.key) else {
                return Err(super::stray(&entry.key));
            };
            let agent: stored::Agent = decode(entry.value)?;
            agents.push(v1::Agent {
                name: format!("agents/{id}"),
                version: agent.version,
                start_time: Some(convert::timestamp(Timestamp::from_millis(agent.start_time))),
                draining: agent.draining,
                weight: convert::number(agent.weight),
                assigned_shard_count: assigned.get(id.as_str()).copied().unwrap_or(0),
                owned_shard_count: owned.get(id.as_str()).copied().unwrap_or(0),
            });
        }
        Ok(v1::ListAgentsResponse {
            agents,
            next_page_token: page.next_token,
        })
    }

    /// Shards are counted, not listed: the token names the owner key of the last one, whether it exists or not.
    async fn shards(&self, request: &v1::ListShardsRequest) -> Result<v1::ListShardsResponse, Error> {
        let mut violations = Violations::default();
        let size = page::size(request.page_size, &mut violations);
        violations.or(())?;
        let scope = Scope {
            method: "ListShards",
            parent: "",
            filter: "",
        };
        let listing = Listing {
            scope,
            prefix: key::owners(),
            size,
            token: &request.page_token,
        };
        let (revision, after) = match position(&self.0.page_key, &listing)? {
            Some(position) => (position.revision, position.after),
            None => (self.0.store.get(&key::cell()).await?.1, String::new()),
        };
        let mut holders = self.holders(revision).await?;
        let mut rest = shard::all(self.0.cell.shard_count).filter(|shard| key::owner(*shard).as_str() > after.as_str());
        let page: Vec<ShardId> = rest.by_ref().take(size).collect();
        let last = page.last().filter(|_| rest.next().is_some());
        let next_page_token = last.map(|last| {
            let after = key::owner(*last).as_str().to_owned();
            self.0.page_key.seal(scope, &Position { revision, after })
        });
        let shards = page.into_iter().map(|shard| {
            let holder = holders.remove(&shard).unwrap_or_default();
            v1::Shard {
                name: format!("shards/{shard}"),
                assigned_agent: holder.assigned,
                owner_agent: holder.owner,
                epoch: holder.epoch,
            }
        });
        Ok(v1::ListShardsResponse {
            shards: shards.collect(),
            next_page_token: next_page_token.unwrap_or_default(),
        })
    }

    /// Who should have and who has each shard, as of one revision. Shards that nobody has or should have are left out.
    async fn holders(&self, revision: Revision) -> Result<BTreeMap<ShardId, Holder>, Error> {
        let mut holders: BTreeMap<ShardId, Holder> = BTreeMap::new();
        for entry in list_at(&*self.0.store, key::assignments(), revision).await? {
            let shard = key::parse_shard(&entry.key).ok_or_else(|| super::stray(&entry.key))?;
            holders.entry(shard).or_default().assigned = decode::<stored::Assignment>(entry.value)?.agent;
        }
        for entry in list_at(&*self.0.store, key::owners(), revision).await? {
            let shard = key::parse_shard(&entry.key).ok_or_else(|| super::stray(&entry.key))?;
            let holder = holders.entry(shard).or_default();
            holder.epoch = entry.create_revision.0;
            holder.owner = decode::<stored::Owner>(entry.value)?.agent;
        }
        Ok(holders)
    }
}

/// Who has a shard. Empty texts mean nobody.
#[derive(Debug, Default)]
struct Holder {
    assigned: String,
    owner: String,
    epoch: i64,
}
