//! MSI as a model: every register of the capability that a guest can write is kept here (P6.4).
//!
//! What the host's hardware needs is set up by the host (P9), never by the guest's bytes.

use crate::bytes;
use crate::capabilities::MsiCapability;
use crate::message::{Message, VectorState};
use crate::registers::MESSAGE_CONTROL;

const LONGEST: usize = 24;
const ENABLE: u16 = 1;
const CAPABLE: u16 = 0b111 << 1;
const CHOSEN: u16 = 0b111 << 4;
const ADDRESS: usize = 4;

/// The MSI registers of one function.
#[derive(Clone, Debug)]
pub struct Msi {
    capability: MsiCapability,
    /// Vectors that the guest may have; a power of two.
    vectors: u16,
    image: [u8; LONGEST],
    writable: [u8; LONGEST],
}

impl Msi {
    /// Registers as after a reset. The guest is offered what both the device and the host, with
    /// its `host_vectors`, are capable of, at least one.
    #[must_use]
    pub fn new(capability: MsiCapability, host_vectors: u16) -> Self {
        let offered = capability.vectors.min(host_vectors).clamp(1, 32).ilog2();
        let vectors = 1u16 << offered;
        let (mut image, mut writable) = ([0; LONGEST], [0; LONGEST]);
        let wide = u16::from(capability.is_64bit) << 7;
        let control =
            u16::try_from(offered).unwrap_or(0) << 1 | wide | u16::from(capability.has_masks) << 8;
        bytes::put(&mut image, MESSAGE_CONTROL, &control.to_le_bytes());
        bytes::put(&mut writable, MESSAGE_CONTROL, &(ENABLE | CHOSEN).to_le_bytes());
        bytes::put(&mut writable, ADDRESS, &[0xfc, 0xff, 0xff, 0xff]);
        if capability.is_64bit {
            bytes::put(&mut writable, ADDRESS + 4, &[0xff; 4]);
        }
        bytes::put(&mut writable, capability.data(), &[0xff; 2]);
        if capability.has_masks {
            let all = u32::MAX >> (32 - u32::from(vectors));
            bytes::put(&mut writable, capability.masks(), &all.to_le_bytes());
        }
        Self { capability, vectors, image, writable }
    }

    /// The capability that it stands for.
    #[must_use]
    pub fn capability(&self) -> &MsiCapability {
        &self.capability
    }

    /// The structure's bytes as a read shows them; the first two are not of this model.
    #[must_use]
    pub fn image(&self) -> &[u8] {
        &self.image[..self.capability.length().into()]
    }

    fn control(&self) -> u16 {
        bytes::half(&self.image, MESSAGE_CONTROL)
    }

    /// Whether the guest enabled MSI.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.control() & ENABLE != 0
    }

    /// Vectors that the guest is offered.
    #[must_use]
    pub fn offered(&self) -> u16 {
        self.vectors
    }

    /// Vectors that the guest chose to use, at most those it is offered.
    #[must_use]
    pub fn chosen(&self) -> u16 {
        let chosen = (self.control() & CHOSEN) >> 4;
        let most = (self.control() & CAPABLE) >> 1;
        1 << chosen.min(most)
    }

    fn masks(&self) -> u32 {
        if self.capability.has_masks {
            bytes::word(&self.image, self.capability.masks())
        } else {
            0
        }
    }

    fn pending(&self) -> u32 {
        if self.capability.has_masks {
            bytes::word(&self.image, self.capability.masks() + 4)
        } else {
            0
        }
    }

    fn set_pending(&mut self, pending: u32) {
        if self.capability.has_masks {
            bytes::put(&mut self.image, self.capability.masks() + 4, &pending.to_le_bytes());
        }
    }

    /// The state of `vector`. Vectors above those chosen are not in use.
    #[must_use]
    pub fn vector(&self, vector: u16) -> VectorState {
        let wide = self.capability.is_64bit;
        let high = if wide { bytes::word(&self.image, ADDRESS + 4) } else { 0 };
        let address = u64::from(high) << 32 | u64::from(bytes::word(&self.image, ADDRESS));
        let data = bytes::half(&self.image, self.capability.data());
        let in_use = self.is_enabled() && vector < self.chosen();
        let data = u32::from(data & !(self.chosen() - 1) | vector & (self.chosen() - 1));
        let masked = vector < 32 && self.masks() >> vector & 1 != 0;
        VectorState { in_use, masked, message: Message { address, data } }
    }

    /// Takes the bytes of a write at `offset`, which counts from the start of the capability.
    /// Returns whether anything that [`Msi::vector`] says may have changed.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let before = self.image;
        for (at, value) in bytes::hits(0..LONGEST, offset, data) {
            self.image[at] = self.image[at] & !self.writable[at] | value & self.writable[at];
        }
        before != self.image
    }

    /// The device raised `vector`: the message to send. One that is masked becomes pending; one
    /// that is not in use is dropped (P9.2).
    pub fn signal(&mut self, vector: u16) -> Option<Message> {
        let state = self.vector(vector);
        if !state.in_use {
            return None;
        }
        if state.masked {
            self.set_pending(self.pending() | 1 << vector);
            return None;
        }
        Some(state.message)
    }

    /// Whether a pending vector may be delivered now.
    #[must_use]
    pub fn has_deliverable(&self) -> bool {
        self.deliverable().is_some()
    }

    fn deliverable(&self) -> Option<u16> {
        let ready = self.pending() & !self.masks();
        let vector = u16::try_from(ready.trailing_zeros()).ok()?;
        self.vector(vector).in_use.then_some(vector)
    }

    /// Takes the lowest pending vector that was unmasked, and its message.
    pub fn next_deliverable(&mut self) -> Option<(u16, Message)> {
        let vector = self.deliverable()?;
        self.set_pending(self.pending() & !(1 << vector));
        Some((vector, self.vector(vector).message))
    }

    /// Registers as after a reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.capability, self.vectors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn msi(is_64bit: bool, has_masks: bool) -> Msi {
        Msi::new(MsiCapability { offset: 0x50, vectors: 8, is_64bit, has_masks }, 256)
    }

    fn enable(msi: &mut Msi, chosen_log2: u8) {
        msi.write(2, &[1 | chosen_log2 << 4, 0]);
    }

    #[test]
    fn each_layout_has_its_registers_where_they_belong() {
        for (wide, masks, data, length) in [
            (false, false, 8, 10),
            (true, false, 12, 14),
            (false, true, 8, 20),
            (true, true, 12, 24),
        ] {
            let mut msi = msi(wide, masks);
            msi.write(4, &[0xff; 4]);
            msi.write(8, &[0x01, 0, 0, 0]);
            msi.write(data, &[0x40, 0x12]);
            enable(&mut msi, 1);
            let high = if wide { 1 << 32 } else { 0 };
            let message = Message { address: high | 0xffff_fffc, data: 0x1241 };
            let expected = VectorState { in_use: true, masked: false, message };
            assert_eq!(msi.vector(1), expected, "{wide} {masks}");
            assert_eq!(msi.image().len(), length);
            assert_eq!(msi.signal(1), Some(message));
            assert_eq!((msi.signal(2), msi.signal(40)), (None, None));
        }
    }

    #[test]
    fn the_guest_is_offered_what_both_sides_have() {
        let offered = |device, host| {
            let capability =
                MsiCapability { offset: 0x50, vectors: device, is_64bit: true, has_masks: false };
            Msi::new(capability, host).offered()
        };
        assert_eq!((offered(32, 256), offered(8, 5), offered(4, 0)), (32, 4, 1));
        let mut msi = msi(true, false);
        enable(&mut msi, 7);
        assert_eq!(msi.chosen(), 8);
    }

    #[test]
    fn a_masked_vector_is_pending_and_comes_with_the_unmask() {
        let mut msi = msi(true, true);
        msi.write(0x0c, &[0x40, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(msi.image()[0x10..0x14], [0xff, 0, 0, 0]);
        enable(&mut msi, 3);
        assert_eq!((msi.signal(3), msi.signal(0)), (None, None));
        assert_eq!(msi.image()[0x14..0x18], [0b1001, 0, 0, 0]);
        assert!(!msi.has_deliverable());
        msi.write(0x14, &[0; 4]);
        assert_eq!(msi.image()[0x14], 0b1001);
        msi.write(0x10, &[0xf7, 0, 0, 0]);
        assert_eq!(msi.next_deliverable(), Some((3, Message { address: 0, data: 0x43 })));
        assert_eq!(msi.next_deliverable(), None);
        msi.write(2, &[0]);
        msi.write(0x10, &[0]);
        assert_eq!(msi.next_deliverable(), None);
        enable(&mut msi, 3);
        assert!(msi.next_deliverable().is_some());
    }

    proptest! {
        #[test]
        fn fixed_bits_stay_and_nothing_is_lost(
            wide: bool, masks: bool, host in 0u16..300,
            steps in prop::collection::vec(
                (0usize..30, prop::collection::vec(any::<u8>(), 0..9), 0u16..40), 0..40),
        ) {
            let capability = MsiCapability { offset: 0x50, vectors: 32, is_64bit: wide, has_masks: masks };
            let mut msi = Msi::new(capability, host);
            let mut owed = 0u32;
            for (offset, data, vector) in steps {
                msi.write(offset, &data);
                while let Some((vector, _)) = msi.next_deliverable() {
                    prop_assert!(owed >> vector & 1 != 0);
                    owed &= !(1 << vector);
                }
                let state = msi.vector(vector);
                let sent = msi.signal(vector);
                prop_assert_eq!(sent.is_some(), state.in_use && !state.masked);
                if state.in_use && state.masked { owed |= 1 << vector; }
                prop_assert_eq!(msi.control() & 0xff8e, Msi::new(capability, host).control() & 0xff8e);
                prop_assert_eq!(msi.pending(), owed);
            }
        }
    }
}
