//! REGION_READ and REGION_WRITE: config space and trapped BAR access.

use crate::config::Config;
use crate::protocol::{Refusal, at_least, refuse};
use cordon_vmm::PassthroughDevice;
use cordon_vmm::device::CONFIG_REGION;

/// What is accessed.
struct Access {
    offset: u64,
    region: u32,
    count: u32,
}

impl Access {
    /// Checks the request against the region.
    fn parse(device: &dyn PassthroughDevice, body: &[u8], most: u32) -> Result<Self, Refusal> {
        let mut fields = at_least(body, 16)?;
        let access = Self { offset: fields.double(), region: fields.word(), count: fields.word() };
        let Self { offset, region, count } = access;
        let said = format!("region {region}, {count} bytes at {offset:#x}");
        if count == 0 || count > most {
            return refuse(libc::EINVAL, format!("{said}: 1 to {most} bytes are allowed"));
        }
        let size = device.region_info(region)?.size;
        match offset.checked_add(count.into()) {
            Some(end) if end <= size => Ok(access),
            _ => refuse(libc::EINVAL, format!("{said}: the region has {size:#x}")),
        }
    }

    /// The BAR, for a region that is not config space. ROM and VGA are empty and were refused.
    fn bar(&self) -> u8 {
        u8::try_from(self.region).unwrap_or(u8::MAX)
    }

    /// The body of an answer begins with the request's.
    fn answer(&self) -> Vec<u8> {
        let mut body = self.offset.to_le_bytes().to_vec();
        body.extend_from_slice(&self.region.to_le_bytes());
        body.extend_from_slice(&self.count.to_le_bytes());
        body
    }
}

/// The largest single access at `offset` that is aligned and not longer than `left`.
fn width(offset: u64, left: usize) -> usize {
    [8, 4, 2, 1]
        .into_iter()
        .find(|width| *width <= left && offset.is_multiple_of(*width as u64))
        .unwrap_or(1)
}

/// REGION_READ where nobody answers.
pub(super) fn read_nothing(
    device: &dyn PassthroughDevice,
    body: &[u8],
    most: u32,
) -> Result<Vec<u8>, Refusal> {
    let access = Access::parse(device, body, most)?;
    let mut answer = access.answer();
    answer.resize(answer.len() + access.count as usize, 0xff);
    Ok(answer)
}

/// REGION_WRITE where nobody answers.
pub(super) fn write_nothing(
    device: &dyn PassthroughDevice,
    body: &[u8],
    most: u32,
) -> Result<Vec<u8>, Refusal> {
    Ok(Access::parse(device, body, most)?.answer())
}

/// REGION_READ; the body of the answer.
pub(super) fn read(
    device: &dyn PassthroughDevice,
    config: &mut Config,
    body: &[u8],
    most: u32,
) -> Result<Vec<u8>, Refusal> {
    let access = Access::parse(device, body, most)?;
    let mut answer = access.answer();
    let begin = answer.len();
    answer.resize(begin + access.count as usize, 0);
    let data = &mut answer[begin..];
    if access.region == CONFIG_REGION {
        config.read(device, u32::try_from(access.offset).unwrap_or(u32::MAX), data)?;
        return Ok(answer);
    }
    let (mut at, mut rest) = (access.offset, data);
    while !rest.is_empty() {
        let width = width(at, rest.len());
        let (now, later) = rest.split_at_mut(width);
        config.read_bar(device, access.bar(), at, now)?;
        at += width as u64;
        rest = later;
    }
    Ok(answer)
}

/// REGION_WRITE; the body of the answer.
pub(super) fn write(
    device: &dyn PassthroughDevice,
    config: &mut Config,
    body: &[u8],
    most: u32,
) -> Result<Vec<u8>, Refusal> {
    let access = Access::parse(device, body, most)?;
    let data = &body[16..];
    if data.len() != access.count as usize {
        let why = format!("{} bytes of data for a write of {}", data.len(), access.count);
        return refuse(libc::EINVAL, why);
    }
    if access.region == CONFIG_REGION {
        config.write(device, u32::try_from(access.offset).unwrap_or(u32::MAX), data)?;
        return Ok(access.answer());
    }
    let (mut at, mut rest) = (access.offset, data);
    while !rest.is_empty() {
        let width = width(at, rest.len());
        let (now, later) = rest.split_at(width);
        config.write_bar(device, access.bar(), at, now)?;
        at += width as u64;
        rest = later;
    }
    Ok(access.answer())
}
