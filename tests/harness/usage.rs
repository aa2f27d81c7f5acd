//! What a process has used, by the operating system's own accounting (Linux: /proc).

use std::ops::Sub;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Clock ticks a second in /proc: 100 on every Linux that this runs on (the kernel's USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Where control groups for memory are.
const V1: &str = "/sys/fs/cgroup/memory";

/// Where control groups are, where there is one kind.
const V2: &str = "/sys/fs/cgroup";

/// How many groups this process has made.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// What one process has used since it started.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Seconds of processor time, user and system.
    pub cpu_seconds: f64,
    /// Bytes written by system calls, to files and sockets.
    pub written_bytes: u64,
    /// Bytes resident now.
    pub resident_bytes: u64,
    /// Most bytes that were ever resident.
    pub peak_bytes: u64,
}

impl Usage {
    /// What process `pid` has used; zeros where the system does not say.
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        Self::parse(&read("stat"), &read("io"), &read("status"))
    }

    fn parse(stat: &str, io: &str, status: &str) -> Self {
        // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field after it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|field| field.parse::<f64>().ok())
                .unwrap_or_default()
        };
        let named = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or_default()
        };
        Self {
            cpu_seconds: (ticks(11) + ticks(12)) / TICKS_PER_SECOND,
            written_bytes: named(io, "wchar"),
            resident_bytes: named(status, "VmRSS") * 1024,
            peak_bytes: named(status, "VmHWM") * 1024,
        }
    }
}

impl Sub for Usage {
    type Output = Self;

    /// What was used in between; the memory is that of the later moment.
    fn sub(self, before: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            ..self
        }
    }
}

/// How many files and sockets process `pid` has open.
pub fn open_files_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// From now on process `pid` may have no file descriptor of this number or above: what it has stays open.
///
/// # Panics
/// If this machine cannot, with what to install.
pub async fn limit_files(pid: u32, below: u32) {
    let (pid, limit) = (pid.to_string(), format!("--nofile={below}:"));
    let done = tokio::process::Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status()
        .await;
    let done = done.is_ok_and(|status| status.success());
    assert!(done, "prlimit: apt-get install util-linux");
}

/// Programs that together get so much memory: a control group. It goes with its last program.
pub struct Memory(PathBuf);

impl Memory {
    /// A group for as many bytes; who wants more is killed.
    ///
    /// # Panics
    /// If this machine cannot.
    pub fn limited(bytes: u64) -> Self {
        // Version 1 of control groups has a tree for memory; version 2 has one for all.
        let (tree, limit) = match Path::new(V1).is_dir() {
            true => (V1, "memory.limit_in_bytes"),
            false => (V2, "memory.max"),
        };
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let group = Path::new(tree).join(format!("postrider-test-{}-{number}", std::process::id()));
        let made = std::fs::create_dir(&group).and_then(|()| std::fs::write(group.join(limit), bytes.to_string()));
        made.unwrap_or_else(|error| panic!("control groups for memory (run as root): {}: {error}", group.display()));
        Self(group)
    }

    /// A command that enters the group, and ends by becoming the command behind it.
    pub fn enter(&self) -> [String; 4] {
        const SCRIPT: &str = "echo $$ > \"$0\" && exec \"$@\"";
        let list = self.0.join("cgroup.procs").display().to_string();
        ["sh".to_owned(), "-c".to_owned(), SCRIPT.to_owned(), list]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounting_of_a_process_is_read() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 1 0 100 1 1";
        let io = "rchar: 1\nwchar: 77\n";
        let status = "Name:\ta\nVmHWM:\t     300 kB\nVmRSS:\t     200 kB\n";
        let usage = Usage::parse(stat, io, status);
        let wanted = Usage {
            cpu_seconds: 4.0,
            written_bytes: 77,
            resident_bytes: 204_800,
            peak_bytes: 307_200,
        };
        assert_eq!(usage, wanted);
        assert_eq!((usage - wanted).cpu_seconds, 0.0);
        assert!(Usage::of(std::process::id()).resident_bytes > 0);
    }
}
