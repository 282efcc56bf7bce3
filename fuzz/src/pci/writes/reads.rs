//! What a guest reads after it wrote, by the rows.

use cordon_pci::permission::{Shown, StructureId};
use cordon_pci::registers::CONFIG_SPACE;
use cordon_pci::{ConfigSpace, ResetCause};

use super::{Laid, Model};

/// What is known of the bits that a guest reads.
pub(super) struct Reads {
    /// Bits that the device answers.
    device: Vec<u8>,
    /// Bits that are as the guest wrote them last.
    guest: Vec<u8>,
    /// Bits of which it is known what they are: all but the models' own, and those of which two
    /// structures say something else.
    known: Vec<u8>,
    /// What the host had set.
    host: Vec<u8>,
    /// What the guest wrote last.
    written: Vec<u8>,
}

impl Reads {
    pub(super) fn new(structures: &[Laid], config: &[u8]) -> Self {
        let space = || vec![0u8; CONFIG_SPACE];
        let (mut guest, mut zero, mut model) = (space(), space(), space());
        // MSI and MSI-X are written to where reads find them with what is only read of them: over what
        // another structure has there, if it has anything.
        let mut image = space();
        for (start, length, structure) in structures {
            let is_image = matches!(structure.id, StructureId::Standard(0x05 | 0x11));
            for field in structure.fields {
                let bits = match field.shown {
                    Shown::Guest => &mut guest,
                    Shown::Zero => &mut zero,
                    Shown::Model => &mut model,
                    Shown::Device if is_image => &mut image,
                    Shown::Device => continue,
                };
                let end = field.offset.saturating_add(field.length).min(*length);
                for into in field.offset..end {
                    bits[usize::from(*start) + usize::from(into)] |= field.mask(into, *length);
                }
            }
        }
        let (mut device, mut known) = (space(), space());
        for at in 0..CONFIG_SPACE {
            let kept = guest[at] | zero[at];
            device[at] = !(kept | model[at]);
            known[at] = !(model[at] | guest[at] & zero[at] | kept & image[at]);
        }
        Self { device, guest, known, host: config.to_vec(), written: config.to_vec() }
    }

    /// A guest wrote; whether the reset that it is told of is the one that it asked for.
    pub(super) fn write(
        &mut self,
        offset: u32,
        data: &[u8],
        model: &Model,
        reset: Option<ResetCause>,
    ) {
        let places = offset as usize..CONFIG_SPACE.max(offset as usize);
        for (at, value) in places.zip(data) {
            self.written[at] = *value;
        }
        let asked = model.asks_for_reset(offset, data);
        assert_eq!(asked, reset == Some(ResetCause::FunctionLevel), "{offset:#x} {data:x?}");
        if reset == Some(ResetCause::PowerUp) {
            let (at, loses_state) = model.power.expect("a power state");
            let value = at.checked_sub(offset as usize).and_then(|into| data.get(into));
            assert!(loses_state && value.is_some_and(|value| value & 3 == 0));
        }
        if reset.is_some() {
            self.written.copy_from_slice(&self.host);
        }
    }

    /// What a read shows of the bits that are known, where the device answers all bits so.
    fn wanted(&self, at: usize, device: u8) -> u8 {
        self.device[at] & device | self.guest[at] & self.written[at] & !self.device[at]
    }

    /// A read shows the same whatever the device answers for what is kept here, and whatever its pieces.
    pub(super) fn check(&self, space: &ConfigSpace, offset: u32, length: usize) {
        let mut whole = vec![0x5a; length];
        space.overlay(offset, &mut whole);
        for (at, byte) in (u64::from(offset)..).zip(whole) {
            let Ok(at) = u32::try_from(at) else { break };
            let mut one = [0x5a];
            space.overlay(at, &mut one);
            assert_eq!(one[0], byte);
            let mut other = [!0x5a];
            space.overlay(at, &mut other);
            let Some(from_device) = self.device.get(at as usize) else {
                assert_eq!((one, other), ([0], [0]), "past the end");
                continue;
            };
            assert_eq!(one[0] ^ other[0], *from_device, "{at:#x}");
            assert_eq!(space.needs_device(at, 1), *from_device != 0, "{at:#x}");
            let wrong = (byte ^ self.wanted(at as usize, 0x5a)) & self.known[at as usize];
            assert_eq!(wrong, 0, "{at:#x} reads as {byte:#x}");
        }
    }

    /// The same of all of it.
    pub(super) fn check_all(&self, space: &ConfigSpace) {
        let mut whole = vec![0x5a; CONFIG_SPACE];
        space.overlay(0, &mut whole);
        let wrong = |at: usize| (whole[at] ^ self.wanted(at, 0x5a)) & self.known[at];
        let all = (0..CONFIG_SPACE).fold(0, |all, at| all | wrong(at));
        assert_eq!(all, 0, "{:x?}", (0..CONFIG_SPACE).find(|at| wrong(*at) != 0));
    }
}
