//! Tests of webhooks as they are stored. Pure.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_proto::stored as pb;
use postrider_proto::stored::test_answer::Outcome;

use super::{
    Unreadable, VERSION, decode, decode_webhook, encode, encode_webhook, pack, readable_version, unpack, unreadable,
};
use crate::id::{AccountId, AgentId, WebhookId};
use crate::model::segment::Segment;
use crate::model::testing::{Answered, Phases, Said, Sent, Test, TestOutcome, TlsSeen, Transcript};
use crate::time::Timestamp;

/// Encodes a test.
pub fn encode_test(test: Test) -> Bytes {
    let Test { webhook, event } = test;
    encode(&pb::TestRequest {
        version: VERSION,
        account: webhook.account.as_str().to_owned(),
        webhook_id: webhook.id.as_str().to_owned(),
        webhook: encode_webhook(&webhook),
        event: pack(Segment {
            events: vec![Arc::new(event)],
            targets: Vec::new(),
            batch: None,
        }),
    })
}

/// Decodes a test.
///
/// # Errors
/// [`Unreadable`] if the bytes are not a test of a version that this release reads.
pub fn decode_test(bytes: Bytes) -> Result<Test, Unreadable> {
    let test: pb::TestRequest = decode(bytes)?;
    readable_version(test.version)?;
    let account = AccountId::new(&test.account).map_err(unreadable)?;
    let id = WebhookId::new(&test.webhook_id).map_err(unreadable)?;
    let event = unpack(test.event)?.events.pop();
    Ok(Test {
        webhook: decode_webhook(account, id, test.webhook)?,
        event: event
            .map(Arc::unwrap_or_clone)
            .ok_or_else(|| unreadable("a test without an event"))?,
    })
}

/// Encodes what an agent saw of a test.
pub fn encode_transcript(transcript: Transcript) -> Bytes {
    encode(&pb::TestAnswer {
        version: VERSION,
        agent: transcript.agent.as_str().to_owned(),
        outcome: Some(match transcript.outcome {
            TestOutcome::Delivered => Outcome::Delivered(pb::TestDelivered {}),
            TestOutcome::Failed(reason) => Outcome::Failed(reason),
            TestOutcome::NotMade(why) => Outcome::NotMade(why),
        }),
        detail: transcript.detail,
        start_time: transcript.start_time.as_millis(),
        duration_us: micros(transcript.duration),
        resolve_us: transcript.phases.resolve.map(micros),
        connect_us: transcript.phases.connect.map(micros),
        tls_us: transcript.phases.tls.map(micros),
        first_byte_us: transcript.phases.first_byte.map(micros),
        resolved: transcript.resolved.iter().map(ToString::to_string).collect(),
        address: transcript
            .address
            .map_or_else(String::new, |address| address.to_string()),
        tls: transcript.tls.map(|tls| pb::TestTls {
            version: tls.version,
            cipher_suite: tls.cipher_suite,
            alpn: tls.alpn,
            leaf: tls.leaf,
            verification_error: tls.verification_error,
            client_certificate_requested: tls.client_certificate_requested,
        }),
        token: transcript.token,
        sent: transcript.sent.map(|sent| pb::TestSent {
            headers: headers_to_pb(sent.headers),
            body: sent.body,
            signed_prefix: sent.signed_prefix,
            signers: sent.signers,
        }),
        said: transcript.answered.map(|answered| pb::TestSaid {
            status_code: answered.status.into(),
            http_version: answered.version,
            headers: headers_to_pb(answered.said.headers),
            headers_cut: answered.said.headers_cut,
            body: answered.said.body,
            body_cut: answered.said.body_cut,
        }),
    })
}

/// Decodes it.
///
/// # Errors
/// [`Unreadable`] if the bytes are not of a version that this release reads.
pub fn decode_transcript(bytes: Bytes) -> Result<Transcript, Unreadable> {
    let answer: pb::TestAnswer = decode(bytes)?;
    readable_version(answer.version)?;
    let outcome = match answer.outcome {
        Some(Outcome::Delivered(pb::TestDelivered {})) => TestOutcome::Delivered,
        Some(Outcome::Failed(reason)) => TestOutcome::Failed(reason),
        Some(Outcome::NotMade(why)) => TestOutcome::NotMade(why),
        None => return Err(unreadable("a test without an outcome")),
    };
    let resolved = answer.resolved.iter().map(|address| address.parse());
    let address = Some(answer.address).filter(|address| !address.is_empty());
    Ok(Transcript {
        agent: AgentId::new(&answer.agent).map_err(unreadable)?,
        outcome,
        detail: answer.detail,
        start_time: Timestamp::from_millis(answer.start_time),
        duration: Duration::from_micros(answer.duration_us),
        phases: Phases {
            resolve: answer.resolve_us.map(Duration::from_micros),
            connect: answer.connect_us.map(Duration::from_micros),
            tls: answer.tls_us.map(Duration::from_micros),
            first_byte: answer.first_byte_us.map(Duration::from_micros),
        },
        resolved: resolved.collect::<Result<_, _>>().map_err(unreadable)?,
        address: address.map(|address| address.parse().map_err(unreadable)).transpose()?,
        tls: answer.tls.map(|tls| TlsSeen {
            version: tls.version,
            cipher_suite: tls.cipher_suite,
            alpn: tls.alpn,
            leaf: tls.leaf,
            verification_error: tls.verification_error,
            client_certificate_requested: tls.client_certificate_requested,
        }),
        token: answer.token,
        sent: answer.sent.map(|sent| Sent {
            headers: headers_from_pb(sent.headers),
            body: sent.body,
            signed_prefix: sent.signed_prefix,
            signers: sent.signers,
        }),
        answered: answer.said.map(answered_from_pb).transpose()?,
    })
}

fn answered_from_pb(said: pb::TestSaid) -> Result<Answered, Unreadable> {
    Ok(Answered {
        status: u16::try_from(said.status_code).map_err(unreadable)?,
        version: said.http_version,
        said: Said {
            headers: headers_from_pb(said.headers),
            headers_cut: said.headers_cut,
            body: said.body,
            body_cut: said.body_cut,
        },
    })
}

fn headers_to_pb(headers: Vec<(String, String)>) -> Vec<pb::Header> {
    let header = |(name, value)| pb::Header { name, value };
    headers.into_iter().map(header).collect()
}

fn headers_from_pb(headers: Vec<pb::Header>) -> Vec<(String, String)> {
    headers.into_iter().map(|header| (header.name, header.value)).collect()
}

/// Whole microseconds; what is longer than half a million years stands for ever.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn texts() -> impl Strategy<Value = Vec<(String, String)>> {
        proptest::collection::vec(("[a-z-]{1,9}", "\\PC{0,9}"), 0..4)
    }

    fn phase() -> impl Strategy<Value = Option<Duration>> {
        option::of((0_u64..1 << 40).prop_map(Duration::from_micros))
    }

    fn outcome() -> impl Strategy<Value = TestOutcome> {
        prop_oneof![
            Just(TestOutcome::Delivered),
            "[A-Z_]{0,9}".prop_map(TestOutcome::Failed),
            "\\PC{0,9}".prop_map(TestOutcome::NotMade)
        ]
    }

    fn tls() -> impl Strategy<Value = TlsSeen> {
        ("\\PC{0,9}", "\\PC{0,9}", "\\PC{0,9}", any::<Vec<u8>>(), any::<bool>()).prop_map(
            |(version, cipher_suite, error, leaf, requested)| TlsSeen {
                version,
                cipher_suite,
                alpn: "h2".to_owned(),
                leaf: leaf.into(),
                verification_error: error,
                client_certificate_requested: requested,
            },
        )
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let fields = (
            texts(),
            any::<Vec<u8>>(),
            "\\PC{0,9}",
            proptest::collection::vec("[a-z]{1,4}", 0..3),
        );
        fields.prop_map(|(headers, body, signed_prefix, signers)| Sent {
            headers,
            body: body.into(),
            signed_prefix,
            signers,
        })
    }

    fn answered() -> impl Strategy<Value = Answered> {
        (any::<u16>(), texts(), any::<bool>(), "\\PC{0,30}", any::<bool>()).prop_map(
            |(status, headers, headers_cut, body, body_cut)| Answered {
                status,
                version: "HTTP/2".to_owned(),
                said: Said {
                    headers,
                    headers_cut,
                    body,
                    body_cut,
                },
            },
        )
    }

    proptest! {
        #[test]
        fn a_transcript_is_read_as_it_was_written(
            (outcome, detail, token, millis, addresses) in (outcome(), "\\PC{0,9}", "\\PC{0,9}", any::<i64>(), any::<Vec<std::net::IpAddr>>()),
            (resolve, connect, tls_phase, first_byte) in (phase(), phase(), phase(), phase()),
            (tls, sent, answered) in (option::of(tls()), option::of(sent()), option::of(answered())),
            address in option::of(any::<std::net::SocketAddrV4>()),
        ) {
            let transcript = Transcript {
                agent: AgentId::new("agent-1").unwrap(),
                outcome,
                detail,
                start_time: Timestamp::from_millis(millis),
                duration: connect.unwrap_or_default(),
                phases: Phases { resolve, connect, tls: tls_phase, first_byte },
                resolved: addresses,
                address: address.map(Into::into),
                tls,
                token,
                sent,
                answered,
            };
            prop_assert_eq!(decode_transcript(encode_transcript(transcript.clone())), Ok(transcript));
        }

        #[test]
        fn no_bytes_make_the_decoders_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = (decode_test(bytes.clone()), decode_transcript(bytes));
        }
    }
}
