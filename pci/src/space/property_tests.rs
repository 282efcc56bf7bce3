//! Random guests and devices against the rules.

use super::*;
use crate::permission::tests::configs;

/// A device that takes what is forwarded; whatever it may not be told is an error.
fn apply(layout: &Layout, device: &mut [u8], effects: &Effects) -> Result<(), TestCaseError> {
    for one in effects.forwards.iter() {
        let value = one.value.to_le_bytes();
        for (at, value) in (usize::from(one.offset)..).zip(&value[..one.width.into()]) {
            let allowed = layout.forwarded_bits(u16::try_from(at).unwrap());
            prop_assert_eq!((device[at] ^ value) & !allowed & value, 0, "{:#x}", at);
            device[at] = *value;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..Default::default() })]

    #[test]
    fn edges_add_up_to_the_state(
        config in configs(), client: bool,
        steps in prop::collection::vec(
            (0u8..12, prop_oneof![0u32..0x120, 0u32..0x50, 0xa8u32..0xc0, 0u32..0x1010],
             prop::collection::vec(any::<u8>(), 0..9)), 0..60),
    ) {
        let options = if client { Options::vfio_user() } else { Options::linked() };
        let mut device = config.clone();
        let mut space = of(&config, options);
        let (mut windows, mut mode, mut line) = (false, space.mode(), false);
        let (mut command, mut power) = (0, PowerState::D0);
        for (step, offset, data) in steps {
            let mut change = None;
            let effects = match step {
                0 => space.reset(),
                1 => space.set_present(data.len() % 2 == 0),
                2 => {
                    if let Some(Delivery::Line(line)) = space.signal(u16::try_from(offset).unwrap()) {
                        change = Some(line);
                    }
                    Effects::default()
                }
                3 => { change = space.end_of_interrupt(); Effects::default() }
                4 => space.write_bar(data.len().to_le_bytes()[0], (offset & !3).into(), &data).unwrap_or_default(),
                _ => space.write(offset, &data).unwrap(),
            };
            apply(&space.layout().clone(), &mut device, &effects)?;
            windows = effects.windows.inspect(|now| assert_ne!(*now, windows)).unwrap_or(windows);
            command = effects.command.unwrap_or(command);
            power = effects.power.unwrap_or(power);
            prop_assert_eq!((windows, command, power), (space.windows_visible(), space.command(), space.power()));
            if client {
                prop_assert!(effects.interrupts.is_empty());
                continue;
            }
            mode = effects.interrupts.mode.unwrap_or(mode);
            prop_assert_eq!(mode, space.mode());
            match change.or(effects.interrupts.line) {
                Some(LineChange::Assert) => line = true,
                Some(LineChange::Deassert) => line = false,
                Some(LineChange::Pulse) => prop_assert!(line),
                None => {}
            }
            prop_assert_eq!(line, space.intx.is_asserted());
            prop_assert!(!line || mode == InterruptMode::Intx);
            if effects.interrupts.deliver {
                prop_assert!(space.next_message().is_some());
            }
            while space.next_message().is_some() {}
        }
    }

    /// A read in one piece is a read in bytes, and shows nothing of the host's that is kept here.
    #[test]
    fn reads_are_the_same_in_any_pieces(
        config in configs(), offset in 0u32..0x1010, length in 0usize..80, ones: bool,
        writes in prop::collection::vec((0u32..0x120, prop::collection::vec(any::<u8>(), 0..9)), 0..20),
    ) {
        let mut space = of(&config, Options::linked());
        for (offset, data) in writes {
            space.write(offset, &data).unwrap();
        }
        let answer = if ones { 0xff } else { 0x5a };
        let mut whole = vec![answer; length];
        space.overlay(offset, &mut whole);
        for (at, byte) in (offset..).zip(&whole) {
            let mut one = [answer];
            space.overlay(at, &mut one);
            prop_assert_eq!(one[0], *byte);
            if !space.needs_device(at, 1) {
                let mut other = [!answer];
                space.overlay(at, &mut other);
                prop_assert_eq!(other, one);
            }
        }
    }

    #[test]
    fn what_is_saved_is_shown_by_another_one_of_the_same_device(
        config in configs(),
        steps in prop::collection::vec(
            (any::<bool>(), prop_oneof![0u32..0x120, 0u32..0x50, 0xa8u32..0xc0, 0u32..0x1010],
             prop::collection::vec(any::<u8>(), 0..9)), 0..60),
        more in prop::collection::vec((0u32..0x120, prop::collection::vec(any::<u8>(), 1..5)), 0..8),
    ) {
        let mut space = of(&config, Options::vfio_user());
        for (is_bar, offset, data) in steps {
            if is_bar {
                let _ = space.write_bar(0, (offset & !7).into(), &data);
            } else {
                let _ = space.write(offset, &data).unwrap();
            }
        }
        let mut other = of(&config, Options::vfio_user());
        prop_assert!(!other.load(&space.save()[1..]));
        prop_assert!(other.load(&space.save()));
        for (offset, data) in std::iter::once((0, Vec::new())).chain(more) {
            let (one, two) = (space.write(offset, &data).unwrap(), other.write(offset, &data).unwrap());
            prop_assert_eq!(one.forwards, two.forwards);
            prop_assert_eq!((one.reset, space.command(), space.power()), (two.reset, other.command(), other.power()));
            let (mut shown, mut again) = (config.clone(), config.clone());
            space.overlay(0, &mut shown);
            other.overlay(0, &mut again);
            prop_assert_eq!(shown, again);
            prop_assert_eq!(space.save(), other.save());
        }
    }
}
