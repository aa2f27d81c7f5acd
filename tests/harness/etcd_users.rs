//! etcd's authentication: one user for the programs, whose password tests change, and root for the tests themselves.

use std::path::PathBuf;

use tonic::Status;

use crate::etcd::Etcd;
use crate::etcd_api::EtcdApi;

/// The user that the programs are, and the role that it has.
pub const USER: &str = "postrider";

/// The password that it has first.
pub const FIRST_PASSWORD: &str = "first";

/// The administrator, and its password.
const ROOT: &str = "root";

/// etcd's number for a permission to read and to write.
const READ_AND_WRITE: i32 = 2;

/// A name, or a user and its role, or a user and its password.
#[derive(Clone, PartialEq, prost::Message)]
struct Names {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    other: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Granted {
    #[prost(string, tag = "1")]
    role: String,
    #[prost(message, optional, tag = "2")]
    permission: Option<Permission>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Permission {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct AuthenticateResponse {
    #[prost(string, tag = "2")]
    token: String,
}

impl EtcdApi {
    /// A token of root's.
    pub(crate) async fn root_token(self) -> Result<String, Status> {
        let answer: AuthenticateResponse = self.call("/etcdserverpb.Auth/Authenticate", names(ROOT, ROOT)).await?;
        Ok(answer.token)
    }
}

impl Etcd {
    /// Makes a user that may do everything with keys that begin with `prefix` and nothing else, puts its password into the file, and enables
    /// authentication. From now on clients of it are root.
    pub async fn guard(&mut self, prefix: &str) {
        self.write_password(FIRST_PASSWORD);
        let mut end = prefix.as_bytes().to_vec();
        let last = end.last_mut().expect("a prefix is not empty");
        *last += 1;
        let permission = Granted {
            role: USER.to_owned(),
            permission: Some(Permission {
                kind: READ_AND_WRITE,
                key: prefix.into(),
                range_end: end,
            }),
        };
        self.administer("/etcdserverpb.Auth/UserAdd", names(ROOT, ROOT)).await;
        self.administer("/etcdserverpb.Auth/UserGrantRole", names(ROOT, ROOT))
            .await;
        self.administer("/etcdserverpb.Auth/RoleAdd", names(USER, "")).await;
        self.administer("/etcdserverpb.Auth/RoleGrantPermission", permission)
            .await;
        self.administer("/etcdserverpb.Auth/UserAdd", names(USER, FIRST_PASSWORD))
            .await;
        self.administer("/etcdserverpb.Auth/UserGrantRole", names(USER, USER))
            .await;
        self.administer("/etcdserverpb.Auth/AuthEnable", Nothing {}).await;
        self.is_guarded = true;
    }

    /// Disables authentication again.
    pub async fn unguard(&mut self) {
        self.administer("/etcdserverpb.Auth/AuthDisable", Nothing {}).await;
        self.is_guarded = false;
    }

    /// Where the password of the programs' user is.
    pub fn password_file(&self) -> PathBuf {
        self.folder().join("password")
    }

    /// Puts a password into the file.
    pub fn write_password(&self, password: &str) {
        std::fs::write(self.password_file(), format!("{password}\n")).expect("a password can be written");
    }

    /// Changes the password of the programs' user in etcd. The file is left as it is.
    pub async fn change_password(&self, password: &str) {
        self.administer("/etcdserverpb.Auth/UserChangePassword", names(USER, password))
            .await;
    }

    async fn administer<Q: prost::Message + 'static>(&self, path: &'static str, request: Q) {
        let done: Result<Nothing, Status> = self.client(self.running()).call(path, request).await;
        done.unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

fn names(name: &str, other: &str) -> Names {
    Names {
        name: name.to_owned(),
        other: other.to_owned(),
    }
}
