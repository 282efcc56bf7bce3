//! DEVICE_SET_IRQS: the client's events. They go to the function process, which signals them
//! itself; nothing of an interrupt passes through here.
//!
//! INTx is held back while the client masks it, and while the guest forbids it by COMMAND: either is
//! enough, and an UNMASK of the client's does not undo the guest's.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use ipc::event::Signaller;
use ipc::wire::function::InterruptIndex;

use crate::kept::EventsRecord;
use crate::options::BudgetKind;
use crate::protocol::{Refusal, at_least, refuse, refuse_beyond};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::error::{ErrorKind, answered};
use cordon_vmm::{DeviceError, PassthroughDevice};

const DATA_NONE: u32 = 1;
const DATA_BOOL: u32 = 1 << 1;
const DATA_EVENTFD: u32 = 1 << 2;
const MASK: u32 = 1 << 3;
const UNMASK: u32 = 1 << 4;
const TRIGGER: u32 = 1 << 5;

/// What becomes of events.
pub(super) enum Change<'e> {
    /// These vectors are given these events, or none; and how things are.
    Begins { before: EventsRecord, events: Vec<((u8, u16), Option<&'e Signaller>)> },
    /// They were not: each has what it had.
    Refused,
}

/// The vectors that have an event of the client's, each of which is a descriptor that is held.
pub(super) struct Events {
    most: usize,
    held: BTreeSet<(u8, u16)>,
    /// The client masked INTx.
    intx_masked: bool,
    /// The guest forbade it, and it is held back for that.
    intx_disabled: bool,
}

impl Events {
    /// None yet, and at most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { most, held: BTreeSet::new(), intx_masked: false, intx_disabled: false }
    }

    /// As another server had them: each vector is given its event again. The device signals message vectors once, since
    /// one may have come while nobody was there; INTx only if it asserts it. A device that is gone has none.
    pub(super) fn adopt(
        most: usize,
        device: &dyn PassthroughDevice,
        record: &EventsRecord,
        events: BTreeMap<(u8, u16), OwnedFd>,
    ) -> Result<Self, String> {
        let mut taken = BTreeMap::<u8, Vec<(u16, Signaller)>>::new();
        let mut held = BTreeSet::new();
        for ((index, vector), event) in events {
            let said = format!("interrupt index {index}");
            if let Some(one) = self::taken(vector, event, &said).map_err(|refusal| refusal.why)? {
                taken.entry(index).or_default().push((vector, one));
                held.insert((index, vector));
            }
        }
        for (index, vectors) in taken {
            let index = InterruptIndex::try_from(u32::from(index)).map_err(|_| "no such index")?;
            let count = vectors.last().map_or(0, |(vector, _)| usize::from(*vector) + 1);
            let mut signallers: Vec<Option<Signaller>> = (0..count).map(|_| None).collect();
            for (vector, one) in vectors {
                signallers[usize::from(vector)] = Some(one);
            }
            let setup = InterruptSetup::Assign { start: 0, signallers };
            answered(device.set_interrupts(index, setup)).map_err(|error| error.to_string())?;
        }
        let EventsRecord { intx_masked, intx_disabled, .. } = *record;
        let events = Self { most, held, intx_masked, intx_disabled };
        if events.uses_intx() && (intx_masked || intx_disabled) {
            let masked = device.set_interrupts(InterruptIndex::Intx, InterruptSetup::Mask);
            answered(masked).map_err(|error| error.to_string())?;
        }
        Ok(events)
    }

    /// For another server.
    pub(super) fn record(&self) -> EventsRecord {
        EventsRecord {
            held: self.held.iter().copied().collect(),
            changing: Vec::new(),
            names: Vec::new(),
            intx_masked: self.intx_masked,
            intx_disabled: self.intx_disabled,
        }
    }

    fn uses_intx(&self) -> bool {
        self.held.contains(&(InterruptIndex::Intx as u8, 0))
    }

    /// COMMAND forbids INTx, or does not any more. What cannot be done is tried again when it is
    /// called again.
    pub(super) fn disable_intx(
        &mut self,
        device: &dyn PassthroughDevice,
        disabled: bool,
    ) -> Result<(), DeviceError> {
        let setup = match (disabled, self.intx_disabled) {
            (true, false) => InterruptSetup::Mask,
            (false, true) => InterruptSetup::Unmask,
            _ => return Ok(()),
        };
        if self.uses_intx() && !self.intx_masked {
            match answered(device.set_interrupts(InterruptIndex::Intx, setup)) {
                // It is no part of what the client asked for, and the client waits.
                Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(()),
                done => done.map(drop)?,
            }
        }
        self.intx_disabled = disabled;
        Ok(())
    }

    /// Carries out one SET_IRQS. Descriptors that it does not speak of are closed. `keep` is told before events are
    /// given, replaced or taken away, and when that was refused.
    pub(super) fn set(
        &mut self,
        device: &dyn PassthroughDevice,
        body: &[u8],
        descriptors: Vec<OwnedFd>,
        keep: &mut dyn FnMut(Change<'_>),
    ) -> Result<(), Refusal> {
        let mut fields = at_least(body, 20)?;
        let (argument, flags) = (fields.word(), fields.word());
        let (number, start, count) = (fields.word(), fields.word(), fields.word());
        if argument < 20 {
            return refuse(libc::EINVAL, format!("argsz {argument} is below 20"));
        }
        let info = device.interrupt_info(crate::info::interrupt_index(number)?);
        let index = info.index;
        let said = format!("{index:?} vectors {start}+{count}, flags {flags:#x}");
        let end = start.checked_add(count).filter(|end| *end <= info.count);
        let narrow = |value: u32| u16::try_from(value).ok();
        let (Some(_), Some(start), Some(count)) = (end, narrow(start), narrow(count)) else {
            return refuse(libc::EINVAL, format!("{said}: it has {}", info.count));
        };
        // An index without vectors may still be switched off.
        if flags == DATA_NONE | TRIGGER && start == 0 && count == 0 {
            let of_index = self.held.iter().filter(|(held, _)| *held == index as u8);
            let events: Vec<_> = of_index.map(|vector| (*vector, None)).collect();
            if !events.is_empty() {
                keep(Change::Begins { before: self.record(), events });
            }
            self.held.retain(|(held, _)| *held != index as u8);
            self.intx_masked &= self.uses_intx();
            return Ok(device.set_interrupts(index, InterruptSetup::Disable)?);
        }
        if count == 0 {
            return refuse(libc::EINVAL, format!("{said}: no vectors"));
        }
        match flags {
            _ if flags == DATA_EVENTFD | TRIGGER => {
                self.assign(device, index, (start, count), descriptors, &said, keep)
            }
            _ if flags & (DATA_NONE | DATA_BOOL | DATA_EVENTFD) == DATA_BOOL => {
                let Some(data) = fields.0.get(..count.into()) else {
                    return refuse(libc::EINVAL, format!("{said}: not one byte for each vector"));
                };
                let chosen = (start..).zip(data).filter(|(_, byte)| **byte != 0);
                for (vector, _) in chosen {
                    self.act(device, index, flags & !DATA_BOOL, vector, 1, &said)?;
                }
                Ok(())
            }
            _ if flags & (DATA_NONE | DATA_BOOL | DATA_EVENTFD) == DATA_NONE => {
                self.act(device, index, flags & !DATA_NONE, start, count, &said)
            }
            _ => refuse(libc::EINVAL, format!("{said}: flags that do not go together")),
        }
    }

    /// One descriptor for each vector, or none at all, which takes them away.
    fn assign(
        &mut self,
        device: &dyn PassthroughDevice,
        index: InterruptIndex,
        (start, count): (u16, u16),
        descriptors: Vec<OwnedFd>,
        said: &str,
        keep: &mut dyn FnMut(Change<'_>),
    ) -> Result<(), Refusal> {
        let vectors = (start..).take(count.into()).map(|vector| (index as u8, vector));
        let given = descriptors.len();
        let mut held = self.held.clone();
        let signallers: Vec<Option<Signaller>> = if given == 0 {
            for vector in vectors {
                held.remove(&vector);
            }
            (0..count).map(|_| None).collect()
        } else if given == usize::from(count) {
            held.extend(vectors);
            if held.len() > self.most {
                let why = format!("{said}: one client may give {} events", self.most);
                return refuse_beyond(BudgetKind::Events, self.most, libc::EMFILE, why);
            }
            let each = (start..).zip(descriptors);
            each.map(|(vector, one)| taken(vector, one, said)).collect::<Result<_, _>>()?
        } else {
            return refuse(libc::EINVAL, format!("{said}: {given} descriptors"));
        };
        let numbered = (start..).zip(&signallers);
        let events = numbered.map(|(vector, one)| ((index as u8, vector), one.as_ref()));
        keep(Change::Begins { before: self.record(), events: events.collect() });
        if let Err(error) =
            device.set_interrupts(index, InterruptSetup::Assign { start, signallers })
        {
            keep(Change::Refused);
            return Err(error.into());
        }
        self.held = held;
        if index == InterruptIndex::Intx {
            // One that is assigned anew is not masked.
            self.intx_masked = false;
            if self.intx_disabled && self.uses_intx() {
                answered(device.set_interrupts(index, InterruptSetup::Mask))?;
            }
        }
        Ok(())
    }

    fn act(
        &mut self,
        device: &dyn PassthroughDevice,
        index: InterruptIndex,
        action: u32,
        start: u16,
        count: u16,
        said: &str,
    ) -> Result<(), Refusal> {
        let setup = match action {
            TRIGGER => InterruptSetup::Trigger { start, count },
            MASK => InterruptSetup::Mask,
            UNMASK => InterruptSetup::Unmask,
            _ => return refuse(libc::EINVAL, format!("{said}: one action is needed")),
        };
        let of_intx = index == InterruptIndex::Intx && self.uses_intx();
        let held_back = of_intx && action == UNMASK && self.intx_disabled;
        if !held_back {
            // Nobody answers on a bus without the device, and nobody minds.
            answered(device.set_interrupts(index, setup))?;
        }
        if of_intx && action != TRIGGER {
            self.intx_masked = action == MASK;
        }
        Ok(())
    }
}

/// A descriptor that can be signalled without waiting for anybody.
fn taken(vector: u16, descriptor: OwnedFd, said: &str) -> Result<Option<Signaller>, Refusal> {
    match Signaller::from_peer(descriptor) {
        Ok(signaller) => Ok(Some(signaller)),
        Err(error) => {
            refuse(libc::EINVAL, format!("{said}: vector {vector}: {}", ipc::chain(&error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Call, Fake};
    use Call::{Assign, Disable, Mask, Trigger, Unmask};
    use InterruptIndex::{Intx, Msix};

    fn events() -> (Fake, Events) {
        (Fake::new(vec![0; 4096], [None; 6]), Events::new(8))
    }

    fn set(fake: &Fake, events: &mut Events, flags: u32, index: u32, count: u32) {
        let body: Vec<u8> =
            [20, flags, index, 0, count].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let descriptor = || {
            let signaller = ipc::Event::new().unwrap().signaller().unwrap();
            std::os::fd::AsFd::as_fd(&signaller).try_clone_to_owned().unwrap()
        };
        let install = flags == DATA_EVENTFD | TRIGGER;
        let descriptors = (0..count).filter(|_| install).map(|_| descriptor()).collect();
        events
            .set(fake, &body, descriptors, &mut |_| {})
            .unwrap_or_else(|refusal| panic!("{refusal:?}"));
    }

    const INSTALL: u32 = DATA_EVENTFD | TRIGGER;

    #[test]
    fn command_holds_intx_back_whatever_the_client_does_meanwhile() {
        let (fake, mut events) = events();
        events.disable_intx(&fake, true).unwrap();
        assert_eq!(fake.calls(), [], "there is no line yet");
        set(&fake, &mut events, INSTALL, 0, 1);
        assert_eq!(fake.calls(), [Assign(Intx), Mask(Intx)]);
        // The end of an interrupt that came before.
        set(&fake, &mut events, DATA_NONE | UNMASK, 0, 1);
        assert_eq!(fake.calls(), []);
        events.disable_intx(&fake, true).unwrap();
        events.disable_intx(&fake, false).unwrap();
        events.disable_intx(&fake, false).unwrap();
        assert_eq!(fake.calls(), [Unmask(Intx)]);
        set(&fake, &mut events, DATA_NONE | UNMASK, 0, 1);
        assert_eq!(fake.calls(), [Unmask(Intx)]);
    }

    #[test]
    fn what_the_client_masked_stays_masked_when_command_allows_it_again() {
        let (fake, mut events) = events();
        set(&fake, &mut events, INSTALL, 0, 1);
        set(&fake, &mut events, DATA_NONE | MASK, 0, 1);
        events.disable_intx(&fake, true).unwrap();
        events.disable_intx(&fake, false).unwrap();
        assert_eq!(fake.calls(), [Assign(Intx), Mask(Intx)]);
        set(&fake, &mut events, DATA_NONE | UNMASK, 0, 1);
        assert_eq!(fake.calls(), [Unmask(Intx)]);
        // Until it is taken away.
        set(&fake, &mut events, DATA_NONE | MASK, 0, 1);
        set(&fake, &mut events, DATA_NONE | TRIGGER, 0, 0);
        set(&fake, &mut events, INSTALL, 0, 1);
        fake.calls();
        events.disable_intx(&fake, true).unwrap();
        events.disable_intx(&fake, false).unwrap();
        assert_eq!(fake.calls(), [Mask(Intx), Unmask(Intx)]);
    }

    #[test]
    fn command_is_about_intx_only() {
        let (fake, mut events) = events();
        set(&fake, &mut events, INSTALL, 2, 2);
        events.disable_intx(&fake, true).unwrap();
        set(&fake, &mut events, DATA_NONE | TRIGGER, 2, 2);
        set(&fake, &mut events, DATA_NONE | TRIGGER, 2, 0);
        assert_eq!(fake.calls(), [Assign(Msix), Trigger(Msix), Disable(Msix)]);
    }

    #[test]
    fn a_device_that_is_gone_minds_nothing() {
        let (fake, mut events) = events();
        set(&fake, &mut events, INSTALL, 0, 1);
        fake.goes_away();
        events.disable_intx(&fake, true).unwrap();
        fake.comes_back();
        events.disable_intx(&fake, false).unwrap();
        assert_eq!(fake.calls(), [Assign(Intx), Unmask(Intx)]);
    }
}
