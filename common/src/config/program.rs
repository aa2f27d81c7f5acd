//! Settings that several programs have, and how they are read.

use std::net::SocketAddr;
use std::time::Duration;

use super::{CONFIG, Exit, Mistakes, Setting, Settings, duration};
use crate::secret::{InvalidKey, Keyring};
use crate::store::etcd::{Credentials, read_password};
use crate::store::url::OpenUrlError;
use crate::{egress, store, telemetry};

/// Settings that every program has.
pub const COMMON: &[Setting] = &[
    Setting::optional(CONFIG, "FILE", "A TOML file with settings"),
    Setting::new(
        "metrics-listen",
        "ADDR",
        "127.0.0.1:9090",
        "Where /metrics, /livez and /readyz are served; port 0 takes a free one",
    ),
    Setting::new(
        "lease-ttl",
        "DURATION",
        "5s",
        "How long the cluster waits before it takes over from a process that died",
    ),
    Setting::repeated(
        "egress-allow",
        "CIDR",
        "Opens a network that webhooks may otherwise not be sent to, such as 127.0.0.0/8",
    ),
    Setting::new(
        "log",
        "FILTER",
        "info",
        "What is logged, such as debug or info,hyper=debug",
    ),
    Setting::new("log-format", "FORMAT", "text", "How it is logged: text or json"),
    Setting::switch(
        "insecure",
        "Allow listening beyond loopback without TLS and authentication",
    ),
];

/// Settings of programs that share a store.
pub const STORE: &[Setting] = &[
    Setting::new(
        "store",
        "URL",
        "etcd://127.0.0.1:2379",
        "The store: etcd://HOST:PORT,HOST:PORT… or file:DIR",
    ),
    Setting::new(
        "prefix",
        "KEY_PREFIX",
        "/postrider/",
        "Put before every key in etcd, so that several cells can share one",
    ),
    ETCD_USER,
    ETCD_PASSWORD_FILE,
    Setting::optional(
        "secret-key-file",
        "FILE",
        "The sealing keys, newest first: one base64 key of 32 bytes a line",
    ),
    Setting::secret("secret-key", "The sealing keys themselves, if there is no file"),
];

/// As whom etcd is called.
pub const ETCD_USER: Setting = Setting::optional("etcd-user", "NAME", "The user of an etcd with authentication");

/// Where the password is.
pub const ETCD_PASSWORD_FILE: Setting = Setting::optional(
    "etcd-password-file",
    "FILE",
    "The user's password; read again when etcd asks for it, so it can be changed while programs run",
);

/// Reads `etcd-user` and `etcd-password-file` for the store that `url` names.
pub fn etcd_credentials(settings: &mut Settings, url: &str) -> Option<Credentials> {
    let (user, file) = (ETCD_USER.name, ETCD_PASSWORD_FILE.name);
    let given = [user, file].map(|name| settings.values.contains_key(name));
    match given {
        [false, false] => return None,
        [true, false] => settings.mistake(file, "must be set, because etcd-user is"),
        [false, true] => settings.mistake(user, "must be set, because etcd-password-file is"),
        [true, true] => {}
    }
    if matches!(store::url::etcd_endpoints(url), Err(OpenUrlError::NotEtcd)) {
        settings.mistake(
            if given[0] { user } else { file },
            "this is for etcd, not for a store file",
        );
    }
    let name = |text: &str| match text {
        "" => Err("must be a name"),
        name => Ok(name.to_owned()),
    };
    let with_password = |text: &str| {
        let path = super::path(text).map_err(str::to_owned)?;
        read_password(&path).map_err(|error| error.to_string())?;
        Ok::<_, String>(path)
    };
    let (user, password_file) = (settings.maybe(user, name), settings.maybe(file, with_password));
    Some(Credentials {
        user: user?,
        password_file: password_file?,
    })
}

/// Shortest and longest lease: etcd grants no less than about two seconds, and nobody wants to wait a minute for a takeover.
const LEASE_TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(60);

/// Reads `lease-ttl`.
pub fn lease_ttl(settings: &mut Settings) -> Duration {
    settings.required("lease-ttl", *LEASE_TTL.start(), |text| match duration(text) {
        Ok(ttl) if LEASE_TTL.contains(&ttl) => Ok(ttl),
        Ok(_) => Err("must be 2s to 60s"),
        Err(rule) => Err(rule),
    })
}

/// Reads `egress-allow`.
pub fn egress(settings: &mut Settings) -> egress::Policy {
    let network = |text: &str| {
        text.parse::<ipnet::IpNet>()
            .map_err(|_| "must be a network such as 127.0.0.0/8")
    };
    egress::Policy::allowing(settings.all("egress-allow", network))
}

/// Reads `log` and `log-format`, and starts logging.
pub fn start_logging(settings: &mut Settings) {
    let filter = settings.maybe("log", telemetry::filter);
    let format = settings.maybe("log-format", str::parse::<telemetry::Format>);
    if let Some(filter) = filter {
        telemetry::start(filter, format.unwrap_or_default());
    }
}

/// What programs that share a store need besides their own settings.
#[derive(Debug)]
pub struct Shared {
    /// Where metrics and probes are served.
    pub metrics_listen: SocketAddr,
    /// The store's URL.
    pub store: String,
    /// Put before every key.
    pub prefix: String,
    /// As whom the store is called.
    pub credentials: Option<Credentials>,
    /// Seals and opens secrets.
    pub keyring: Keyring,
}

/// Reads the settings of a program that shares a store: its own by `own`, and the [`Shared`] ones. Starts logging.
///
/// # Errors
/// [`Exit`] if help was asked for, or with all mistakes.
pub fn read_program<T>(
    command: &'static str,
    about: &'static str,
    settings: &[Setting],
    own: impl FnOnce(&mut Settings) -> T,
) -> Result<(T, Shared), Exit> {
    let mut read = Settings::read(command, about, &[COMMON, STORE, settings], std::env::args_os().skip(1))?;
    let own = own(&mut read);
    let metrics_listen = read.listen("metrics-listen");
    let store = read.required("store", String::new(), |url| {
        store::url::check(url).map(|()| url.to_owned())
    });
    let prefix = read.required("prefix", String::new(), |prefix| Ok::<_, String>(prefix.to_owned()));
    let credentials = etcd_credentials(&mut read, &store);
    let keyring = keyring(&mut read);
    start_logging(&mut read);
    read.finish()?;
    let keyring = keyring.ok_or_else(|| Exit::Mistakes(Mistakes(vec![InvalidKey.to_string()])))?;
    Ok((
        own,
        Shared {
            metrics_listen,
            store,
            prefix,
            credentials,
            keyring,
        },
    ))
}

/// Reads the sealing keys from `secret-key-file` or `secret-key`; `None` if they are missing or wrong, which [`Settings::finish`] reports.
fn keyring(settings: &mut Settings) -> Option<Keyring> {
    let from_file = |text: &str| match std::fs::read_to_string(text) {
        Ok(keys) => Keyring::parse(&keys).map_err(|error| error.to_string()),
        Err(error) => Err(format!("{text}: {error}")),
    };
    let given = settings.values.contains_key("secret-key-file") || settings.values.contains_key("secret-key");
    if !given {
        settings.mistake("secret-key-file", format!("must be set; {InvalidKey}"));
    }
    settings
        .maybe("secret-key-file", from_file)
        .or_else(|| settings.maybe("secret-key", Keyring::parse))
}
