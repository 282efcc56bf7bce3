//! Config space as a client sees it: the device's, with BAR registers of this side's making.
//!
//! The dext shows BAR registers without addresses, and drops what is written to them, since the
//! host owns address decoding (P6.2). A client that sizes BARs the usual way (all ones written,
//! mask read) finds here what a device would show.

use ipc::wire::common::BarInfo;

use cordon_vmm::error::answered;
use cordon_vmm::{DeviceError, PassthroughDevice};

const BARS: std::ops::Range<u32> = 0x10..0x28;
const ROM: std::ops::Range<u32> = 0x30..0x34;

/// The registers that are made up.
#[derive(Debug)]
pub(super) struct VirtualConfig {
    registers: [u32; 6],
    /// Bits of each register that can be written.
    writable: [u32; 6],
    /// Bits of each register that are fixed: the type.
    fixed: [u32; 6],
}

impl VirtualConfig {
    pub(super) fn new(bars: &[Option<BarInfo>; 6]) -> Self {
        let (mut writable, mut fixed) = ([0; 6], [0; 6]);
        for (number, info) in bars.iter().enumerate() {
            let Some(info) = info.filter(|info| info.size > 0) else { continue };
            let mask = !(info.size.next_power_of_two() - 1);
            let halves = mask.to_le_bytes();
            let [low, high] = [&halves[..4], &halves[4..]].map(word);
            fixed[number] = info.kind.into();
            writable[number] = low & if info.kind & BarInfo::IO != 0 { !0x3 } else { !0xf };
            if info.kind & BarInfo::WIDTH_64 != 0 && number + 1 < 6 {
                writable[number + 1] = high;
            }
        }
        Self { registers: [0; 6], writable, fixed }
    }

    /// BAR registers as after a reset.
    pub(super) fn reset(&mut self) {
        self.registers = [0; 6];
    }

    fn byte(&self, at: u32) -> u8 {
        if ROM.contains(&at) {
            return 0;
        }
        let into = at - BARS.start;
        let (number, byte) = ((into / 4) as usize, (into % 4) as usize);
        (self.registers[number] & self.writable[number] | self.fixed[number]).to_le_bytes()[byte]
    }

    fn is_virtual(at: u32) -> bool {
        BARS.contains(&at) || ROM.contains(&at)
    }

    /// Reads any range; a device that is gone reads as all ones.
    pub(super) fn read(
        &self,
        device: &dyn PassthroughDevice,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        if !answered(device.config_read(offset, data))? {
            data.fill(0xff);
            return Ok(());
        }
        for (at, byte) in (offset..).zip(data) {
            if Self::is_virtual(at) {
                *byte = self.byte(at);
            }
        }
        Ok(())
    }

    /// Writes any range: what is virtual here, the rest to the device, in pieces of 4, 2 and 1.
    pub(super) fn write(
        &mut self,
        device: &dyn PassthroughDevice,
        offset: u32,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        let (mut at, mut rest) = (offset, data);
        while let Some((first, later)) = rest.split_first() {
            if Self::is_virtual(at) {
                self.store(at, *first);
                (at, rest) = (at + 1, later);
                continue;
            }
            let fits = |width: usize| {
                let end = at + u32::try_from(width).unwrap_or_default();
                rest.len() >= width
                    && at % u32::try_from(width).unwrap_or(1) == 0
                    && !(at..end).any(Self::is_virtual)
            };
            let width = [4, 2, 1].into_iter().find(|width| fits(*width)).unwrap_or(1);
            let (now, later) = rest.split_at(width);
            answered(device.config_write(at, now))?;
            (at, rest) = (at + u32::try_from(width).unwrap_or_default(), later);
        }
        Ok(())
    }

    fn store(&mut self, at: u32, value: u8) {
        if BARS.contains(&at) {
            let into = at - BARS.start;
            let register = &mut self.registers[(into / 4) as usize];
            let mut bytes = register.to_le_bytes();
            bytes[(into % 4) as usize] = value;
            *register = u32::from_le_bytes(bytes);
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(kind: u8, size: u64) -> [u32; 2] {
        let mut bars = [None; 6];
        bars[2] = Some(BarInfo { memory_index: 0, size, kind });
        let mut config = VirtualConfig::new(&bars);
        for at in 0x18..0x20 {
            config.store(at, 0xff);
        }
        [0x18, 0x1c].map(|at| {
            let bytes: Vec<u8> = (at..at + 4).map(|at| config.byte(at)).collect();
            word(&bytes)
        })
    }

    #[test]
    fn sizing_shows_mask_and_type() {
        assert_eq!(sized(0, 0x1000), [0xffff_f000, 0]);
        assert_eq!(sized(BarInfo::IO, 64), [0xffff_ffc1, 0]);
        let wide = BarInfo::WIDTH_64 | BarInfo::PREFETCHABLE;
        assert_eq!(sized(wide, 1 << 20), [0xfff0_000c, 0xffff_ffff]);
        assert_eq!(sized(wide, 1 << 33), [0x0000_000c, 0xffff_fffe]);
        assert_eq!(sized(0, 0), [0, 0]);
    }
}
