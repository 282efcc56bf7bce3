//! Each row of each role, and what is beside it, tried against the installed filter.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cordon_tests::announce;
use cordon_vmm::child::{ClaimedCall, ExitStatus};
use sandbox_profiles::policy::Condition;

use crate::{ROLES, tries, try_one};

/// Exit status of a try that worked.
const SUCCEEDED: i32 = 99;
/// Processes that try at once: they mostly wait for the kernel to make and unmake namespaces.
const WORKERS: usize = 16;

/// What a process says that it was refused: the call, but not one by the entry for 32-bit programs, which ends it
/// without a word.
fn claim(what: &str) -> Option<String> {
    match what.strip_prefix("system call ") {
        Some(number) if number.ends_with(" by 32-bit entry") => None,
        Some(number) => {
            let number = u32::from_str_radix(number.strip_prefix("0x").unwrap(), 16).unwrap();
            Some(ClaimedCall(number).to_string())
        }
        None => Some(what.split_once('(').unwrap().0.to_owned()),
    }
}

/// Tries everything of a role; what did not come out as it should.
fn try_all(role: &str, tries: &[String]) -> Vec<String> {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(tried) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
            let number = tries.iter().position(|one| one == tried).unwrap();
            let (expected, what, claimed) = match tried.split_once(": ").unwrap() {
                ("works", what) => (ExitStatus::Code(SUCCEEDED), what, None),
                ("refused", what) => (ExitStatus::Signal(libc::SIGSYS), what, claim(what)),
                // These say what they were: see `faults`.
                ("bus" | "fault", _) => continue,
                (other, _) => panic!("{other}"),
            };
            let death = try_one(role, number);
            // What comes before it says so was not the try's.
            let confined = death.last_words == format!("confined, and tries: {tried}");
            let said = death.claimed_call.map(|call| call.to_string());
            if death.exit != expected || !confined || said != claimed {
                wrong.lock().unwrap().push(format!("{role}: {what}: {death}"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    wrong.into_inner().unwrap()
}

#[test]
fn each_row_allows_what_it_says_and_nothing_beside_it() {
    let (mut rows, mut refused) = (0, 0);
    for role in ROLES {
        let tries = tries(role);
        let of_kind = |kind: &str| tries.iter().filter(|tried| tried.starts_with(kind)).count();
        let expected = cordon_tests::trace::role(role).unwrap();
        let listed = sandbox_profiles::policy::tables(expected);
        let listed: usize = listed.iter().map(|table| table.len()).sum();
        assert_eq!(of_kind("works: "), listed, "{role}: each row, once");
        assert!(of_kind("refused: ") > 5 * listed, "{role}: {}", of_kind("refused: "));
        let wrong = try_all(role, &tries);
        assert!(wrong.is_empty(), "{wrong:#?}");
        rows += listed;
        refused += of_kind("refused: ");
    }
    announce(&format!("policy: {rows} rows tried, {refused} refused neighbours"));
}

#[test]
fn every_condition_is_violated_alone_on_both_sides_and_in_the_high_half() {
    for role in ROLES {
        let (tries, role) = (tries(role), cordon_tests::trace::role(role).unwrap());
        let rows = sandbox_profiles::policy::tables(role).iter().copied().flatten();
        let all: Vec<_> = rows.collect();
        for row in &all {
            for (at, condition) in row.conditions {
                let beside = match condition {
                    Condition::Is(value) => {
                        vec![value.wrapping_sub(1), value.wrapping_add(1), value | 1 << 32]
                    }
                    Condition::Below(value) => vec![*value, value + 1, u64::MAX],
                };
                for other in beside {
                    let tried = format!("refused: {row} with {other:#x} in argument {at}");
                    // Another row may be the one that allows it.
                    let mut arguments = [0; 6];
                    for (at, condition) in row.conditions {
                        if let Condition::Is(value) = condition {
                            arguments[usize::from(*at)] = *value;
                        }
                    }
                    arguments[usize::from(*at)] = other;
                    let allowed = all.iter().any(|any| any.takes(row.number, &arguments));
                    assert_eq!(tries.contains(&tried), !allowed, "{tried}");
                }
            }
        }
    }
}
