//! What a supervisor does when something happens to its child. No I/O: see the diagram in
//! [`super`].

use std::fmt;

/// Where a child is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Spawned, not ready yet.
    Starting,
    /// Serving.
    Ready,
    /// Asked to stop.
    Stopping,
    /// Dead, for this reason. Final.
    Dead(Cause),
}

/// Why a child counts as dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was asked to stop and did.
    Stopped,
    /// It could not start, and said why; or could not even be spawned.
    StartFailed(String),
    /// It did not answer, become ready or stop in time, and was killed.
    Overdue(&'static str),
    /// Its tube closed, or it exited, without being asked to.
    Ended,
    /// It broke the protocol and was killed.
    Broken(String),
    /// It and those that replaced it died too often.
    CrashLoop {
        /// How often.
        deaths: u32,
        /// Within this time.
        window: std::time::Duration,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => write!(f, "stopped"),
            Self::StartFailed(why) => write!(f, "did not start: {why}"),
            Self::Overdue(what) => write!(f, "did not {what} in time and was killed"),
            Self::Ended => write!(f, "died"),
            Self::CrashLoop { deaths, window } => {
                write!(f, "died {deaths} times within {window:?} and is not started again")
            }
            Self::Broken(how) => write!(f, "broke the protocol and was killed: {how}"),
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The child said that it is ready.
    Ready,
    /// The child said that it cannot start.
    StartFailed(String),
    /// The deadline of the state, or of the request in flight, passed.
    Overdue,
    /// The child closed its end of the tube.
    TubeClosed,
    /// The child sent something that makes no sense.
    Nonsense(String),
    /// The process ended.
    Exited,
    /// The VMM wants it to stop.
    StopRequested,
}

/// Something to do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Tell the starter that the child is ready.
    AnnounceReady,
    /// Ask the child to stop.
    SendShutdown,
    /// Kill the process and wait for its end.
    KillAndReap,
    /// Tell every caller and the starter that it is dead.
    AnnounceDeath,
}

impl State {
    /// What comes next.
    #[must_use]
    pub fn on(&self, happened: Happened) -> (Self, &'static [Do]) {
        const DIE: &[Do] = &[Do::KillAndReap, Do::AnnounceDeath];
        let die = |cause| (Self::Dead(cause), DIE);
        match (self, happened) {
            (Self::Dead(_), _) => (self.clone(), &[]),
            (Self::Starting, Happened::Ready) => (Self::Ready, &[Do::AnnounceReady]),
            (Self::Starting, Happened::StartFailed(why)) => die(Cause::StartFailed(why)),
            (Self::Starting, Happened::Overdue) => die(Cause::Overdue("become ready")),
            (Self::Starting, Happened::StopRequested) => die(Cause::Stopped),
            (Self::Ready, Happened::StopRequested) => (Self::Stopping, &[Do::SendShutdown]),
            (Self::Ready, Happened::Overdue) => die(Cause::Overdue("answer")),
            (Self::Ready | Self::Stopping, Happened::Ready | Happened::StartFailed(_)) => {
                die(Cause::Broken("started twice".to_owned()))
            }
            (Self::Stopping, Happened::StopRequested) => (Self::Stopping, &[]),
            (Self::Stopping, Happened::Overdue) => die(Cause::Overdue("stop")),
            // The tube closes a moment before the process is gone.
            (Self::Stopping, Happened::TubeClosed) => (Self::Stopping, &[]),
            (Self::Stopping, Happened::Exited) => die(Cause::Stopped),
            (_, Happened::TubeClosed | Happened::Exited) => die(Cause::Ended),
            (_, Happened::Nonsense(how)) => die(Cause::Broken(how)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn happened() -> impl Strategy<Value = Happened> {
        prop_oneof![
            Just(Happened::Ready),
            Just(Happened::StartFailed("no".to_owned())),
            Just(Happened::Overdue),
            Just(Happened::TubeClosed),
            Just(Happened::Nonsense("?".to_owned())),
            Just(Happened::Exited),
            Just(Happened::StopRequested),
        ]
    }

    proptest! {
        #[test]
        fn death_is_final_announced_once_and_after_reaping(
            all in proptest::collection::vec(happened(), 0..20)
        ) {
            let mut state = State::Starting;
            let mut done = Vec::new();
            for happened in all {
                let was_dead = matches!(state, State::Dead(_));
                let (next, actions) = state.on(happened);
                prop_assert!(!was_dead || (next == state && actions.is_empty()));
                done.extend_from_slice(actions);
                state = next;
            }
            let count = |action| done.iter().filter(|done| **done == action).count();
            let dead = usize::from(matches!(state, State::Dead(_)));
            prop_assert_eq!(count(Do::AnnounceDeath), dead);
            prop_assert_eq!(count(Do::KillAndReap), dead);
            prop_assert!(count(Do::AnnounceReady) <= 1);
            if dead == 1 {
                prop_assert!(done.ends_with(&[Do::KillAndReap, Do::AnnounceDeath]));
            }
        }

        #[test]
        fn an_exit_or_a_missed_deadline_always_ends_in_death(
            before in proptest::collection::vec(happened(), 0..10), overdue: bool
        ) {
            let state = before.into_iter().fold(State::Starting, |state, h| state.on(h).0);
            let last = if overdue { Happened::Overdue } else { Happened::Exited };
            prop_assert!(matches!(state.on(last).0, State::Dead(_)));
        }
    }

    #[test]
    fn an_orderly_life() {
        let (ready, _) = State::Starting.on(Happened::Ready);
        let (stopping, actions) = ready.on(Happened::StopRequested);
        assert_eq!(actions, [Do::SendShutdown]);
        let (still, _) = stopping.on(Happened::TubeClosed);
        assert_eq!(still.on(Happened::Exited).0, State::Dead(Cause::Stopped));
    }
}
