//! A small etcd: its gRPC services over the store in memory. Members share one state, as members of a healthy cluster seem to; it survives them all.
//!
//! What clients must cope with is as etcd does it: a watch from before the compaction is answered once and stays silent, a lease that is gone is
//! answered with no time left, big revisions come in fragments, what is said of errors is said in etcd's words. What goes wrong in it is in `mishaps`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKvServer, PbKvService,
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseServer, PbLeaseService,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse,
    PbRangeStreamResponse, PbResponseOp, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
    PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchServer, PbWatchService,
};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use postrider_common::entropy::SharedEntropy;
use postrider_common::key::Key;
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{
    Change, Entry, LeaseError, LeaseId, ListRequest, NotApplied, Op, ReadError, Revision, Store as _, WatchError,
    Write, WriteError,
};
use postrider_common::task::Group;
use postrider_tests::wait::simulated;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::maintenance;
use crate::messages::{event, guard, header, key, op, prefix_of, refused, stored, unread, unused, whole_seconds};
use crate::mishaps::{Fate, Mishaps, Needs};
use crate::net::{Accepted, Peer};

/// Answers that one stream may have waiting.
const STREAM_DEPTH: usize = 16;

/// Sees every write that was applied, and who sent it.
pub(crate) type Witness = Arc<dyn Fn(IpAddr, &Write, Revision) + Send + Sync>;

/// One member.
#[derive(Clone)]
pub(crate) struct Member {
    /// What all members hold.
    pub(crate) store: MemoryStore,
    /// Where revisions are cut into fragments.
    pub(crate) entropy: SharedEntropy,
    /// Sees what is written.
    pub(crate) witness: Witness,
    /// What goes wrong.
    pub(crate) mishaps: Arc<Mishaps>,
    /// Its streams.
    pub(crate) tasks: Group,
}

impl Member {
    /// Serves until the process is killed.
    ///
    /// # Errors
    /// When the server fails.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self,
        incoming: impl Stream<Item = std::io::Result<Accepted<S>>> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        Server::builder()
            .add_service(PbKvServer::new(self.clone()))
            .add_service(PbWatchServer::new(self.clone()))
            .add_service(PbLeaseServer::new(self.clone()))
            .add_service(maintenance::server(self.store, self.mishaps))
            .serve_with_incoming(incoming)
            .await
    }

    async fn write(&self, peer: IpAddr, request: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        let write = Write {
            guards: request.compare.iter().map(guard).collect::<Result<_, _>>()?,
            ops: request.success.into_iter().map(op).collect::<Result<_, _>>()?,
        };
        let puts = write.ops.iter().any(|op| matches!(op, Op::Put { .. }));
        let needs = if puts { Needs::Space } else { Needs::Transaction };
        match self.mishaps.fate(peer, needs) {
            Fate::Usual => self.apply(peer, write).await,
            Fate::Refused(status) => Err(status),
            Fate::Denied(status) => {
                // Whatever came of it.
                let _ = self.apply(peer, write).await;
                Err(status)
            }
            Fate::Late(status, after) => {
                let member = self.clone();
                self.tasks.spawn("late write", async move {
                    member.mishaps.elected().await;
                    simulated(after).await;
                    let _ = member.apply(peer, write).await;
                });
                Err(status)
            }
        }
    }

    async fn apply(&self, peer: IpAddr, write: Write) -> Result<PbTxnResponse, Status> {
        let (succeeded, at) = match self.store.write(write.clone()).await {
            Ok(at) => {
                (self.witness)(peer, &write, at);
                (true, at)
            }
            Err(WriteError::Conflict) => (false, self.revision().await),
            Err(WriteError::Unknown(why)) => return Err(Status::unavailable(why)),
            Err(WriteError::NotApplied(why)) => return Err(refused(&why)),
        };
        Ok(PbTxnResponse {
            header: header(at),
            succeeded,
            responses: Vec::new(),
        })
    }

    async fn read(&self, ops: &[PbTxnRequestOp]) -> Result<PbTxnResponse, Status> {
        self.mishaps.led()?;
        self.mishaps.takes_transactions()?;
        let mut keys = Vec::with_capacity(ops.len());
        for op in ops {
            match &op.request {
                Some(PbTxnOpRequest::RequestRange(range)) if range.range_end.is_empty() => keys.push(key(&range.key)?),
                _ => return Err(Status::unimplemented("a transaction reads single keys, or writes")),
            }
        }
        let (entries, at) = self.store.get_all(&keys).await.map_err(unread)?;
        let found = |entry: Option<Entry>| PbRangeResponse {
            header: header(at),
            count: i64::from(entry.is_some()),
            kvs: entry.map(stored).into_iter().collect(),
            more: false,
        };
        let responses = entries.into_iter().map(|entry| PbResponseOp {
            response: Some(PbTxnOpResponse::ResponseRange(found(entry))),
        });
        Ok(PbTxnResponse {
            header: header(at),
            succeeded: true,
            responses: responses.collect(),
        })
    }

    /// One watch on a stream, until the client goes away.
    async fn follow(
        self,
        mut requests: Streaming<PbWatchRequest>,
        answers: mpsc::Sender<Result<PbWatchResponse, Status>>,
    ) {
        let Ok(Some(PbWatchRequest {
            request_union: Some(PbWatchRequestUnion::CreateRequest(create)),
        })) = requests.message().await
        else {
            return;
        };
        let (Ok(prefix), at) = (prefix_of(&create.key, &create.range_end), self.revision().await) else {
            return;
        };
        let created = PbWatchResponse {
            header: header(at),
            created: true,
            ..PbWatchResponse::default()
        };
        let mut watch = match self.store.watch(&prefix, Revision(create.start_revision)).await {
            Ok(watch) => watch,
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        };
        let mut leaders = self.mishaps.leaders();
        let mut from = Revision(create.start_revision);
        let mut goes_on = answers.send(Ok(created)).await.is_ok();
        while goes_on {
            tokio::select! {
                biased;
                Ok(()) = leaders.changed() => if !*leaders.borrow_and_update() && self.mishaps.ends_watch() {
                    // Whoever reads no more needs no answer.
                    let _ = answers.send(Err(Status::unavailable("etcdserver: no leader"))).await;
                    return;
                },
                item = watch.next() => match item {
                    Some(Ok(changes)) => {
                        let at = changes.revision;
                        let changes = self.store.dated(&prefix, from, at);
                        from = at.next();
                        goes_on = self.show(changes, at, create.fragment, &answers).await;
                    }
                    Some(Err(WatchError::Compacted)) => {
                        let compacted = PbWatchResponse {
                            header: header(at),
                            canceled: true,
                            compact_revision: self.store.compacted().0,
                            ..PbWatchResponse::default()
                        };
                        goes_on = answers.send(Ok(compacted)).await.is_ok();
                        // Nothing more is shown, and the stream does not end.
                        watch = futures_util::stream::pending().boxed();
                    }
                    Some(Err(WatchError::Ended(_))) | None => return,
                },
                request = requests.message() => match request {
                    Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::ProgressRequest(_)) })) => {
                        let progress = PbWatchResponse {
                            header: header(self.revision().await),
                            watch_id: -1,
                            ..PbWatchResponse::default()
                        };
                        goes_on = answers.send(Ok(progress)).await.is_ok();
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                },
                () = answers.closed() => return,
            }
        }
    }

    /// Shows what happened, sometimes in fragments. False if nobody looks.
    async fn show(
        &self,
        changes: Vec<(Revision, Change)>,
        at: Revision,
        may_cut: bool,
        answers: &mpsc::Sender<Result<PbWatchResponse, Status>>,
    ) -> bool {
        let mut events: Vec<PbEvent> = changes.into_iter().map(|(at, change)| event(change, at)).collect();
        if may_cut && events.len() > 1 && self.entropy.fraction() < 0.3 {
            let rest = events.split_off(events.len() / 2);
            let first = PbWatchResponse {
                header: header(at),
                events,
                fragment: true,
                ..PbWatchResponse::default()
            };
            events = rest;
            if answers.send(Ok(first)).await.is_err() {
                return false;
            }
        }
        let last = PbWatchResponse {
            header: header(at),
            events,
            ..PbWatchResponse::default()
        };
        answers.send(Ok(last)).await.is_ok()
    }

    async fn revision(&self) -> Revision {
        let read = self.store.get(&Key::from_stored("")).await;
        read.map_or(Revision::default(), |(_, at)| at)
    }
}

/// Who sent a request.
fn sender<T>(request: &Request<T>) -> Result<IpAddr, Status> {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    peer.ok_or_else(|| Status::internal("a request comes from somewhere"))
}

#[tonic::async_trait]
impl PbKvService for Member {
    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        self.mishaps.led()?;
        let request = request.into_inner();
        if request.range_end.is_empty() && request.revision == 0 {
            let (entry, at) = self.store.get(&key(&request.key)?).await.map_err(unread)?;
            return Ok(Response::new(PbRangeResponse {
                header: header(at),
                count: i64::from(entry.is_some()),
                kvs: entry.map(stored).into_iter().collect(),
                more: false,
            }));
        }
        let prefix = prefix_of(&request.key, &request.range_end)?;
        let after = match request.key.strip_suffix(&[0]) {
            Some(after) if request.key.as_slice() != [0] => Some(key(after)?),
            _ => None,
        };
        let listing = ListRequest {
            prefix: prefix.clone(),
            after,
            limit: usize::try_from(request.limit)
                .ok()
                .filter(|limit| *limit > 0)
                .unwrap_or(usize::MAX),
            revision: (request.revision > 0).then_some(Revision(request.revision)),
            keys_only: request.keys_only,
        };
        let page = self.store.list(listing).await.map_err(unread)?;
        let single = request.range_end.is_empty();
        let entries = page.entries.into_iter().filter(|entry| !single || entry.key == prefix);
        Ok(Response::new(PbRangeResponse {
            header: header(self.revision().await),
            kvs: entries.map(stored).collect(),
            more: page.more && !single,
            count: 0,
        }))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let peer = sender(&request)?;
        let request = request.into_inner();
        let reads = |op: &PbTxnRequestOp| matches!(op.request, Some(PbTxnOpRequest::RequestRange(_)));
        let done = if request.success.iter().any(reads) {
            self.read(&request.success).await
        } else {
            self.write(peer, request).await
        };
        done.map(Response::new)
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        self.mishaps.led()?;
        let (at, now) = (Revision(request.into_inner().revision), self.revision().await);
        if at > now {
            return Err(unread(ReadError::Away(format!("revision {at} is in the future"))));
        }
        if at <= self.store.compacted() {
            return Err(unread(ReadError::Compacted));
        }
        self.store.compact(at).await.map_err(unread)?;
        Ok(Response::new(PbCompactionResponse { header: header(now) }))
    }

    type RangeStreamStream = BoxStream<'static, Result<PbRangeStreamResponse, Status>>;

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(unused())
    }

    async fn put(&self, _: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        Err(unused())
    }

    async fn delete_range(&self, _: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        Err(unused())
    }
}

#[tonic::async_trait]
impl PbWatchService for Member {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        self.mishaps.led()?;
        let (answers, stream) = mpsc::channel(STREAM_DEPTH);
        let watch = self.clone().follow(request.into_inner(), answers);
        self.tasks.spawn("watch", watch);
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl PbLeaseService for Member {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let fate = self.mishaps.fate(sender(&request)?, Needs::Space);
        let seconds = u64::try_from(request.into_inner().ttl).unwrap_or(1);
        if let Fate::Refused(status) | Fate::Late(status, _) = fate {
            return Err(status);
        }
        let granted = self.store.grant(Duration::from_secs(seconds)).await.map_err(unread)?;
        if let Fate::Denied(status) = fate {
            return Err(status);
        }
        Ok(Response::new(PbLeaseGrantResponse {
            header: header(self.revision().await),
            id: granted.id.0,
            ttl: whole_seconds(granted.ttl),
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.mishaps.led()?;
        let lease = LeaseId(request.into_inner().id);
        if self.store.keep_alive(lease).await == Err(LeaseError::Gone) {
            return Err(refused(&NotApplied::LeaseGone));
        }
        self.store.revoke(lease).await.map_err(unread)?;
        Ok(Response::new(PbLeaseRevokeResponse {
            header: header(self.revision().await),
        }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.mishaps.led()?;
        let (answers, stream) = mpsc::channel(STREAM_DEPTH);
        let (member, mut requests) = (self.clone(), request.into_inner());
        self.tasks.spawn("keep-alives", async move {
            while let Ok(Some(PbLeaseKeepAliveRequest { id })) = requests.message().await {
                // Without a leader nobody answers.
                member.mishaps.elected().await;
                let ttl = match member.store.keep_alive(LeaseId(id)).await {
                    Ok(ttl) => whole_seconds(ttl),
                    Err(LeaseError::Gone) => 0,
                    Err(LeaseError::Away(_)) => return,
                };
                let answer = PbLeaseKeepAliveResponse {
                    header: header(member.revision().await),
                    id,
                    ttl,
                };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        Err(unused())
    }

    async fn lease_leases(&self, _: Request<PbLeaseLeasesRequest>) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Err(unused())
    }
}
