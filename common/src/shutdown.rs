//! Stopping on a signal: the first SIGTERM or SIGINT asks for an orderly end, the second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::task;

/// Exit code after a second signal: 128 and SIGINT's number, as shells count.
const EXIT_INTERRUPTED: i32 = 130;

/// A token that is cancelled by the first signal.
///
/// # Errors
/// When signals cannot be listened for.
pub fn on_signal(group: &task::Group) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let first = token.clone();
    let ended = group.token().clone();
    group.spawn("signals", async move {
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first.is_cancelled() {
                tracing::warn!("second signal: ending at once");
                std::process::exit(EXIT_INTERRUPTED);
            }
            tracing::info!("stopping");
            first.cancel();
        }
    });
    Ok(token)
}
