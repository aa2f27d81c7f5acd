//! Opens the store that a URL names.
//!
//! - `etcd://host:port,host:port`: the members of an etcd cluster.
//! - `file:DIR`: a store file in the directory DIR, for one process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SharedStore;
use super::etcd::{Access, ConnectError, EtcdConfig, EtcdStore};
use super::file::{FileStore, OpenError};

/// Why a URL names no store that can be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenUrlError {
    /// It begins with neither `etcd://` nor `file:`.
    #[error("the store {0:?} is neither etcd://host:port,… nor file:DIR")]
    Scheme(String),
    /// A member of the cluster is not `host:port`.
    #[error("the etcd endpoint {endpoint:?} is not host:port: {why}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A store file, where only etcd will do.
    #[error("this is for etcd, not for a store file")]
    NotEtcd,
    /// `file:` without a directory.
    #[error("file: needs a directory, as in file:/var/lib/postrider")]
    NoDirectory,
    /// `file://host/…`.
    #[error("the store {0:?} names a host; a directory is file:DIR or file:///DIR")]
    FileHost(String),
    /// The cluster cannot be called.
    #[error(transparent)]
    Etcd(#[from] ConnectError),
    /// The file cannot be opened.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// What a URL says.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Etcd(Vec<String>),
    File(PathBuf),
}

/// Opens the store that `url` names. `prefix` is what all keys in etcd begin with, `access` how etcd lets the program in; a store file holds one cell and
/// has neither.
///
/// # Errors
/// As [`OpenUrlError`]. A cluster that cannot be reached is no error: its calls fail until it can.
pub async fn open(url: &str, prefix: &str, access: Access) -> Result<SharedStore, OpenUrlError> {
    Ok(match parse(url)? {
        Target::Etcd(endpoints) => {
            let config = EtcdConfig {
                access,
                ..EtcdConfig::new(endpoints, prefix)
            };
            Arc::new(EtcdStore::connect(config).await?)
        }
        Target::File(directory) => Arc::new(FileStore::open(&directory).await?),
    })
}

/// Whether `url` can name a store; nothing is opened.
///
/// # Errors
/// As [`open`], as far as the text is to blame.
pub fn check(url: &str) -> Result<(), OpenUrlError> {
    parse(url).map(drop)
}

/// The members of the etcd that `url` names.
///
/// # Errors
/// As [`open`]; [`OpenUrlError::NotEtcd`] if it names a store file.
pub fn etcd_endpoints(url: &str) -> Result<Vec<String>, OpenUrlError> {
    match parse(url)? {
        Target::Etcd(endpoints) => Ok(endpoints),
        Target::File(_) => Err(OpenUrlError::NotEtcd),
    }
}

fn parse(url: &str) -> Result<Target, OpenUrlError> {
    if let Some(endpoints) = url.strip_prefix("etcd://") {
        let endpoints = endpoints.strip_suffix('/').unwrap_or(endpoints);
        let endpoints: Result<_, _> = endpoints.split(',').map(endpoint).collect();
        return Ok(Target::Etcd(endpoints?));
    }
    let Some(directory) = url.strip_prefix("file:") else {
        return Err(OpenUrlError::Scheme(url.to_owned()));
    };
    let directory = match directory.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err(OpenUrlError::FileHost(url.to_owned())),
        None => directory,
    };
    if directory.is_empty() {
        return Err(OpenUrlError::NoDirectory);
    }
    Ok(Target::File(Path::new(directory).to_owned()))
}

fn endpoint(text: &str) -> Result<String, OpenUrlError> {
    let wrong = |why| {
        // What stands before an @ may be a password, and is not repeated.
        let endpoint = text.rsplit('@').next().unwrap_or(text).to_owned();
        Err(OpenUrlError::Endpoint { endpoint, why })
    };
    if text.contains('@') {
        return wrong("a user and a password do not belong here");
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("there is no port");
    };
    if !port.parse().is_ok_and(|port: u16| port > 0) {
        return wrong("the port is not a number from 1 to 65535");
    }
    // As the URL standard reads hosts; an IPv6 address stands in brackets.
    if host.is_empty() || host.contains(['/', '?', '#', '\\', '%']) || url::Host::parse(host).is_err() {
        return wrong("the host is not a name or an address");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_right_is_understood() {
        let etcd = |endpoints: &[&str]| Target::Etcd(endpoints.iter().map(|&endpoint| endpoint.into()).collect());
        let right = [
            ("etcd://127.0.0.1:2379", etcd(&["127.0.0.1:2379"])),
            ("etcd://a.example:1,[::1]:65535/", etcd(&["a.example:1", "[::1]:65535"])),
            ("file:/var/lib/postrider", Target::File("/var/lib/postrider".into())),
            ("file:data", Target::File("data".into())),
            ("file:///var/lib/postrider", Target::File("/var/lib/postrider".into())),
        ];
        for (url, target) in right {
            assert_eq!(parse(url).unwrap(), target, "{url}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = [
            ("", "the store \"\" is neither etcd://host:port,… nor file:DIR"),
            (
                "etcd:a:1",
                "the store \"etcd:a:1\" is neither etcd://host:port,… nor file:DIR",
            ),
            (
                "http://a:1",
                "the store \"http://a:1\" is neither etcd://host:port,… nor file:DIR",
            ),
            ("etcd://", "the etcd endpoint \"\" is not host:port: there is no port"),
            (
                "etcd://a:1,",
                "the etcd endpoint \"\" is not host:port: there is no port",
            ),
            ("etcd://a", "the etcd endpoint \"a\" is not host:port: there is no port"),
            (
                "etcd://a:0",
                "the etcd endpoint \"a:0\" is not host:port: the port is not a number from 1 to 65535",
            ),
            (
                "etcd://a:65536",
                "the etcd endpoint \"a:65536\" is not host:port: the port is not a number from 1 to 65535",
            ),
            (
                "etcd://:1",
                "the etcd endpoint \":1\" is not host:port: the host is not a name or an address",
            ),
            (
                "etcd://u:p@a:1",
                "the etcd endpoint \"a:1\" is not host:port: a user and a password do not belong here",
            ),
            (
                "etcd://a/b:1",
                "the etcd endpoint \"a/b:1\" is not host:port: the host is not a name or an address",
            ),
            (
                "etcd://::1:1",
                "the etcd endpoint \"::1:1\" is not host:port: the host is not a name or an address",
            ),
            ("file:", "file: needs a directory, as in file:/var/lib/postrider"),
            (
                "file://data",
                "the store \"file://data\" names a host; a directory is file:DIR or file:///DIR",
            ),
        ];
        for (url, message) in wrong {
            assert_eq!(parse(url).unwrap_err().to_string(), message, "{url}");
        }
    }

    #[tokio::test]
    async fn a_store_file_is_opened_and_a_cluster_is_not_called_yet() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file:{}/data", directory.path().display());
        let store = open(&url, "", Access::default()).await.unwrap();
        assert!(matches!(
            open(&url, "", Access::default()).await,
            Err(OpenUrlError::File(OpenError::InUse { .. }))
        ));
        drop(store);
        open("etcd://localhost:1", "/cell/", Access::default()).await.unwrap();
    }
}
