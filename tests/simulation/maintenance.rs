//! The part of etcd's maintenance service that Postrider asks: how full the store is.

use std::sync::Arc;

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
    PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse, PbMaintenanceServer,
    PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse,
    PbStatusRequest, PbStatusResponse,
};
use futures_util::stream::BoxStream;
use postrider_common::store::Store as _;
use postrider_common::store::memory::MemoryStore;
use tonic::{Request, Response, Status};

use crate::messages::unused;
use crate::mishaps::Mishaps;

/// The service.
pub(crate) struct Maintenance {
    store: MemoryStore,
    mishaps: Arc<Mishaps>,
}

/// The service over what all members hold.
pub(crate) fn server(store: MemoryStore, mishaps: Arc<Mishaps>) -> PbMaintenanceServer<Maintenance> {
    PbMaintenanceServer::new(Maintenance { store, mishaps })
}

#[tonic::async_trait]
impl PbMaintenanceService for Maintenance {
    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        self.mishaps.led()?;
        let usage = self
            .store
            .usage()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let bytes = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let alarm = || "memberID:1 alarm:NOSPACE ".to_owned();
        Ok(Response::new(PbStatusResponse {
            errors: self.mishaps.is_full().then(alarm).into_iter().collect(),
            db_size: bytes(usage.size),
            db_size_in_use: bytes(usage.in_use),
            ..PbStatusResponse::default()
        }))
    }

    type SnapshotStream = BoxStream<'static, Result<PbSnapshotResponse, Status>>;

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unused())
    }

    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        Err(unused())
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(unused())
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(unused())
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(unused())
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(unused())
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(unused())
    }
}
