//! A device of memory, whose accesses do what a test says, behind servers of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cordon_tests::vfio_user::Client;
use cordon_vfio_user::{Event, Options, Server};
use cordon_vmm::device::{
    BarMemory, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup, RegionInfo,
};
use cordon_vmm::{
    Access, BarInfo, Container, Deadline, DeviceError, DmaMode, Identity, InterruptIndex,
    PassthroughDevice, Space,
};

type OnAccess = Box<dyn Fn(Access, Deadline) -> Result<u64, DeviceError> + Send + Sync>;

/// The device: one BAR of 2 MiB, twice what a command may ask for, config space that reads as zero where `on_access` is not asked.
struct Fake {
    info: DeviceInfo,
    on_access: OnAccess,
}

impl Fake {
    fn new(on_access: OnAccess) -> Self {
        let address = cordon_tests::address("01:00.7");
        let identity = Identity { address, vendor: 0xc0d0, device: 0xfa, class: 0xff_0000 };
        let mut bars = [None; 6];
        bars[0] = Some(BarInfo { memory_index: 0, size: 2 << 20, kind: 0 });
        let name = "fake".to_owned();
        let info = DeviceInfo { name, identity, bars, msix: None, resettable: true };
        Self { info, on_access }
    }
}

impl PassthroughDevice for Fake {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn is_present(&self) -> bool {
        true
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        let size = [(0, 2 << 20), (7, 4096)].into_iter().find(|(known, _)| *known == index);
        let size = size.map_or(0, |(_, size)| size);
        Ok(RegionInfo { index, size, offset: u64::from(index) << 20, mappable: false })
    }

    fn interrupt_info(&self, index: InterruptIndex) -> InterruptInfo {
        InterruptInfo { index, count: 0, eventfd: false, no_resize: false }
    }

    fn access(&self, access: Access, deadline: Deadline) -> Result<u64, DeviceError> {
        (self.on_access)(access, deadline)
    }

    fn read_config(&self, _: u32, data: &mut [u8], _: Deadline) -> Result<(), DeviceError> {
        data.fill(0);
        Ok(())
    }

    fn windows(&self) -> Result<Vec<BarMemory>, DeviceError> {
        Ok(Vec::new())
    }

    fn map_windows(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError> {
        Ok(Vec::new())
    }

    fn windows_generation(&self) -> u64 {
        0
    }

    fn set_interrupts(&self, _: InterruptIndex, _: InterruptSetup) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A device that answers accesses with `on_access`, but not those that the server makes of its own, before
/// and after each client and when one first looks: they are bytes of COMMAND.
pub(crate) fn device(
    on_access: impl Fn(Access, Deadline) -> Result<u64, DeviceError> + Send + Sync + 'static,
) -> Arc<dyn PassthroughDevice> {
    Arc::new(Fake::new(Box::new(move |access, deadline| {
        let Access { space, offset, width, .. } = access;
        let servers_own = space == Space::Config && matches!(offset, 4 | 5) && width == 1;
        if servers_own { Ok(0) } else { on_access(access, deadline) }
    })))
}

/// A fake device that is served.
pub(crate) struct Served {
    path: std::path::PathBuf,
    /// What the server has of its client's memory.
    pub(crate) container: Arc<Container>,
    events: Receiver<Event>,
    server: Server,
    _directory: tempfile::TempDir,
}

impl Served {
    /// Serves [`device`].
    pub(crate) fn start(
        on_access: impl Fn(Access, Deadline) -> Result<u64, DeviceError> + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let container = Arc::new(Container::new(DmaMode::Direct));
        let (tell, events) = channel();
        let server = Server::start(
            &path,
            device(on_access),
            Arc::clone(&container),
            Options::default(),
            move |event| drop(tell.send(event)),
        );
        let server = server.unwrap();
        Self { path, container, events, server, _directory: directory }
    }

    /// A client that has negotiated.
    pub(crate) fn client(&self) -> Client {
        Client::negotiated(&self.path)
    }

    /// How long its thread has been at one thing.
    pub(crate) fn busy_for(&self) -> Duration {
        self.server.busy_for()
    }

    /// Waits for an event.
    pub(crate) fn until(&self, wanted: impl Fn(&Event) -> bool) {
        while !wanted(&self.events.recv_timeout(Duration::from_secs(10)).unwrap()) {}
    }
}
