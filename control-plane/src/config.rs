//! The control plane's settings.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use postrider_common::config::{self, Setting, Settings};
use postrider_common::egress;
use postrider_common::id::ControlPlaneId;
use postrider_common::shard;

/// What the control plane does, whoever starts it.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name of this replica.
    pub id: ControlPlaneId,
    /// How many shards the cell gets if its store is new; `None` means the stored count, or the default.
    pub shard_count: Option<NonZeroU16>,
    /// How long others wait before they take over from this replica.
    pub lease_ttl: Duration,
    /// Bytes that the store may grow to, if it does not say so itself; `None` means without limit.
    pub store_quota: Option<u64>,
    /// Which networks listener URLs may name.
    pub egress: egress::Policy,
}

/// Settings of its own.
pub const SETTINGS: &[Setting] = &[
    Setting::new(
        "listen",
        "ADDR",
        "127.0.0.1:50051",
        "Where gRPC is served; port 0 takes a free one",
    ),
    Setting::optional(
        "control-plane-id",
        "NAME",
        "The name of this replica; made up if not given",
    ),
    SHARDS,
    STORE_QUOTA,
];

/// The store's quota.
pub const STORE_QUOTA: Setting = Setting::new(
    "store-quota",
    "BYTES",
    "2147483648",
    "Bytes the store may grow to, if it does not say so itself (etcd: its --quota-backend-bytes); publishing stops at 70 %",
);

/// Reads the store's quota; 0 means without limit.
pub fn store_quota(settings: &mut Settings) -> Option<u64> {
    settings
        .maybe("store-quota", |text| {
            text.parse::<u64>().map_err(|_| "must be a number of bytes")
        })
        .filter(|quota| *quota != 0)
}

/// How many shards a new cell gets.
pub const SHARDS: Setting = Setting::optional(
    "shards",
    "COUNT",
    "How many shards a new cell gets, 1 to 1024: fixed from then on [default: 64]",
);

/// Most shards a cell may have: one transaction must be able to hold the epochs of many, and an agent watches each of its own.
const MAX_SHARDS: u16 = 1024;

/// Reads the count of shards.
pub fn shard_count(settings: &mut Settings) -> Option<NonZeroU16> {
    settings.maybe("shards", |text| match text.parse::<NonZeroU16>() {
        Ok(count) if count.get() <= MAX_SHARDS => Ok(count),
        _ => Err(format!(
            "must be a number from 1 to {MAX_SHARDS}; {} is the default",
            shard::DEFAULT_COUNT
        )),
    })
}

/// Reads what only the program needs besides: where to listen.
pub fn read(settings: &mut Settings, generated_id: ControlPlaneId) -> (Config, SocketAddr) {
    let config = Config {
        id: settings
            .maybe("control-plane-id", ControlPlaneId::new)
            .unwrap_or(generated_id),
        shard_count: shard_count(settings),
        lease_ttl: config::lease_ttl(settings),
        store_quota: store_quota(settings),
        egress: config::egress(settings),
    };
    (config, settings.listen("listen"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use postrider_common::config::Exit;

    use super::*;

    fn shards(arguments: &[&str]) -> Result<Option<NonZeroU16>, Exit> {
        let arguments = arguments.iter().map(OsString::from);
        let mut settings = Settings::read("control-plane", "about", &[SETTINGS], arguments)?;
        let count = shard_count(&mut settings);
        settings.finish().map(|()| count)
    }

    #[test]
    fn a_cell_has_1_to_1024_shards() {
        assert!(matches!(shards(&[]), Ok(None)));
        for count in [1, 64, 1024] {
            let read = shards(&["--shards", &count.to_string()]);
            assert!(matches!(read, Ok(Some(read)) if read.get() == count));
        }
        for wrong in ["0", "1025", "many"] {
            assert!(
                matches!(shards(&["--shards", wrong]), Err(Exit::Mistakes(_))),
                "{wrong}"
            );
        }
    }
}
