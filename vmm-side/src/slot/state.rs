//! What a slot does when something happens to its processes. No I/O: see the diagram in
//! [`super`].

use std::sync::Arc;
use std::time::Instant;

use crate::recovery::{Deaths, Recovery};
use crate::supervisor::Death;

/// Where a function is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Its process serves.
    Serving,
    /// Its process died and is being replaced; callers wait.
    Recovering,
    /// Its connection process died: reads are all ones, writes are dropped.
    Away(Arc<Death>),
    /// Its connection process is back and the function is being set up anew; still all ones.
    Returning(Arc<Death>),
    /// Given up, for this reason: all ones. Final.
    Dead(Arc<Death>),
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) enum Happened {
    /// Its process died.
    Died(Instant, Arc<Death>),
    /// Another process serves.
    Replaced,
    /// No other process could be had.
    NotReplaced(Arc<Death>),
    /// Its connection process died, and with it the claim and every registration.
    Lost(Arc<Death>),
    /// There is another connection process.
    Back,
    /// There will be no other connection process.
    GivenUp(Arc<Death>),
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Do {
    /// Nothing.
    Nothing,
    /// Start another process and replay the journal.
    Replace,
    /// End the process; all ones under the windows.
    Withdraw,
    /// Claim, reset, give memory, replace, put the device's memory under the windows.
    Return,
    /// Withdraw, and tell that it is for good.
    GiveUp,
}

/// A slot's state.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    phase: Phase,
    deaths: Deaths,
}

impl Machine {
    /// A process serves.
    pub(crate) fn new(recovery: &Recovery) -> Self {
        Self { phase: Phase::Serving, deaths: Deaths::new(recovery) }
    }

    /// Where the function is.
    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// What comes next.
    pub(crate) fn on(&mut self, happened: Happened) -> Do {
        use Phase::{Away, Dead, Recovering, Returning, Serving};
        let (next, what) = match (&self.phase, happened) {
            (Dead(_), _) => return Do::Nothing,
            (_, Happened::GivenUp(death)) => (Dead(death), Do::GiveUp),
            (Serving, Happened::Died(at, death)) => match self.deaths.on(at, &death) {
                Ok(()) => (Recovering, Do::Replace),
                Err(death) => (Dead(death), Do::GiveUp),
            },
            (Serving | Recovering | Returning(_), Happened::Lost(death)) => {
                (Away(death), Do::Withdraw)
            }
            (Away(death), Happened::Back) => (Returning(Arc::clone(death)), Do::Return),
            (Recovering | Returning(_), Happened::Replaced) => (Serving, Do::Nothing),
            (Recovering | Returning(_), Happened::NotReplaced(death)) => (Dead(death), Do::GiveUp),
            // What comes too late or twice.
            (Serving | Recovering | Away(_) | Returning(_), _) => return Do::Nothing,
        };
        self.phase = next;
        what
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn death() -> Arc<Death> {
        Arc::new(Death::of_function("01:00.0"))
    }

    fn happened() -> impl Strategy<Value = Happened> {
        prop_oneof![
            4 => Just(Happened::Died(Instant::now(), death())),
            4 => Just(Happened::Replaced),
            1 => Just(Happened::NotReplaced(death())),
            4 => Just(Happened::Lost(death())),
            4 => Just(Happened::Back),
            1 => Just(Happened::GivenUp(death())),
        ]
    }

    proptest! {
        #[test]
        fn death_is_final_and_given_up_once(all in proptest::collection::vec(happened(), 0..60)) {
            let mut machine = Machine::new(&Recovery::default());
            let mut given_up = 0;
            for happened in all {
                let was_dead = matches!(machine.phase(), Phase::Dead(_));
                let what = machine.on(happened);
                let dead = matches!(machine.phase(), Phase::Dead(_));
                prop_assert!(!was_dead || dead && what == Do::Nothing);
                given_up += usize::from(what == Do::GiveUp);
                prop_assert_eq!(given_up, usize::from(dead));
            }
        }

        #[test]
        fn a_device_that_was_lost_serves_again_only_after_it_returned(
            all in proptest::collection::vec(happened(), 0..60)
        ) {
            let mut machine = Machine::new(&Recovery::default());
            let mut withdrawn = false;
            for happened in all {
                let replaced = matches!(happened, Happened::Replaced);
                match machine.on(happened) {
                    Do::Withdraw | Do::GiveUp => withdrawn = true,
                    // Nothing is claimed or reset under a device that is in use.
                    Do::Return => prop_assert!(withdrawn),
                    // A process is replaced only while the claim is held.
                    Do::Replace => prop_assert!(!withdrawn),
                    Do::Nothing if replaced => {
                        withdrawn &= !matches!(machine.phase(), Phase::Serving);
                    }
                    Do::Nothing => {}
                }
                let usable = matches!(machine.phase(), Phase::Serving | Phase::Recovering);
                prop_assert_eq!(usable, !withdrawn);
            }
        }

        #[test]
        fn nobody_waits_for_longer_than_a_replacement(
            all in proptest::collection::vec(happened(), 0..60)
        ) {
            let mut machine = Machine::new(&Recovery::default());
            for happened in all {
                machine.on(happened);
                if matches!(machine.phase(), Phase::Recovering) {
                    // Whatever ends a replacement ends the wait.
                    for end in [Happened::Replaced, Happened::NotReplaced(death()), Happened::Lost(death())] {
                        let mut then = machine.clone();
                        then.on(end);
                        prop_assert!(!matches!(then.phase(), Phase::Recovering));
                    }
                }
            }
        }
    }

    #[test]
    fn deaths_in_a_crash_loop_are_counted_across_replacements() {
        let recovery =
            Recovery { most_deaths: 2, window: Duration::from_secs(60), ..Recovery::default() };
        let mut machine = Machine::new(&recovery);
        for _ in 0..2 {
            assert_eq!(machine.on(Happened::Died(Instant::now(), death())), Do::Replace);
            assert_eq!(machine.on(Happened::Died(Instant::now(), death())), Do::Nothing);
            machine.on(Happened::Replaced);
        }
        assert_eq!(machine.on(Happened::Died(Instant::now(), death())), Do::GiveUp);
    }
}
