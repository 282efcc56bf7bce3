//! What MSI and MSI-X have in common: the message, and the state of a vector.

/// A message signalled interrupt: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Guest address, a multiple of 4.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// One vector as the guest set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorState {
    /// Whether the host must take this vector's interrupts (P9.4): messages are enabled and the
    /// guest has set it up. A masked vector in use is taken too, for its pending bit.
    pub in_use: bool,
    /// Whether its messages are held back.
    pub masked: bool,
    /// Where its messages go.
    pub message: Message,
}
