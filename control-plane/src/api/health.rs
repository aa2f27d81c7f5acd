//! What gRPC's health service says: of the whole server, and of publishing, which is refused while the store is nearly full.

use std::time::Duration;

use postrider_proto::v1::publish_service_server::SERVICE_NAME;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// How often it is looked whether publishing is served: more often than that can change.
const EVERY: Duration = Duration::from_secs(1);

/// Says of PublishService whether `publishes`, and that nothing is served once `stop` is given.
pub(crate) async fn tell(health: HealthReporter, publishes: impl Fn() -> bool + Send, stop: CancellationToken) {
    let mut told = None;
    let telling = async {
        loop {
            let serves = publishes();
            if told.replace(serves) != Some(serves) {
                let status = if serves {
                    ServingStatus::Serving
                } else {
                    ServingStatus::NotServing
                };
                health.set_service_status(SERVICE_NAME, status).await;
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(telling).await;
    for service in ["", SERVICE_NAME] {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
}
