//! Programs run by tests: started, watched, stopped, paused, killed; their logs shown when a test fails.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How many lines of a log are shown when a test fails: enough for the last reasons, few enough for several programs.
const TAIL_LINES: usize = 60;

/// How long a program may take to serve: debug builds on a busy machine with two cores.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A program that was started. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    listening: watch::Receiver<Vec<SocketAddr>>,
    _reader: JoinSet<()>,
}

impl Process {
    /// Starts `program`; what it prints is appended to `folder/name.log`.
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        program: &Path,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
    ) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log can be written");
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file.try_clone().expect("a file can be shared"))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (sender, listening) = watch::channel(Vec::new());
        let mut reader = JoinSet::new();
        reader.spawn(copy(stdout, file, sender));
        Self {
            name: name.to_owned(),
            child,
            log,
            listening,
            _reader: reader,
        }
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it has ended and was waited for.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// The addresses that it said it listens on, so far.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listening.borrow().clone()
    }

    /// Waits until it said `listening on ADDR` `count` times, and returns the addresses in that order.
    pub async fn listening(&mut self, count: usize) -> Vec<SocketAddr> {
        let mut listening = self.listening.clone();
        let ready = timeout(START_DEADLINE, listening.wait_for(|addresses| addresses.len() >= count));
        tokio::select! {
            ready = ready => match ready {
                Ok(Ok(addresses)) => addresses.clone(),
                Ok(Err(_)) => panic!("{} closed its output before it served\n{}", self.name, self.tail()),
                Err(_) => panic!("{} did not serve within {START_DEADLINE:?}\n{}", self.name, self.tail()),
            },
            ended = self.child.wait() => panic!("{} ended before it served: {ended:?}\n{}", self.name, self.tail()),
        }
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child
            .kill()
            .await
            .unwrap_or_else(|error| panic!("{} cannot be killed: {error}", self.name));
    }

    /// Sends a signal such as `TERM`, `STOP` or `CONT`.
    pub async fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string())
            .status()
            .await;
        assert!(
            status.is_ok_and(|status| status.success()),
            "{} cannot be sent {signal}",
            self.name
        );
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// After `deadline`.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => status.expect("a child can be waited for"),
            Err(_) => panic!("{} did not end within {deadline:?}\n{}", self.name, self.tail()),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// Everything it printed.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines it printed, under its name.
    pub fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!(
            "--- {} (last {} of {} lines)\n{}\n",
            self.name,
            tail.len(),
            lines.len(),
            tail.join("\n")
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

/// Copies a program's output to its log and notes the addresses it says it listens on.
async fn copy(stdout: ChildStdout, log: File, listening: watch::Sender<Vec<SocketAddr>>) {
    let mut log = tokio::fs::File::from_std(log);
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // A failing log must not fail the program.
        let _ = log.write_all(format!("{line}\n").as_bytes()).await;
        let _ = log.flush().await;
        if let Some(address) = listening_on(&line) {
            listening.send_modify(|addresses| addresses.push(address));
        }
    }
}

/// The address in a line such as `listening on 127.0.0.1:41234 (grpc)`.
pub(crate) fn listening_on(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening on ")?;
    rest.split_whitespace()
        .next()?
        .trim_start_matches("http://")
        .parse()
        .ok()
}

/// One of our own programs, as cargo built it beside the running test.
///
/// # Panics
/// If it was not built.
pub fn program(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("a running program has a path");
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "{name} was not built beside {}: run `make test`, or `cargo build --workspace --all-targets` first",
                here.display()
            )
        })
}
