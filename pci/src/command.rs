//! COMMAND and power state of one function, and what follows from them: whether it decodes memory.
//!
//! The bits are a shadow: the guest's are kept here and forwarded as well, since the claim of the
//! host sets COMMAND to what the guest has not asked for.

use crate::registers::{COMMAND, command};
use crate::{PowerState, bytes};

/// COMMAND as the guest left it, and the power state.
#[derive(Clone, Debug)]
pub struct CommandState {
    command: u16,
    implemented: u16,
    power: PowerState,
}

impl CommandState {
    /// As after a reset: nothing enabled, D0. `implemented` are the bits that a guest can set.
    #[must_use]
    pub fn new(implemented: u16) -> Self {
        Self { command: 0, implemented, power: PowerState::D0 }
    }

    /// COMMAND as a read shows it.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.command
    }

    /// The power state.
    #[must_use]
    pub fn power(&self) -> PowerState {
        self.power
    }

    /// Whether the function decodes memory: COMMAND.MEM set and D0. Only then are its windows
    /// visible; otherwise reads are all ones (P6.4).
    #[must_use]
    pub fn decodes_memory(&self) -> bool {
        self.command & command::MEMORY != 0 && self.power == PowerState::D0
    }

    /// Whether the function decodes I/O space: COMMAND.IO set and D0.
    #[must_use]
    pub fn decodes_io(&self) -> bool {
        self.command & command::IO != 0 && self.power == PowerState::D0
    }

    /// Takes the bytes of a config write at `offset` that fall into COMMAND; whether it changed.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let mut written = self.command.to_le_bytes();
        for (at, value) in bytes::hits(COMMAND..COMMAND + 2, offset, data) {
            written[at] = value;
        }
        let before = self.command;
        self.command = u16::from_le_bytes(written) & self.implemented;
        before != self.command
    }

    /// Takes the power state of a write to the power management control register. The value of a
    /// state that is not supported (D1, D2) is ignored, as hardware without them does (P6.4).
    pub fn write_power(&mut self, value: u8) -> Option<PowerState> {
        let state = PowerState::from_bits(value)?;
        (std::mem::replace(&mut self.power, state) != state).then_some(state)
    }

    /// As after a reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.implemented);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> CommandState {
        CommandState::new(0x0547)
    }

    #[test]
    fn bytes_of_command_are_taken_and_no_others() {
        let mut state = state();
        assert!(state.write(0x03, &[0xff, 0x06]));
        assert_eq!(state.command(), 0x06);
        assert!(state.write(0x05, &[0xff, 0xff]));
        assert_eq!(state.command(), 0x0506);
        assert!(!state.write(0x06, &[0, 0]));
        assert!(!state.write(0x04, &[0x06, 0xff]));
    }

    #[test]
    fn memory_is_decoded_with_mem_on_and_in_d0_only() {
        let mut state = state();
        assert!(!state.decodes_memory());
        state.write(4, &[3]);
        assert!(state.decodes_memory() && state.decodes_io());
        assert_eq!(state.write_power(3), Some(PowerState::D3Hot));
        assert!(!state.decodes_memory() && !state.decodes_io());
        assert_eq!(state.write_power(1), None);
        assert_eq!(state.write_power(2), None);
        assert_eq!(state.power(), PowerState::D3Hot);
        assert_eq!(state.write_power(0), Some(PowerState::D0));
        assert_eq!(state.write_power(0), None);
        assert!(state.decodes_memory());
        state.reset();
        assert!(!state.decodes_memory());
    }

    proptest! {
        #[test]
        fn bits_that_are_not_implemented_are_never_set(
            implemented: u16, offset in 0usize..8, data in prop::collection::vec(any::<u8>(), 0..8)
        ) {
            let mut state = CommandState::new(implemented);
            state.write(offset, &data);
            prop_assert_eq!(state.command() & !implemented, 0);
        }
    }
}
