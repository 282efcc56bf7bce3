//! DEVICE_SET_IRQS: the client's events. They go to the function process, which signals them
//! itself; nothing of an interrupt passes through here.

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

/// Carries out one SET_IRQS.
pub(super) fn set(
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
    let said = format!("{:?} vectors {start}+{count}, flags {flags:#x}", info.index);
    let end = start.checked_add(count).filter(|end| *end <= info.count);
    // An index without vectors may still be switched off.
    let off = flags == DATA_NONE | TRIGGER && start == 0 && count == 0;
    let narrow = |value: u32| u16::try_from(value).ok();
    let (Some(_), Some(start), Some(count)) = (end, narrow(start), narrow(count)) else {
        return refuse(libc::EINVAL, format!("{said}: it has {}", info.count));
    };
    let wants_descriptors = flags == DATA_EVENTFD | TRIGGER;
    if !wants_descriptors && !descriptors.is_empty() {
        return refuse(libc::EINVAL, format!("{said}: {} descriptors", descriptors.len()));
    }
    if !off && count == 0 {
        return refuse(libc::EINVAL, format!("{said}: no vectors"));
    }
    match flags {
        _ if off => Ok(device.set_interrupts(info.index, InterruptSetup::Disable)?),
        _ if wants_descriptors => assign(device, info.index, start, count, descriptors, &said),
        _ if flags & (DATA_NONE | DATA_BOOL | DATA_EVENTFD) == DATA_BOOL => {
            let Some(data) = fields.0.get(..count.into()) else {
                return refuse(libc::EINVAL, format!("{said}: not one byte for each vector"));
            };
            let chosen = (start..).zip(data).filter(|(_, byte)| **byte != 0);
            for (vector, _) in chosen {
                act(device, info.index, flags & !DATA_BOOL, vector, 1, &said)?;
            }
            Ok(())
        }
        _ if flags & (DATA_NONE | DATA_BOOL | DATA_EVENTFD) == DATA_NONE => {
            act(device, info.index, flags & !DATA_NONE, start, count, &said)
        }
        _ => refuse(libc::EINVAL, format!("{said}: flags that do not go together")),
    }
}

/// One descriptor for each vector, or none at all, which takes them away.
fn assign(
    device: &dyn PassthroughDevice,
    index: InterruptIndex,
    start: u16,
    count: u16,
    descriptors: Vec<OwnedFd>,
    said: &str,
) -> Result<(), Refusal> {
    let signallers = match descriptors.len() {
        0 => (0..count).map(|_| None).collect(),
        given if given == usize::from(count) => {
            let each = (start..).zip(descriptors);
            each.map(|(vector, one)| taken(vector, one, said)).collect::<Result<_, _>>()?
        }
        given => return refuse(libc::EINVAL, format!("{said}: {given} descriptors")),
    };
    Ok(device.set_interrupts(index, InterruptSetup::Assign { start, signallers })?)
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
