//! What is done for a function when something happens to its processes. No I/O: see the diagram in
//! [`super`].

use std::sync::Arc;
use std::time::Instant;

use crate::child::Death;
use crate::recovery::{Deaths, Recovery};

/// Where a function is.
#[derive(Clone, Debug)]
pub(crate) enum FunctionState {
    /// Its process serves.
    Serving,
    /// Its process serves, and its connection process died: another one is adopting the claim and every
    /// registration, which go on meanwhile.
    Adopting,
    /// Its process died, or gives way to another, and is being replaced; callers wait.
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
pub(crate) enum FunctionEvent {
    /// Its process died.
    Died(Instant, Arc<Death>),
    /// It is to be replaced by a process that is ready, and lives.
    Upgrade,
    /// Another process serves.
    Replaced,
    /// No other process could be had.
    NotReplaced(Arc<Death>),
    /// Its connection process died, and what that held goes on until another one has adopted it, or not.
    Orphaned,
    /// Another connection process has adopted what the one before it held.
    Adopted,
    /// Its connection process died, and with it the claim and every registration.
    Lost(Arc<Death>),
    /// There is another connection process.
    Back,
    /// There will be no other connection process.
    GivenUp(Arc<Death>),
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Nothing,
    /// Start another process and replay the journal.
    Replace,
    /// End the process in order and have the one that is ready take over.
    HandOver,
    /// End the process; all ones under the windows.
    Withdraw,
    /// Claim, reset, give memory, replace, put the device's memory under the windows.
    Return,
    /// Withdraw, and tell that it is for good.
    GiveUp,
}

/// The state machine of a function.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    state: FunctionState,
    deaths: Deaths,
}

impl Machine {
    /// A process serves.
    pub(crate) fn new(recovery: &Recovery) -> Self {
        Self { state: FunctionState::Serving, deaths: Deaths::new(recovery) }
    }

    /// Where the function is.
    pub(crate) fn state(&self) -> &FunctionState {
        &self.state
    }

    /// What comes next.
    pub(crate) fn on(&mut self, event: FunctionEvent) -> Action {
        use FunctionState::{Adopting, Away, Dead, Recovering, Returning, Serving};
        let (next, action) = match (&self.state, event) {
            (Dead(_), _) => return Action::Nothing,
            (_, FunctionEvent::GivenUp(death)) => (Dead(death), Action::GiveUp),
            (Serving, FunctionEvent::Orphaned) => (Adopting, Action::Nothing),
            (Adopting, FunctionEvent::Adopted) => (Serving, Action::Nothing),
            // A function process needs nothing of the connection process to be replaced.
            (Serving | Adopting, FunctionEvent::Died(at, death)) => {
                match self.deaths.on(at, &death) {
                    Ok(()) => (Recovering, Action::Replace),
                    Err(death) => (Dead(death), Action::GiveUp),
                }
            }
            (Serving | Adopting, FunctionEvent::Upgrade) => (Recovering, Action::HandOver),
            (Serving | Adopting | Recovering | Returning(_), FunctionEvent::Lost(death)) => {
                (Away(death), Action::Withdraw)
            }
            (Away(death), FunctionEvent::Back) => (Returning(Arc::clone(death)), Action::Return),
            (Recovering | Returning(_), FunctionEvent::Replaced) => (Serving, Action::Nothing),
            (Recovering | Returning(_), FunctionEvent::NotReplaced(death)) => {
                (Dead(death), Action::GiveUp)
            }
            // What comes too late or twice.
            (Serving | Adopting | Recovering | Away(_) | Returning(_), _) => {
                return Action::Nothing;
            }
        };
        self.state = next;
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn death() -> Arc<Death> {
        Arc::new(Death::of_function("01:00.0", crate::child::Cause::Ended))
    }

    fn serves(state: &FunctionState) -> bool {
        matches!(state, FunctionState::Serving | FunctionState::Adopting)
    }

    fn event() -> impl Strategy<Value = FunctionEvent> {
        prop_oneof![
            4 => Just(FunctionEvent::Died(Instant::now(), death())),
            4 => Just(FunctionEvent::Replaced),
            2 => Just(FunctionEvent::Upgrade),
            1 => Just(FunctionEvent::NotReplaced(death())),
            4 => Just(FunctionEvent::Lost(death())),
            4 => Just(FunctionEvent::Orphaned),
            4 => Just(FunctionEvent::Adopted),
            4 => Just(FunctionEvent::Back),
            1 => Just(FunctionEvent::GivenUp(death())),
        ]
    }

    proptest! {
        #[test]
        fn death_is_final_and_given_up_once(all in proptest::collection::vec(event(), 0..60)) {
            let mut machine = Machine::new(&Recovery::default());
            let mut given_up = 0;
            for event in all {
                let was_dead = matches!(machine.state(), FunctionState::Dead(_));
                let action = machine.on(event);
                let dead = matches!(machine.state(), FunctionState::Dead(_));
                prop_assert!(!was_dead || dead && action == Action::Nothing);
                given_up += usize::from(action == Action::GiveUp);
                prop_assert_eq!(given_up, usize::from(dead));
            }
        }

        #[test]
        fn a_device_that_was_lost_serves_again_only_after_it_returned(
            all in proptest::collection::vec(event(), 0..60)
        ) {
            let mut machine = Machine::new(&Recovery::default());
            let mut withdrawn = false;
            for event in all {
                let replaced = matches!(event, FunctionEvent::Replaced);
                match machine.on(event) {
                    Action::Withdraw | Action::GiveUp => withdrawn = true,
                    // Nothing is claimed or reset under a device that is in use.
                    Action::Return => prop_assert!(withdrawn),
                    // A process is replaced only while the claim is held.
                    Action::Replace | Action::HandOver => prop_assert!(!withdrawn),
                    Action::Nothing if replaced => {
                        withdrawn &= !matches!(machine.state(), FunctionState::Serving);
                    }
                    Action::Nothing => {}
                }
                let usable = matches!(
                    machine.state(),
                    FunctionState::Serving | FunctionState::Adopting | FunctionState::Recovering
                );
                prop_assert_eq!(usable, !withdrawn);
            }
        }

        #[test]
        fn an_adoption_changes_nothing_that_a_guest_sees(
            all in proptest::collection::vec(event(), 0..60)
        ) {
            let mut machine = Machine::new(&Recovery::default());
            for event in all {
                let adoption = matches!(event, FunctionEvent::Orphaned | FunctionEvent::Adopted);
                let before = machine.state().clone();
                let action = machine.on(event);
                if adoption {
                    prop_assert_eq!(action, Action::Nothing);
                    let (was, is) = (serves(&before), serves(machine.state()));
                    prop_assert_eq!(was, is, "{:?} to {:?}", before, machine.state());
                }
                // One that is being adopted can be lost, and lose its process, as ever.
                if matches!(machine.state(), FunctionState::Adopting) {
                    let mut lost = machine.clone();
                    prop_assert_eq!(lost.on(FunctionEvent::Lost(death())), Action::Withdraw);
                    let mut back = machine.clone();
                    back.on(FunctionEvent::Adopted);
                    prop_assert!(matches!(back.state(), FunctionState::Serving));
                }
            }
        }

        #[test]
        fn nobody_waits_for_longer_than_a_replacement(
            all in proptest::collection::vec(event(), 0..60)
        ) {
            let mut machine = Machine::new(&Recovery::default());
            for event in all {
                machine.on(event);
                if matches!(machine.state(), FunctionState::Recovering) {
                    // Whatever ends a replacement ends the wait.
                    for end in [FunctionEvent::Replaced, FunctionEvent::NotReplaced(death()), FunctionEvent::Lost(death())] {
                        let mut then = machine.clone();
                        then.on(end);
                        prop_assert!(!matches!(then.state(), FunctionState::Recovering));
                    }
                }
            }
        }
    }

    #[test]
    fn a_process_that_dies_while_its_claim_is_adopted_is_replaced() {
        let mut machine = Machine::new(&Recovery::default());
        assert_eq!(machine.on(FunctionEvent::Orphaned), Action::Nothing);
        assert_eq!(machine.on(FunctionEvent::Died(Instant::now(), death())), Action::Replace);
        assert_eq!(machine.on(FunctionEvent::Adopted), Action::Nothing);
        assert!(matches!(machine.state(), FunctionState::Recovering));
        machine.on(FunctionEvent::Replaced);
        assert!(matches!(machine.state(), FunctionState::Serving));
    }

    #[test]
    fn deaths_in_a_crash_loop_are_counted_across_replacements() {
        let recovery =
            Recovery { max_deaths: 2, window: Duration::from_secs(60), ..Recovery::default() };
        let mut machine = Machine::new(&recovery);
        for _ in 0..2 {
            assert_eq!(machine.on(FunctionEvent::Died(Instant::now(), death())), Action::Replace);
            assert_eq!(machine.on(FunctionEvent::Died(Instant::now(), death())), Action::Nothing);
            machine.on(FunctionEvent::Replaced);
        }
        assert_eq!(machine.on(FunctionEvent::Died(Instant::now(), death())), Action::GiveUp);
    }
}
