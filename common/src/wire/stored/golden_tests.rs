//! The bytes of every stored message: what a release has written is read by all that follow.
//!
//! `golden-1.txt` holds, for each message that is a value of the store (and each choice within it), its name, its bytes and what they say. The bytes are
//! never changed: a field that is renumbered, retyped or removed turns this red. Where a message learns a field, its text has it without a value, and a line with a
//! value is added. That they are decoded field by field is all it shows; what the models make of them is shown by a whole store
//! of an earlier build among the scenarios.

use std::fmt::Debug;

use postrider_proto::stored as pb;

use super::{
    Bytes, Unreadable, decode, decode_account, decode_command, decode_event_type, decode_failing, decode_test,
    decode_transcript, decode_usage, decode_webhook, encode, unpack, unpack_history,
};
use crate::id::{AccountId, EventName, WebhookId};

const GOLDEN: &str = include_str!("golden-1.txt");

const PROTO: &str = include_str!("../../../../proto/postrider/stored/v1/stored.proto");

fn read<M: prost::Message + Default + Debug>(bytes: &Bytes) -> Result<(String, Bytes), Unreadable> {
    let message: M = decode(bytes.clone())?;
    Ok((format!("{message:?}"), encode(&message)))
}

/// What a message of this name says, and what this release writes for it.
fn reread(name: &str, bytes: &Bytes) -> (String, Bytes) {
    let read = match name {
        "Account" => read::<pb::Account>,
        "Agent" => read::<pb::Agent>,
        "Assignment" => read::<pb::Assignment>,
        "Cell" => read::<pb::Cell>,
        "Command" => read::<pb::Command>,
        "Dedupe" => read::<pb::Dedupe>,
        "EventType" => read::<pb::EventType>,
        "Failing" => read::<pb::Failing>,
        "HistorySegment" => read::<pb::HistorySegment>,
        "Leader" => read::<pb::Leader>,
        "Owner" => read::<pb::Owner>,
        "Packed" => read::<pb::Packed>,
        "Progress" => read::<pb::Progress>,
        "Segment" => read::<pb::Segment>,
        "TestAnswer" => read::<pb::TestAnswer>,
        "TestRequest" => read::<pb::TestRequest>,
        "Usage" => read::<pb::Usage>,
        "Webhook" => read::<pb::Webhook>,
        "WebhookCount" => read::<pb::WebhookCount>,
        "WriterMark" => read::<pb::WriterMark>,
        other => panic!("{other} is not a stored message"),
    };
    read(bytes).unwrap()
}

fn bytes_of(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Name, bytes and text of each.
fn golden() -> Vec<(&'static str, Bytes, &'static str)> {
    let lines: Vec<&str> = GOLDEN.lines().collect();
    let one = |lines: &[&'static str]| {
        let (name, hex) = lines[0].split_once(' ').unwrap();
        (name, bytes_of(hex), lines[1])
    };
    lines.chunks(2).map(one).collect()
}

#[test]
fn every_stored_message_of_version_1_is_read_and_written_as_it_was() {
    for (name, bytes, text) in golden() {
        let (read, written) = reread(name, &bytes);
        assert_eq!(read, text, "{name}");
        assert_eq!(written, bytes, "{name}");
    }
}

#[test]
fn every_message_of_the_protobuf_file_is_among_the_golden_ones() {
    let messages = PROTO.lines().filter_map(|line| line.strip_prefix("message "));
    for message in messages.filter_map(|line| line.split(' ').next()) {
        let somewhere = golden().iter().any(|(name, _, text)| {
            *name == message || text.contains(&format!("{message} {{")) || text.contains(&format!("({message})"))
        });
        assert!(somewhere, "{message}");
    }
}

#[test]
fn what_a_later_release_wrote_in_another_version_is_refused_and_not_misread() {
    // Nothing but `version: 2`.
    let later = || Bytes::from_static(&[8, 2]);
    let account = || AccountId::new("a").unwrap();
    let refusals = [
        ("Account", decode_account(account(), later()).err()),
        ("Command", decode_command(later()).err()),
        (
            "EventType",
            decode_event_type(EventName::new("A").unwrap(), later()).err(),
        ),
        ("Failing", decode_failing(later()).err()),
        ("HistorySegment", unpack_history(later()).err()),
        ("Segment", unpack(later()).err()),
        ("TestAnswer", decode_transcript(later()).err()),
        ("TestRequest", decode_test(later()).err()),
        ("Usage", decode_usage(later()).err()),
        (
            "Webhook",
            decode_webhook(account(), WebhookId::new("w").unwrap(), later()).err(),
        ),
    ];
    for (name, refusal) in refusals {
        let refusal = refusal.unwrap_or_else(|| panic!("{name} is read"));
        assert!(refusal.to_string().contains("version 2"), "{name}: {refusal}");
    }
}
