//! Name servers that fail in every way, and names that are bound to a forbidden address: attempts fail as they should, nothing goes where it must not, and
//! the agent goes on.

use std::net::Ipv4Addr;
use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::chaos::witness::Witness;
use postrider_tests::cluster::{Cluster, Start};
use postrider_tests::dns::{NameServer, Says};
use postrider_tests::http::counted;
use postrider_tests::namespace::Namespace;
use postrider_tests::wait;

use crate::FLOW;

/// What the receiver is called.
const NAME: &str = "receiver.example.com";

/// An address that no policy of the test allows: the namespace's own, so nothing leaves it.
const FORBIDDEN: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);

/// An address at which nobody listens.
const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);

/// How many addresses a name with many has.
const MANY: usize = 60;

/// So many attempts that end as expected tell how something is answered.
const ENOUGH: u64 = 3;

/// So many deliveries tell that it goes on.
const GOES_ON: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_name_servers_say_attempts_tell_of_it_nothing_goes_to_a_forbidden_address_and_all_arrives() {
    let namespace = Namespace::new().await;
    namespace.watch_address(FORBIDDEN).await;
    let names = NameServer::start(namespace.host()).await;
    let folder = tempfile::tempdir().unwrap();
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {}\n", namespace.host())).unwrap();
    let mut cluster = Cluster::beside(&namespace, 1, 0).await;
    let start = Start::within(&namespace).resolving_by(&resolv_conf);
    cluster.add_agent_by(start).await;
    cluster.settled().await;
    let course = Course::of(9000, 12).paced(150.0);
    let witness = Witness::start(&course, namespace.host(), None, Duration::ZERO).named(NAME);
    let receiver = [namespace.host()];
    names.say(NAME, Says::these(&receiver));
    let trial = Trial::with(cluster, course, witness).await;
    let publishing = trial.publishing();
    let trouble = async {
        let (many, mixed) = ([receiver[0], NOBODY].repeat(MANY / 2), [receiver[0], FORBIDDEN]);
        let in_turn = |other: Ipv4Addr| Says::Addresses(vec![receiver.to_vec(), vec![other]]);
        let not_found = Some("NAME_NOT_FOUND");
        let turns = [
            ("no such name", Says::Code(3), not_found, false),
            ("failure", Says::Code(2), not_found, false),
            ("silence", Says::Silence, not_found, false),
            ("no address", Says::Addresses(Vec::new()), not_found, false),
            ("many addresses", Says::these(&many), None, true),
            ("one address, then another", in_turn(NOBODY), Some("CONNECT"), true),
            (
                "a forbidden address in turn",
                in_turn(FORBIDDEN),
                Some("BLOCKED_ADDRESS"),
                true,
            ),
            (
                "a forbidden address among others",
                Says::these(&mixed),
                Some("BLOCKED_ADDRESS"),
                false,
            ),
        ];
        for (what, says, reason, arrives) in turns {
            goes_on(&trial, what).await;
            let (failed, asked) = (failed(&trial, &namespace, reason).await, names.asked());
            names.say(NAME, says);
            wait::until(&format!("attempts to fail: {what}"), FLOW, async || {
                let now = self::failed(&trial, &namespace, reason).await;
                (reason.is_none() || now >= failed + ENOUGH).then_some(())
            })
            .await;
            if arrives {
                goes_on(&trial, what).await;
            }
            assert!(names.asked() > asked, "{what}: nobody asked");
            names.say(NAME, Says::these(&receiver));
        }
        trial.journal.stop();
    };
    tokio::join!(publishing, trouble);
    trial.quiet(FLOW).await;
    assert_eq!(namespace.watched().await, 0, "packets to the forbidden address");
    assert_eq!(trial.assert_clean().await.repeats, 0);
    namespace.knock(FORBIDDEN).await;
    assert!(namespace.watched().await > 0, "it would have been seen");
}

/// Waits until some more is delivered.
async fn goes_on(trial: &Trial, what: &str) {
    let taken = trial.witness.log().taken();
    let what = format!("deliveries to go on: {what}");
    trial
        .witness
        .until(&what, FLOW, |log| log.taken() >= taken + GOES_ON)
        .await;
}

/// How many attempts failed so, as the agent counts them.
async fn failed(trial: &Trial, namespace: &Namespace, reason: Option<&str>) -> u64 {
    let Some(reason) = reason else { return 0 };
    let metrics = namespace.get(trial.cluster.agents[0].addresses()[0], "/metrics").await;
    counted(
        &metrics,
        &format!("postrider_attempts_failed_total{{reason=\"{reason}\"}}"),
    )
}
