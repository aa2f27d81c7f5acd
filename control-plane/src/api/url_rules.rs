//! Where listener URLs are judged: by the egress guard, with this deployment's policy.

use std::sync::Arc;

pub(crate) use postrider_common::egress::UrlError;

/// Judges listener URLs: answers the canonical form.
pub(crate) type UrlCheck = Arc<dyn Fn(&str) -> Result<String, UrlError> + Send + Sync>;
