//! What an agent saw of a test, as the API says it. Pure.

use std::time::Duration;

use postrider_common::model::testing::{Answered, Sent, TestOutcome, TlsSeen, Transcript};
use postrider_proto::v1;
use v1::test_webhook_response::Outcome;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::time::ASN1Time;

use super::convert;

/// How many names of a certificate are told.
const MAX_NAMES: usize = 32;

/// The answer to the test of a webhook with this URL.
pub(super) fn response(transcript: Transcript, url: String) -> v1::TestWebhookResponse {
    let (outcome, reason, why) = match transcript.outcome {
        TestOutcome::Delivered => (Outcome::Delivered, String::new(), None),
        TestOutcome::Failed(reason) => (Outcome::Failed, reason, None),
        TestOutcome::NotMade(why) => (Outcome::NotMade, String::new(), Some(why)),
    };
    let phases = transcript.phases;
    v1::TestWebhookResponse {
        outcome: outcome.into(),
        reason,
        detail: why.unwrap_or(transcript.detail),
        request: transcript.sent.map(|sent| request(sent, url)),
        answer: transcript.answered.map(answer),
        connection: Some(v1::TestedConnection {
            resolved_addresses: transcript.resolved.iter().map(ToString::to_string).collect(),
            address: transcript
                .address
                .map_or_else(String::new, |address| address.to_string()),
            tls: transcript.tls.map(tls),
        }),
        timing: Some(v1::TestedTiming {
            start_time: Some(convert::timestamp(transcript.start_time)),
            total: Some(duration(transcript.duration)),
            resolve: phases.resolve.map(duration),
            connect: phases.connect.map(duration),
            tls: phases.tls.map(duration),
            first_byte: phases.first_byte.map(duration),
        }),
        token: transcript.token,
        agent: format!("agents/{}", transcript.agent),
    }
}

fn request(sent: Sent, url: String) -> v1::TestedRequest {
    // Bodies are JSON, which is text.
    let body = String::from_utf8_lossy(&sent.body).into_owned();
    let signed_content = if sent.signed_prefix.is_empty() {
        String::new()
    } else {
        format!("{}{body}", sent.signed_prefix)
    };
    v1::TestedRequest {
        method: "POST".to_owned(),
        url,
        headers: headers(sent.headers),
        body,
        signed_content,
        secret_ids: sent.signers,
    }
}

fn answer(answered: Answered) -> v1::TestedAnswer {
    let said = answered.said;
    v1::TestedAnswer {
        status_code: answered.status.into(),
        http_version: answered.version,
        headers: headers(said.headers),
        headers_truncated: said.headers_cut,
        body: said.body,
        body_truncated: said.body_cut,
    }
}

fn headers(headers: Vec<(String, String)>) -> Vec<v1::TestedHeader> {
    let header = |(name, value)| v1::TestedHeader { name, value };
    headers.into_iter().map(header).collect()
}

fn tls(seen: TlsSeen) -> v1::TestedTls {
    v1::TestedTls {
        version: seen.version,
        cipher_suite: seen.cipher_suite,
        alpn: seen.alpn,
        certificate: certificate(&seen.leaf),
        verification_error: seen.verification_error,
        client_certificate_requested: seen.client_certificate_requested,
    }
}

/// What a receiver's certificate says; `None` if there is none, or it is not well formed.
fn certificate(der: &[u8]) -> Option<v1::TestedCertificate> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let moment = |time: ASN1Time| prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos: 0,
    };
    Some(v1::TestedCertificate {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        names: names(&certificate),
        not_before: Some(moment(certificate.validity().not_before)),
        not_after: Some(moment(certificate.validity().not_after)),
    })
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => {
                let v6 = <[u8; 16]>::try_from(*bytes).ok()?;
                Some(std::net::Ipv6Addr::from(v6).to_string())
            }
        },
        // No webhook's URL can name the others.
        _ => None,
    };
    let names = names.value.general_names.iter();
    names.filter_map(name).take(MAX_NAMES).collect()
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}
