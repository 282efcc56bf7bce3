//! The client of the `vfio_user` crate, which is cloud-hypervisor's, unmodified, with its quirks.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use cordon_tests::vfio_user::{Served, ram};
use ipc::{Access, Deadline, Event};
use vfio_user::Client;

#[test]
fn cloud_hypervisors_client_attaches_maps_interrupts_and_comes_again() {
    let served = Served::probe();
    let memory = ram(1 << 20);
    let window = memory.map_all(Access::ReadWrite).unwrap();
    for round in 1..=3u32 {
        let mut client = Client::new(&served.path()).unwrap();
        // The crate calls a device resettable only when the device does not say so.
        assert!(!client.resettable());
        client.reset().unwrap();
        let region = client.region(0).unwrap();
        let areas = cordon_tests::windows(0x20000, &cordon_tests::PROBE_MSIX).len();
        assert_eq!((region.size, region.sparse_areas.len()), (0x20000, areas));
        assert!(region.file_offset.is_some());
        assert!((0..9).all(|index| client.region(index).is_some()));

        let mut id = [0; 4];
        client.region_read(7, 0, &mut id).unwrap();
        assert_eq!(id, [0xd0, 0xc0, 0x02, 0x00]);
        client.region_write(7, 0x10, &[0xff; 4]).unwrap();
        client.region_read(7, 0x10, &mut id).unwrap();
        assert_eq!(u32::from_le_bytes(id), 0xfffe_0000);
        client.region_write(7, 0x04, &[0x06, 0x00]).unwrap();
        let counts: Vec<u32> =
            (0..3).map(|index| client.get_irq_info(index).unwrap().count).collect();
        assert_eq!(counts, [1, 32, 32]);

        client.dma_map(0, 0x4000_0000, 1 << 20, memory.as_fd().as_raw_fd()).unwrap();
        let event = Event::new().unwrap();
        let signaller = event.signaller().unwrap();
        // Data eventfd, action trigger; MSI-X vector 5.
        client.set_irqs(2, 0x24, 5, 1, &[signaller.as_fd().as_raw_fd()]).unwrap();

        // The probe copies 16 bytes within guest memory and fires vector 5.
        window.copy_in(0, b"sixteen bytes!!!").unwrap();
        let registers: [(u64, u64, usize); 5] = [
            (0x40, 0x4000_0000, 8),
            (0x48, 0x4000_8000, 8),
            (0x50, 16, 4),
            (0x54, 5, 4),
            (0x58, u64::from(round), 4),
        ];
        for (at, value, width) in registers {
            client.region_write(0, at, &value.to_le_bytes()[..width]).unwrap();
        }
        assert!(event.wait(Deadline::after(Duration::from_secs(5))).unwrap());
        let mut copied = [0; 16];
        window.copy_out(0x8000, &mut copied).unwrap();
        assert_eq!(&copied, b"sixteen bytes!!!");
        window.copy_in(0x8000, &[0; 16]).unwrap();

        client.dma_unmap(0x4000_0000, 1 << 20).unwrap();
        client.shutdown().unwrap();
        drop(client);
        served.until(|event| matches!(event, cordon_vfio_user::Event::Detached(_)));
    }
}
