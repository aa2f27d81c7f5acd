//! Who a program is to etcd: a user, and the file that the password is in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::DescriptorEncoder;
use secrecy::SecretString;

use crate::metric;

/// A user of etcd. The password is never kept beside it: it is read when it is needed, so that it can be changed while programs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// Where the password is.
    pub password_file: PathBuf,
}

/// Why a file gives no password. What is in it is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", .path.display())]
pub struct PasswordError {
    path: PathBuf,
    why: String,
}

/// Reads the password of a file: all of it but the ends of lines that follow.
///
/// # Errors
/// [`PasswordError`] if it cannot be read, is not UTF-8, or holds nothing.
pub fn read_password(path: &Path) -> Result<SecretString, PasswordError> {
    password(path, std::fs::read_to_string(path))
}

fn password(path: &Path, text: std::io::Result<String>) -> Result<SecretString, PasswordError> {
    let wrong = |why: &dyn fmt::Display| PasswordError {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let mut text = text.map_err(|error| wrong(&error))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err(wrong(&"there is no password in it"));
    }
    Ok(SecretString::from(text))
}

impl Credentials {
    /// The password, as the file has it now.
    pub(super) async fn password(&self) -> Result<SecretString, PasswordError> {
        password(
            &self.password_file,
            tokio::fs::read_to_string(&self.password_file).await,
        )
    }
}

/// How often a program asked etcd for a token, by what came of it.
#[derive(Debug, Default)]
pub struct Authentications {
    /// It was given one.
    pub(super) granted: AtomicU64,
    /// Etcd did not take the user and the password.
    pub(super) refused: AtomicU64,
    /// There was no answer, or no password to be read.
    pub(super) failed: AtomicU64,
}

impl Authentications {
    /// Writes them as metrics: each outcome; nothing of a program that never asked.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts = [
            ("granted", &self.granted),
            ("refused", &self.refused),
            ("failed", &self.failed),
        ];
        let counts = counts.map(|(outcome, count)| ([("outcome", outcome)], count.load(Ordering::Relaxed)));
        if counts.iter().all(|(_, count)| *count == 0) {
            return Ok(());
        }
        let help = "Times that etcd was asked for a token, by what came of it";
        metric::counters(encoder, "store_authentications", help, counts)
    }
}

/// How a program is let in.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The user, where etcd has its authentication enabled.
    pub credentials: Option<Credentials>,
    /// What came of it.
    pub authentications: Arc<Authentications>,
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_password_is_all_of_its_file_but_the_ends_of_lines_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        for (text, read) in [("p", "p"), ("p q\n", "p q"), (" p\r\n", " p"), ("p\nq\n\n", "p\nq")] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read_password(&file).unwrap().expose_secret(), read, "{text:?}");
        }
    }

    #[test]
    fn a_file_without_a_password_is_named_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let why = |file: &Path| read_password(file).unwrap_err().to_string();
        assert!(why(&file).starts_with(&format!("{}: ", file.display())));
        std::fs::write(&file, "\n").unwrap();
        assert!(why(&file).ends_with(": there is no password in it"));
        std::fs::write(&file, b"hush\xff").unwrap();
        assert!(!why(&file).contains("hush"));
    }
}
