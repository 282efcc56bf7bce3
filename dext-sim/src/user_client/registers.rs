//! Config space and BARs by calls.

use ipc::Window;
use ipc::wire::dext::IoReturn;

use super::{Scalars, UserClient};
use crate::config_space::ConfigSpace;

impl UserClient {
    pub(super) fn config_read(&self, offset: u64, width: u64) -> Scalars {
        let width = config_width(width)?;
        let value = self.function.hardware.config().read(offset, width);
        let mut value = value.ok_or(IoReturn::BAD_ARGUMENT)?;
        let status = ConfigSpace::interrupt_status(offset, width);
        if status != 0 && self.function.asserts() {
            value |= status;
        }
        Ok(vec![value.into()])
    }

    pub(super) fn config_write(&self, offset: u64, width: u64, value: u64) -> Scalars {
        let width = config_width(width)?;
        let low = u32::try_from(value & 0xffff_ffff).unwrap_or_default();
        let written = self.function.config_write(offset, width, low);
        written.map(|()| Vec::new()).ok_or(IoReturn::BAD_ARGUMENT)
    }

    pub(super) fn bar_info(&self, bar: u64) -> Scalars {
        let bars = &self.function.hardware.bars;
        let bar = usize::try_from(bar).ok().and_then(|bar| bars.get(bar));
        let bar = bar.ok_or(IoReturn::BAD_ARGUMENT)?;
        let info = bar.as_ref().ok_or(IoReturn::NOT_FOUND)?.info;
        Ok(vec![info.memory_index.into(), info.size, info.kind.into()])
    }

    /// The BAR behind a memory index, and the width of an access that lies in it.
    pub(super) fn mmio(
        &self,
        index: u64,
        offset: u64,
        width: u64,
    ) -> Result<(&Window, u8), IoReturn> {
        let mut bars = self.function.hardware.bars.iter().flatten();
        let bar = bars.find(|bar| u64::from(bar.info.memory_index) == index);
        let bar = bar.ok_or(IoReturn::BAD_ARGUMENT)?;
        let fits = offset.checked_add(width).is_some_and(|end| end <= bar.info.size);
        match width {
            1 | 2 | 4 | 8 if fits && offset.is_multiple_of(width) => {
                Ok((&bar.window, u8::try_from(width).unwrap_or_default()))
            }
            _ => Err(IoReturn::BAD_ARGUMENT),
        }
    }

    pub(super) fn mmio_read(&self, index: u64, offset: u64, width: u64) -> Scalars {
        let (window, width) = self.mmio(index, offset, width)?;
        if !self.function.hardware.memory_enabled() {
            // Nobody answers: the bus reads as ones.
            return Ok(vec![u64::MAX >> (64 - 8 * u32::from(width))]);
        }
        let value = window.read_width(offset, width).map_err(|_| IoReturn::BAD_ARGUMENT)?;
        Ok(vec![value])
    }

    pub(super) fn mmio_write(&self, index: u64, offset: u64, width: u64, value: u64) -> Scalars {
        let (window, width) = self.mmio(index, offset, width)?;
        if self.function.hardware.memory_enabled() {
            let written = window.write_width(offset, width, value);
            written.map_err(|_| IoReturn::BAD_ARGUMENT)?;
            self.function.hardware.wake();
        }
        Ok(Vec::new())
    }
}

fn config_width(width: u64) -> Result<usize, IoReturn> {
    match width {
        1 => Ok(1),
        2 => Ok(2),
        4 => Ok(4),
        _ => Err(IoReturn::BAD_ARGUMENT),
    }
}
