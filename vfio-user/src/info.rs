//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO.

use crate::protocol::{Refusal, at_least, refuse};
use cordon_vmm::device::{BarMemory, INTERRUPT_INDEXES, REGIONS};
use cordon_vmm::{InterruptIndex, PassthroughDevice};

const RESETTABLE: u32 = 1;
const PCI: u32 = 1 << 1;

const READ: u32 = 1;
const WRITE: u32 = 1 << 1;
const MMAP: u32 = 1 << 2;
const CAPABILITIES: u32 = 1 << 3;

const EVENTFD: u32 = 1;
const MASKABLE: u32 = 1 << 1;
const AUTOMASKED: u32 = 1 << 2;
const NO_RESIZE: u32 = 1 << 3;

/// Bytes of the region description before its capabilities.
const REGION: u32 = 32;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// DEVICE_GET_INFO.
pub(super) fn device(body: &[u8], resettable: bool) -> Result<Vec<u8>, Refusal> {
    let argument = at_least(body, 16)?.word();
    if argument < 16 {
        return refuse(libc::EINVAL, format!("argsz {argument} is below 16"));
    }
    let flags = if resettable { RESETTABLE | PCI } else { PCI };
    Ok(words(&[16, flags, REGIONS, INTERRUPT_INDEXES]))
}

/// A region as the client is told: the body, and the memory of its windows.
pub(super) struct Region {
    pub(super) body: Vec<u8>,
    pub(super) memory: Option<BarMemory>,
}

/// DEVICE_GET_REGION_INFO. Where only parts of a region can be mapped, the client asks twice: the
/// first answer says how long the second is. A client that takes no descriptor maps nothing.
pub(super) fn region(
    device: &dyn PassthroughDevice,
    body: &[u8],
    takes_descriptors: bool,
) -> Result<Region, Refusal> {
    let mut fields = at_least(body, 32)?;
    let (argument, _, index) = (fields.word(), fields.word(), fields.word());
    if argument < REGION {
        return refuse(libc::EINVAL, format!("argsz {argument} is below {REGION}"));
    }
    let info = device.region_info(index)?;
    let mut windows = if takes_descriptors { shared(device.windows()?, index) } else { Vec::new() };
    let whole = matches!(&windows[..], [one] if one.offset == 0 && one.length == info.size);
    let count = u32::try_from(windows.len()).unwrap_or_default();
    let full = if count == 0 || whole { REGION } else { REGION + 16 + 16 * count };
    let flags = READ | WRITE | if count > 0 { MMAP } else { 0 };
    let complete = argument >= full;
    let (flags, capability) =
        if complete && full > REGION { (flags | CAPABILITIES, REGION) } else { (flags, 0) };
    // Where the region would begin in the memory, which the areas are counted from.
    let offset = windows.first().map_or(info.offset, |one| one.memory_offset - one.offset);
    let mut answer = words(&[full, flags, index, capability]);
    answer.extend_from_slice(&info.size.to_le_bytes());
    answer.extend_from_slice(&offset.to_le_bytes());
    if complete && full > REGION {
        // Sparse areas: id 1, version 1, the only capability.
        answer.extend_from_slice(&words(&[1 | 1 << 16, 0, count, 0]));
        for window in &windows {
            answer.extend_from_slice(&window.offset.to_le_bytes());
            answer.extend_from_slice(&window.length.to_le_bytes());
        }
    }
    let memory = if complete && count > 0 { Some(windows.swap_remove(0)) } else { None };
    Ok(Region { body: answer, memory })
}

/// The windows of a BAR that lie in one memory at one distance: a client takes one descriptor for
/// a region. What does not is served by traps.
fn shared(windows: Vec<BarMemory>, index: u32) -> Vec<BarMemory> {
    let of_bar = windows.into_iter().filter(|window| u32::from(window.bar) == index);
    let mut of_bar = of_bar.filter(|window| {
        window.memory.descriptor().is_some() && window.memory_offset >= window.offset
    });
    let Some(first) = of_bar.next() else { return Vec::new() };
    let distance = first.memory_offset - first.offset;
    let rest: Vec<_> = of_bar
        .filter(|one| one.memory_offset - one.offset == distance && one.is_same_memory(&first))
        .collect();
    let mut all = vec![first];
    all.extend(rest);
    all
}

/// An interrupt index by its number.
pub(crate) fn interrupt_index(number: u32) -> Result<InterruptIndex, Refusal> {
    InterruptIndex::try_from(number).or_else(|other| {
        refuse(libc::EINVAL, format!("there is no interrupt index {other}: 0 to 4 are there"))
    })
}

/// DEVICE_GET_IRQ_INFO.
pub(super) fn interrupt(device: &dyn PassthroughDevice, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut fields = at_least(body, 16)?;
    let (argument, _, index) = (fields.word(), fields.word(), fields.word());
    if argument < 16 {
        return refuse(libc::EINVAL, format!("argsz {argument} is below 16"));
    }
    let info = device.interrupt_info(interrupt_index(index)?);
    let flags = match index {
        0 => EVENTFD | MASKABLE | AUTOMASKED,
        1 | 2 => EVENTFD | NO_RESIZE,
        _ => 0,
    };
    Ok(words(&[16, flags, index, info.count]))
}
