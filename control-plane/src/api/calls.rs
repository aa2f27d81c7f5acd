//! Counts the API's calls: each once, when it ends, by method, status code and reason.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use http_body_util::BodyExt as _;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How many calls ended, by the labels `method` (such as `postrider.v1.PublishService/Publish`; `other` for whatever is not the API's), `code` (as gRPC's
/// libraries spell it: `ResourceExhausted`) and `reason` (of the ErrorInfo, else empty). Clones are the same counts.
pub(crate) type Calls = Family<Labels, Counter>;

type Labels = [(&'static str, Cow<'static, str>); 3];

/// The API's methods, as paths without the first slash. What callers write is never a label.
static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(postrider_proto::API_DESCRIPTOR)
        .unwrap_or_default()
        .file;
    let methods = files.iter().flat_map(|file| {
        file.service.iter().flat_map(move |service| {
            let names = service.method.iter().map(|method| method.name());
            names.map(move |method| format!("{}.{}/{method}", file.package(), service.name()))
        })
    });
    methods.collect()
});

/// A call that has begun. Dropped before it has ended, it was cancelled.
pub(super) struct Call {
    calls: Calls,
    method: &'static str,
    ended: bool,
}

impl Call {
    pub(super) fn begun(calls: &Calls, path: &str) -> Self {
        let method = path.strip_prefix('/').and_then(|path| METHODS.get(path));
        Self {
            calls: calls.clone(),
            method: method.map_or("other", String::as_str),
            ended: false,
        }
    }

    /// Counts it when `answer` ends: at once if its status is known, else with its last frame.
    pub(super) fn answered(mut self, answer: http::Response<Body>) -> http::Response<Body> {
        if let Some(status) = Status::from_header_map(answer.headers()) {
            self.end(&status);
            return answer;
        }
        answer.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    self.end(&status);
                }
                frame
            }))
        })
    }

    fn end(&mut self, status: &Status) {
        self.ended = true;
        let code = match status.code() {
            Code::Ok => Cow::Borrowed("OK"),
            code => Cow::Owned(format!("{code:?}")),
        };
        let reason = status.get_details_error_info().map(|info| Cow::Owned(info.reason));
        let labels = [
            ("method", Cow::Borrowed(self.method)),
            ("code", code),
            ("reason", reason.unwrap_or_default()),
        ];
        self.calls.get_or_create(&labels).inc();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.end(&Status::cancelled(""));
        }
    }
}
