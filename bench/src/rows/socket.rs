//! A region read by vfio-user: `cordon serve`, the `vfio_user` crate's own server, and a bare echo.

use std::io::Error;
use std::path::Path;

use cordon_tests::serve::Serve;
use cordon_tests::{Simulator, Vmm, config};
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion};

use super::{Bar, Failure, Report, Row};
use crate::measure::Meter;
use crate::raw::echo;

/// A scratch register.
const SCRATCH: u64 = 0x10;

/// What two of the rows are compared with.
const PAIR: &str = "the vfio_user crate's client and server";

/// Bytes of a read request of 4 bytes and of its answer.
const REQUEST: usize = 32;
const ANSWER: usize = 36;

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let mut ours = Client::new(&serve.socket("01:00.0"))?;
    let directory = tempfile::tempdir()?;
    let mut theirs = pair(&directory.path().join("pair"))?;
    {
        let mut read = || Ok(ours.region_read(0, SCRATCH, &mut [0; 4])?);
        let mut pair = || Ok(theirs.region_read(0, SCRATCH, &mut [0; 4])?);
        let pair = meter.pair(&mut read, &mut pair)?;
        row(Row::new("serve-bar-read", pair, PAIR, Bar::ratio(1.0)))?;
        let mut socket = echo(REQUEST, ANSWER)?;
        let pair = meter.pair(&mut read, &mut || Ok(socket.round_trip()?))?;
        let baseline = "an echo of as many bytes on the same kind of socket";
        row(Row::new("serve-bar-read-over-echo", pair, baseline, Bar::ratio(1.15)))?;
    }
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let function = vmm.attach("02:00.0");
    let mut read = || Ok(function.bar_read(0, SCRATCH, &mut [0; 4])?);
    let mut pair = || Ok(theirs.region_read(0, SCRATCH, &mut [0; 4])?);
    let pair = meter.pair(&mut read, &mut pair)?;
    row(Row::new("linked-bar-read", pair, PAIR, Bar::ratio(0.05)))?;
    Ok(theirs.shutdown()?)
}

/// A client of the crate's server, which has one region of memory and ends with its client.
fn pair(path: &Path) -> Result<Client, Failure> {
    let region = |index: u32, size: u64| {
        let flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        let region_info = vfio_region_info {
            argsz: u32::try_from(size_of::<vfio_region_info>()).unwrap_or(0),
            index,
            size,
            flags: if size > 0 { flags } else { 0 },
            ..Default::default()
        };
        ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
    };
    let regions = (0..9).map(|index| region(index, if index == 0 { 0x1000 } else { 0 })).collect();
    let server = Server::new(path, false, Vec::new(), regions)?;
    std::thread::spawn(move || server.run(&mut Memory([0; 0x1000])));
    Ok(Client::new(path)?)
}

/// What the crate's server serves.
struct Memory([u8; 0x1000]);

impl ServerBackend for Memory {
    fn region_read(&mut self, _: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = start.checked_add(data.len()).and_then(|end| self.0.get(start..end));
        data.copy_from_slice(from.ok_or(std::io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn region_write(&mut self, _: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = start.checked_add(data.len()).and_then(|end| self.0.get_mut(start..end));
        to.ok_or(std::io::ErrorKind::InvalidInput)?.copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        _: u64,
        _: u64,
        _: u64,
        _: Option<std::fs::File>,
    ) -> Result<(), Error> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn set_irqs(
        &mut self,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: Vec<std::fs::File>,
    ) -> Result<(), Error> {
        Ok(())
    }
}
