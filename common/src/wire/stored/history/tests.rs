//! Tests of the history's stored form.

use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn uid(number: u8) -> Uid {
    Uid::new(&format!("00000000-0000-7000-8000-{number:012}")).unwrap()
}

fn reasons() -> impl Strategy<Value = Reason> {
    "(STATUS|TIMEOUT|GONE|AGE)".prop_map(Cow::Owned)
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Delivered),
        1 => (0_i64..4_000_000_000_000).prop_map(|until| Fate::Waiting(Timestamp::from_millis(until))),
        1 => reasons().prop_map(Fate::Dead),
        1 => reasons().prop_map(Fate::Dropped),
    ]
}

prop_compose! {
    fn carried()(
        event in "[A-Za-z0-9_:-]{1,64}", name in "(A|B\\.C|COURSE)", timestamp in 0_i64..4_000_000_000_000, accepted in 0_i64..4_000_000_000_000, fate in fate(),
    ) -> Carried {
        Carried {
            event: EventId::new(&event).unwrap(),
            name: EventName::new(&name).unwrap(),
            timestamp: Timestamp::from_millis(timestamp),
            accept_time: Timestamp::from_millis(accepted),
            fate,
        }
    }
}

prop_compose! {
    fn answer()(headers in vec(("[a-z-]{1,9}", "\\PC{0,9}"), 0..4), body in "\\PC{0,40}", truncated: bool) -> Box<Answer> {
        Box::new(Answer { headers, body, truncated })
    }
}

prop_compose! {
    fn attempt()(
        number in 1_u32.., message in option::of("batch-[a-z0-9-]{1,9}"), generation: u64, tenths in 0_u64..1_000_000, port in option::of(any::<u16>()),
        status in option::of(100_u16..600), reason in prop_oneof![Just(Cow::Borrowed("")), reasons()], secrets in vec("[a-z]{1,4}", 0..3),
        detail in option::of("\\PC{1,20}"), answer in option::of(answer()),
    ) -> Attempt {
        Attempt {
            number, generation, status, reason, detail, answer,
            message: message.map(Arc::from),
            duration: Duration::from_micros(tenths * TENTH),
            address: port.map(|port| (Ipv4Addr::LOCALHOST, port).into()),
            secrets: secrets.iter().map(|id| Arc::from(id.as_str())).collect(),
        }
    }
}

prop_compose! {
    pub(crate) fn chapters()(
        entries in vec(("[a-c]", "[a-c]", 0_u8..3, 0_i64..4_000_000_000_000, option::of(attempt()), vec(carried(), 0..4)), 0..20), left_out: u64,
    ) -> Chapter {
        let mut chapter = Chapter::leaving_out(left_out);
        for (account, webhook, number, time, attempt, events) in entries {
            let of = (AccountId::new(&account).unwrap(), WebhookId::new(&webhook).unwrap(), uid(number));
            chapter.open(Entry::new(of, Timestamp::from_millis(time), attempt));
            events.into_iter().for_each(|carried| chapter.carry(carried));
        }
        chapter
    }
}

proptest! {
    #[test]
    fn a_chapter_reads_back_as_it_was_written(chapter in chapters()) {
        let packed = pack_history(chapter.iter(), chapter.left_out);
        prop_assert_eq!(unpack_history(packed).unwrap(), chapter);
    }

    #[test]
    fn no_bytes_are_worse_than_unreadable(chapter in chapters(), bytes: Vec<u8>, at: prop::sample::Index, value: u8) {
        let _ = unpack_history(bytes.into());
        let mut body = unpack_message(pack_history(chapter.iter(), 0)).unwrap().to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = value;
        }
        if let Ok(segment) = pb::HistorySegment::decode(&*body) {
            let _ = read(segment);
        }
    }

    #[test]
    fn a_segment_with_a_column_or_a_table_cut_short_is_refused_or_reads_less(chapter in chapters(), which in 0_usize..14, cut: prop::sample::Index) {
        let mut segment: pb::HistorySegment = decode(unpack_message(pack_history(chapter.iter(), 0)).unwrap()).unwrap();
        fn short<T>(column: &mut Vec<T>, cut: prop::sample::Index) {
            column.truncate(cut.index(column.len().max(1)));
        }
        match which {
            0 => short(&mut segment.origins, cut),
            1 => short(&mut segment.event_names, cut),
            2 => short(&mut segment.addresses, cut),
            3 => short(&mut segment.reasons, cut),
            4 => short(&mut segment.time, cut),
            5 => short(&mut segment.number, cut),
            6 => short(&mut segment.status, cut),
            7 => short(&mut segment.event_count, cut),
            8 => short(&mut segment.event_name, cut),
            9 => short(&mut segment.wait, cut),
            10 => short(&mut segment.fate, cut),
            11 => short(&mut segment.fate_time, cut),
            12 => short(&mut segment.fate_reason, cut),
            _ => segment.event_ids.clear(),
        }
        if let Ok(read) = read(segment) {
            prop_assert!(read.len() <= chapter.len());
        }
    }
}

/// What 18,000 deliveries a second look like in one shard and second: six webhooks, random ids.
#[test]
fn a_delivery_that_went_well_takes_some_25_bytes() {
    let mut chapter = Chapter::default();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        random >> 11
    };
    let count = 2000_i64;
    for number in 0..count {
        let webhook = next() % 6;
        let time = 1_700_000_000_000 + number / 2;
        let attempt = Attempt {
            number: 1,
            generation: 3,
            duration: Duration::from_micros(1_000 + next() % 4_000),
            address: Some((Ipv4Addr::LOCALHOST, 8000 + u16::try_from(webhook).unwrap()).into()),
            status: Some(204),
            ..Attempt::default()
        };
        let of = (
            AccountId::new("1010").unwrap(),
            WebhookId::new(&format!("crm-{webhook}")).unwrap(),
            uid(1),
        );
        chapter.open(Entry::new(of, Timestamp::from_millis(time), Some(attempt)));
        let (high, low) = (next(), next());
        let id = format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            high & 0xffff_ffff,
            (high >> 32) & 0xffff,
            low & 0xfff,
            (low >> 12) & 0xfff,
            next() & 0xffff_ffff_ffff
        );
        let accept_time = Timestamp::from_millis(time - i64::try_from(next() % 20).unwrap());
        chapter.carry(Carried {
            event: EventId::new(&id).unwrap(),
            name: EventName::new("COURSE_ENROLLMENT").unwrap(),
            timestamp: accept_time,
            accept_time,
            fate: Fate::Delivered,
        });
    }
    let bytes = pack_history(chapter.iter(), 0).len();
    let each = bytes / usize::try_from(count).unwrap();
    println!("{each} bytes");
    assert!((15..=28).contains(&each), "{each} bytes");
}
