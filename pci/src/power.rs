//! Power states of a function that a guest can choose.

/// A power state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// Fully on.
    D0,
    /// Config space answers, nothing else does.
    D3Hot,
}

impl PowerState {
    /// The state that bits 1:0 name; `None` for D1 and D2, which are not supported (P6.4).
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 0b11 {
            0 => Some(Self::D0),
            3 => Some(Self::D3Hot),
            _ => None,
        }
    }

    /// Bits 1:0 of the power management control register.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::D0 => 0,
            Self::D3Hot => 3,
        }
    }
}
