//! INTx as a level that is made from events.
//!
//! The host takes a function's interrupts as messages, so all that is known is that the device
//! raised something, never that it stopped. Each event asserts the line until the guest's end of
//! interrupt; events meanwhile are remembered as one, which asserts it again (resample).
//!
//! ```text
//!             raise              end of interrupt, nothing pending
//!   Idle ---------------> Asserted ---------------------------------> Idle
//!    | raise while held      | raise: pending      end of interrupt, pending: Pulse
//!    v                       v
//!   pending, until unmasked or enabled: Assert
//! ```

/// What to do with the interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineChange {
    /// Drive it active.
    Assert,
    /// Drive it inactive.
    Deassert,
    /// Inactive and active again: another event came before the guest was done with the last.
    Pulse,
}

/// The INTx line of one function.
#[derive(Clone, Debug, Default)]
pub struct Intx {
    asserted: bool,
    /// Something was raised that the guest has not been told of.
    pending: bool,
    /// Masked by the VMM.
    masked: bool,
    /// COMMAND.INTxDisable.
    disabled: bool,
}

impl Intx {
    /// Whether the line is active.
    #[must_use]
    pub fn is_asserted(&self) -> bool {
        self.asserted
    }

    /// Whether an event waits for the end of the last one, an unmask, or COMMAND.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// The device raised an interrupt (P9.2). It is held back while the line is active, masked or
    /// disabled.
    pub fn raise(&mut self) -> Option<LineChange> {
        self.pending = true;
        self.settle()
    }

    /// The guest is done with the last interrupt (EOI, or the resample event).
    pub fn end_of_interrupt(&mut self) -> Option<LineChange> {
        if !std::mem::take(&mut self.asserted) {
            return None;
        }
        match self.settle() {
            Some(_) => Some(LineChange::Pulse),
            None => Some(LineChange::Deassert),
        }
    }

    /// VFIO's MASK: holds back what comes. A line that is active stays so.
    pub fn mask(&mut self) {
        self.masked = true;
    }

    /// VFIO's UNMASK, which is also its end of interrupt.
    pub fn unmask(&mut self) -> Option<LineChange> {
        self.masked = false;
        self.end_of_interrupt().or_else(|| self.settle())
    }

    /// COMMAND.INTxDisable. An interrupt that the guest has not ended comes again when it is
    /// enabled: its cause is still there.
    pub fn set_disabled(&mut self, disabled: bool) -> Option<LineChange> {
        self.disabled = disabled;
        if disabled && std::mem::take(&mut self.asserted) {
            self.pending = true;
            return Some(LineChange::Deassert);
        }
        self.settle()
    }

    /// Messages are in use instead, or the function was reset: what was pending is dropped.
    pub fn clear(&mut self) -> Option<LineChange> {
        self.pending = false;
        std::mem::take(&mut self.asserted).then_some(LineChange::Deassert)
    }

    fn settle(&mut self) -> Option<LineChange> {
        if !self.pending || self.asserted || self.masked || self.disabled {
            return None;
        }
        (self.pending, self.asserted) = (false, true);
        Some(LineChange::Assert)
    }
}

#[cfg(test)]
mod tests {
    use super::LineChange::{Assert, Deassert, Pulse};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_event_is_one_level_until_its_end() {
        let mut line = Intx::default();
        assert_eq!(line.end_of_interrupt(), None);
        assert_eq!(line.raise(), Some(Assert));
        assert_eq!((line.raise(), line.raise()), (None, None));
        assert_eq!(line.end_of_interrupt(), Some(Pulse));
        assert_eq!(line.end_of_interrupt(), Some(Deassert));
        assert!(!line.is_asserted() && !line.is_pending());
    }

    #[test]
    fn masked_events_come_with_the_unmask() {
        let mut line = Intx::default();
        line.mask();
        assert_eq!(line.raise(), None);
        assert_eq!(line.unmask(), Some(Assert));
        line.mask();
        assert_eq!(line.raise(), None);
        assert_eq!(line.end_of_interrupt(), Some(Deassert));
        assert_eq!(line.unmask(), Some(Assert));
        assert_eq!(line.unmask(), Some(Deassert));
        assert_eq!(line.unmask(), None);
    }

    #[test]
    fn disabling_takes_the_level_away_and_enabling_gives_it_back() {
        let mut line = Intx::default();
        line.raise();
        assert_eq!(line.set_disabled(true), Some(Deassert));
        assert_eq!(line.end_of_interrupt(), None);
        assert_eq!(line.set_disabled(false), Some(Assert));
        assert_eq!(line.set_disabled(false), None);
        assert_eq!(line.clear(), Some(Deassert));
        assert_eq!(line.clear(), None);
    }

    proptest! {
        /// Replays the changes on a line of its own: they never disagree with the state, and no
        /// event is lost.
        #[test]
        fn changes_follow_the_state(steps in prop::collection::vec(0u8..7, 0..64)) {
            let (mut line, mut level, mut unseen) = (Intx::default(), false, false);
            for step in steps {
                unseen |= step == 0;
                let change = match step {
                    0 => line.raise(),
                    1 => line.end_of_interrupt(),
                    2 => { line.mask(); None }
                    3 => line.unmask(),
                    4 => line.set_disabled(true),
                    5 => line.set_disabled(false),
                    _ => { unseen = false; line.clear() }
                };
                match change {
                    Some(Assert) => { prop_assert!(!level); level = true; unseen = false; }
                    Some(Deassert) => { prop_assert!(level); level = false; }
                    Some(Pulse) => { prop_assert!(level); unseen = false; }
                    None => {}
                }
                prop_assert_eq!(level, line.is_asserted());
                prop_assert!(!unseen || line.is_pending());
            }
        }
    }
}
