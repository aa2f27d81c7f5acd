//! A client in another language that knows nothing of our files: Python over gRPC reflection, with its own receiver and verifier.

use std::time::Duration;

use postrider_tests::cluster::Cluster;
use postrider_tests::process::Process;
use postrider_tests::root;

#[tokio::test]
async fn a_python_client_uses_everything_by_reflection_alone() {
    let cluster = Cluster::start().await;
    let python = root().join(".tools/venv/bin/python");
    assert!(python.is_file(), "run `make venv`: {} is missing", python.display());
    let folder = tempfile::tempdir().unwrap();
    let script = root().join("tests/scenarios/client.py").display().to_string();
    let addresses = [0, 1].map(|index| cluster.control_planes[index].address.to_string());
    let mut client = Process::start(
        &python,
        "client.py",
        [script, addresses[0].clone(), addresses[1].clone()],
        folder.path(),
    );
    let status = client.ended(Duration::from_secs(60)).await;
    assert!(status.success(), "{status}\n{}", client.output());
    assert!(client.output().contains("all done"), "{}", client.output());
}
