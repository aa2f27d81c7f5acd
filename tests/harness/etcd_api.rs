//! The little of etcd's own gRPC API that tests look at the store with: independent of the code under test.

use std::net::SocketAddr;
use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::Status;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long one call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How much one answer may hold: whole stores of tests are read at once.
const MAX_ANSWER_BYTES: usize = 512 * 1024 * 1024;

/// A client of one member.
#[derive(Debug, Clone)]
pub struct EtcdApi {
    grpc: Grpc<Channel>,
    /// Whether each call is made as root, with a token of its own.
    as_root: bool,
}

/// One entry of the store.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// Its key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Its value.
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
}

/// The head of every answer.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    /// The member that answered.
    #[prost(uint64, tag = "2")]
    member_id: u64,
    /// The store's revision.
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "bytes", tag = "2")]
    value: bytes::Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeleteRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(bool, tag = "8")]
    keys_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct CompactionRequest {
    #[prost(int64, tag = "1")]
    revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CompactionResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(int64, tag = "3")]
    db_size: i64,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(int64, tag = "9")]
    db_size_in_use: i64,
}

impl EtcdApi {
    /// A client of the member at `address`; connects on first use.
    pub fn new(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address is a URI");
        let channel = endpoint.timeout(CALL_DEADLINE).tcp_nodelay(true).connect_lazy();
        Self {
            grpc: Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES),
            as_root: false,
        }
    }

    /// The same, of a member with authentication: as root.
    #[must_use]
    pub fn as_root(self) -> Self {
        Self { as_root: true, ..self }
    }

    /// Makes a call.
    pub(crate) async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut request = tonic::Request::new(request);
        if self.as_root {
            let token = Self {
                as_root: false,
                ..self.clone()
            };
            let token = Box::pin(token.root_token()).await?;
            let token = token.parse().map_err(|_| Status::internal("a token is text"))?;
            request.metadata_mut().insert("token", token);
        }
        let mut grpc = self.grpc.clone();
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(path);
        let answer = grpc.unary(request, path, ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    /// Puts one key.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn put(&self, key: &str, value: bytes::Bytes) -> Result<i64, Status> {
        let request = PutRequest { key: key.into(), value };
        let answer: PutResponse = self.call("/etcdserverpb.KV/Put", request).await?;
        Ok(answer.header.unwrap_or_default().revision)
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn delete(&self, key: &str) -> Result<(), Status> {
        let request = DeleteRequest { key: key.into() };
        // What was deleted does not matter.
        let _: PutResponse = self.call("/etcdserverpb.KV/DeleteRange", request).await?;
        Ok(())
    }

    /// Everything in the store, and its revision.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn everything(&self, keys_only: bool) -> Result<(i64, Vec<KeyValue>), Status> {
        let all = RangeRequest {
            key: vec![0],
            range_end: vec![0],
            keys_only,
        };
        let answer: RangeResponse = self.call("/etcdserverpb.KV/Range", all).await?;
        Ok((answer.header.unwrap_or_default().revision, answer.kvs))
    }

    /// The store's revision: grows by one with every transaction that writes.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn revision(&self) -> Result<i64, Status> {
        let one = RangeRequest {
            key: vec![0],
            ..RangeRequest::default()
        };
        let answer: RangeResponse = self.call("/etcdserverpb.KV/Range", one).await?;
        Ok(answer.header.unwrap_or_default().revision)
    }

    /// The keys in the store that contain `part`.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn keys_with(&self, part: &str) -> Result<Vec<String>, Status> {
        let (_, entries) = self.everything(true).await?;
        let keys = entries
            .into_iter()
            .map(|entry| String::from_utf8_lossy(&entry.key).into_owned());
        Ok(keys.filter(|key| key.contains(part)).collect())
    }

    /// Forgets all that was before `revision`.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn compact(&self, revision: i64) -> Result<(), Status> {
        let request = CompactionRequest { revision };
        let _: CompactionResponse = self.call("/etcdserverpb.KV/Compact", request).await?;
        Ok(())
    }

    /// Whether the member is the leader of the members.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn is_leader(&self) -> Result<bool, Status> {
        let answer: StatusResponse = self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        Ok(answer.leader == answer.header.unwrap_or_default().member_id)
    }

    /// Bytes of the member's database file; `None` while it has no leader.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn database_bytes(&self) -> Result<Option<i64>, Status> {
        let answer: StatusResponse = self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        Ok((answer.leader != 0).then_some(answer.db_size))
    }

    /// Bytes of the member's database that are in use: without what compaction has freed.
    ///
    /// # Errors
    /// What etcd answered.
    pub async fn database_bytes_in_use(&self) -> Result<Option<i64>, Status> {
        let answer: StatusResponse = self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        Ok((answer.leader != 0).then_some(answer.db_size_in_use))
    }
}
