use proptest::prelude::*;

use super::*;

fn words() -> Vec<AtomicU64> {
    (0..WORDS).map(|_| AtomicU64::new(0)).collect()
}

fn failures() -> impl Strategy<Value = Failure> {
    let kind = prop_oneof![
        Just(FailureKind::InvalidArgument),
        Just(FailureKind::Io),
        Just(FailureKind::NoDevice),
        Just(FailureKind::NotSupported),
        Just(FailureKind::Busy),
        Just(FailureKind::NoSpace),
        Just(FailureKind::Lost),
    ];
    (kind, any::<Option<u32>>(), "\\PC{0,400}").prop_map(|(kind, code, message)| Failure {
        kind,
        code,
        message,
    })
}

proptest! {
    #[test]
    fn a_request_arrives_as_it_was_sent(
        bar in any::<Option<u8>>(), offset: u64, width: u8, write: bool, value: u64,
        at in 0..SLOTS, number in 1u64..,
    ) {
        let space = bar.map_or(Space::Config, Space::Bar);
        let access = Access { space, offset, width, write, value };
        let words = words();
        prop_assert!(!calling::publish(&words, at, number, &access));
        prop_assert_eq!(serving::request(&words, at, number - 1), Some(number));
        prop_assert_eq!(serving::request(&words, at, number), None);
        prop_assert_eq!(serving::access(&words, at), Some(access));
    }

    #[test]
    fn an_outcome_arrives_as_it_was_sent_but_for_long_text(
        failure in failures(), value: u64, fails: bool, at in 0..SLOTS, number in 1u64..,
    ) {
        let words = words();
        let sent = if fails { Err(failure) } else { Ok(value) };
        prop_assert!(!serving::answer(&words, at, number, &sent));
        prop_assert!(calling::is_answered(&words, at, number));
        let came = calling::outcome(&words, at).unwrap();
        match (sent, came) {
            (Ok(sent), Ok(came)) => prop_assert_eq!(sent, came),
            (Err(sent), Err(came)) => {
                prop_assert_eq!((sent.kind, sent.code), (came.kind, came.code));
                prop_assert!(sent.message.starts_with(&came.message));
                let cut = sent.message.len() - came.message.len();
                prop_assert!(cut == 0 || came.message.len() > MAX_TEXT - 4);
            }
            (sent, came) => prop_assert!(false, "{sent:?} became {came:?}"),
        }
    }

    /// Whatever a peer writes is an outcome, a request, or none; and never read past.
    #[test]
    fn any_words_are_something_or_nothing(garbage in proptest::collection::vec(any::<u64>(), SLOT)) {
        let words = words();
        for (word, value) in words[HEADER..].iter().zip(garbage) {
            word.store(value, Ordering::Relaxed);
        }
        let _ = calling::outcome(&words, 0);
        let _ = serving::access(&words, 0);
    }
}

#[test]
fn what_makes_no_sense_is_no_outcome() {
    let words = words();
    serving::answer_nonsense(&words, 3, 1);
    assert!(calling::is_answered(&words, 3, 1));
    assert!(calling::outcome(&words, 3).is_none());
    let long = "x".repeat(2 * MAX_TEXT);
    let failure = Failure { kind: FailureKind::Io, code: Some(0), message: long };
    serving::answer(&words, 3, 2, &Err(failure));
    assert_eq!(calling::outcome(&words, 3).unwrap().unwrap_err().message.len(), MAX_TEXT);
    Word::store(&slot(&words, 3)[LENGTH], MAX_TEXT as u64 + 1);
    assert!(calling::outcome(&words, 3).is_none());
}
