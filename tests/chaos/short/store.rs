//! The store in a file, killed in a process of its own.

use std::process::Stdio;

use postrider_tests::process::program;
use tokio::process::Command;

use crate::FLOW;

#[tokio::test]
async fn the_store_in_a_file_killed_at_random_moments_keeps_what_it_acknowledged() {
    let mut command = Command::new(program("chaos"));
    command
        .args(["store", "--kills", "60"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(FLOW, command.output())
        .await
        .expect("it ends")
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
