//! DEVICE_SET_IRQS: the client's events. They go to the function process, which signals them
//! itself; nothing of an interrupt passes through here.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use ipc::event::Signaller;
use ipc::wire::function::InterruptIndex;

use crate::protocol::{Refusal, at_least, refuse};
use cordon_vmm::PassthroughDevice;
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::error::answered;

const DATA_NONE: u32 = 1;
const DATA_BOOL: u32 = 1 << 1;
const DATA_EVENTFD: u32 = 1 << 2;
const MASK: u32 = 1 << 3;
const UNMASK: u32 = 1 << 4;
const TRIGGER: u32 = 1 << 5;

/// The vectors that have an event of the client's, each of which is a descriptor that is held.
pub(super) struct Events {
    most: usize,
    held: BTreeSet<(u8, u16)>,
}

impl Events {
    /// None yet, and at most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { most, held: BTreeSet::new() }
    }

    /// Carries out one SET_IRQS. Descriptors that it does not speak of are closed.
    pub(super) fn set(
        &mut self,
        device: &dyn PassthroughDevice,
        body: &[u8],
        descriptors: Vec<OwnedFd>,
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
            self.held.retain(|(held, _)| *held != index as u8);
            return Ok(device.set_interrupts(index, InterruptSetup::Disable)?);
        }
        if count == 0 {
            return refuse(libc::EINVAL, format!("{said}: no vectors"));
        }
        match flags {
            _ if flags == DATA_EVENTFD | TRIGGER => {
                self.assign(device, index, start, count, descriptors, &said)
            }
            _ if flags & (DATA_NONE | DATA_BOOL | DATA_EVENTFD) == DATA_BOOL => {
                let Some(data) = fields.0.get(..count.into()) else {
                    return refuse(libc::EINVAL, format!("{said}: not one byte for each vector"));
                };
                let chosen = (start..).zip(data).filter(|(_, byte)| **byte != 0);
                for (vector, _) in chosen {
                    act(device, index, flags & !DATA_BOOL, vector, 1, &said)?;
                }
                Ok(())
            }
            _ if flags & (DATA_NONE | DATA_BOOL | DATA_EVENTFD) == DATA_NONE => {
                act(device, index, flags & !DATA_NONE, start, count, &said)
            }
            _ => refuse(libc::EINVAL, format!("{said}: flags that do not go together")),
        }
    }

    /// One descriptor for each vector, or none at all, which takes them away.
    fn assign(
        &mut self,
        device: &dyn PassthroughDevice,
        index: InterruptIndex,
        start: u16,
        count: u16,
        descriptors: Vec<OwnedFd>,
        said: &str,
    ) -> Result<(), Refusal> {
        let vectors = (start..).take(count.into()).map(|vector| (index as u8, vector));
        let given = descriptors.len();
        let mut held = self.held.clone();
        let signallers = if given == 0 {
            for vector in vectors {
                held.remove(&vector);
            }
            (0..count).map(|_| None).collect()
        } else if given == usize::from(count) {
            held.extend(vectors);
            if held.len() > self.most {
                let why = format!("{said}: one client may give {} events", self.most);
                return refuse(libc::EMFILE, why);
            }
            let each = (start..).zip(descriptors);
            each.map(|(vector, one)| taken(vector, one, said)).collect::<Result<_, _>>()?
        } else {
            return refuse(libc::EINVAL, format!("{said}: {given} descriptors"));
        };
        device.set_interrupts(index, InterruptSetup::Assign { start, signallers })?;
        self.held = held;
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

fn act(
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
    // Nobody answers on a bus without the device, and nobody minds.
    answered(device.set_interrupts(index, setup))?;
    Ok(())
}
