//! Metrics and probes over HTTP: `/metrics` (OpenMetrics text), `/livez` (the process answers), `/readyz` (with reasons if not).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::task;

/// Why the process is not ready: each part that is not says why. Clones are the same board.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// `part` is not ready.
    pub fn not_ready(&self, part: &'static str, reason: impl Into<String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, reason.into());
    }

    /// `part` is ready.
    pub fn ready(&self, part: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    /// One line for each part that is not ready.
    pub fn reasons(&self) -> Vec<String> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(part, reason)| format!("{part}: {reason}")).collect()
    }
}

/// How long open requests for metrics may take to end when the process stops.
pub const STOP_GRACE: Duration = Duration::from_secs(1);

/// The media type of the OpenMetrics text format, version 1.0.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Listens on `address`, says so on standard output, and serves until the group stops.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn start(
    group: &task::Group,
    address: SocketAddr,
    registry: Registry,
    readiness: Readiness,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("listening on {address}: {error}")))?;
    println!("listening on {} (metrics)", listener.local_addr()?);
    let stop = group.token().clone();
    group.spawn("admin", async move {
        if let Err(error) = serve(listener, Arc::new(registry), readiness, stop).await {
            tracing::error!(%error, "metrics and probes are not served any more");
        }
    });
    Ok(())
}

async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    readiness: Readiness,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let metrics = move || {
        let registry = registry.clone();
        async move {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &registry) {
                Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        }
    };
    let ready = move || {
        let reasons = readiness.reasons();
        async move {
            if reasons.is_empty() {
                (StatusCode::OK, "ready\n".to_owned())
            } else {
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not ready:\n{}\n", reasons.join("\n")),
                )
            }
        }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready));
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}
