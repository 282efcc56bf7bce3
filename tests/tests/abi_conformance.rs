//! The dext's ABI, row by row, against the simulated dext, through the same thin trait that the
//! product uses, also over IOKit where there is one: what passes here must be what the real dext does. One test a row; the last test
//! prints their count.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use cordon_tests::{Simulator, address, announce, eventually, over_iokit};
use dext_client::{Behind, DextError, Mapped, Registry, SelectorError, UserClient, open_function};
use ipc::wire::dext::{ENABLED_WORDS, IoReturn, memory, selector};
use ipc::{Access, Deadline, SharedMemory, Window};
use std::time::Duration;

const NVME: usize = 0;
const PROBE: usize = 1;

/// A simulated dext and what a client does with it.
struct Dext {
    simulator: Simulator,
}

type Connection = Box<dyn UserClient>;

impl Dext {
    fn usual() -> Self {
        Self { simulator: Simulator::usual() }
    }

    fn with(arguments: &[&str]) -> Self {
        let mut all = vec!["--device=01:00.0=nvme,size=16M,queues=4", "--device=01:00.1=probe"];
        all.extend(arguments);
        Self { simulator: Simulator::start(&all) }
    }

    /// What the product would open: of the simulated dext itself, or of IOKit.
    fn registry(&self) -> Box<dyn Registry> {
        dext_client::registry(&self.simulator.endpoint().parse().unwrap()).unwrap()
    }

    fn open(&self, function: usize) -> Connection {
        let service = self.registry().services().unwrap()[function].id;
        self.registry().open(service, 0).unwrap()
    }

    fn claimed(&self, function: usize) -> Connection {
        let mut connection = self.open(function);
        get::<0>(&mut connection, selector::CLAIM, &[]).unwrap();
        connection
    }
}

/// A call with room for `N` scalars.
fn get<const N: usize>(
    connection: &mut Connection,
    selector: u32,
    inputs: &[u64],
) -> Result<[u64; N], IoReturn> {
    let mut out = [0; N];
    code(connection.call(selector, inputs, &mut out, None)).map(|()| out)
}

fn code<T>(result: Result<T, SelectorError>) -> Result<T, IoReturn> {
    result.map_err(|error| match error {
        SelectorError::Code(code) => code,
        other => panic!("{other:?}"),
    })
}

/// Memory of this task that can be registered.
struct Ram {
    memory: SharedMemory,
    window: Window,
}

impl Ram {
    fn new(size: u64) -> Self {
        let memory = SharedMemory::create("ram", size).unwrap();
        let window = memory.map_all(Access::ReadWrite).unwrap();
        Self { memory, window }
    }

    fn register(
        &self,
        connection: &mut Connection,
        key: u64,
        size: u64,
    ) -> Result<[u64; 3], IoReturn> {
        let mut out = [0; 3];
        let inputs = [key, self.window.address() as u64, size];
        let behind = Behind { memory: &self.memory, offset: 0, writable: true };
        code(connection.call(selector::REGISTER_DMA_REGION, &inputs, &mut out, Some(behind)))
            .map(|()| out)
    }
}

fn map(connection: &mut Connection, kind: u32) -> Result<Mapped, IoReturn> {
    code(connection.map(kind))
}

fn arm(connection: &mut Connection) -> Result<(), IoReturn> {
    code(connection.call_async(selector::WAIT_INTERRUPT, &[]))
}

fn notified(connection: &Connection) -> bool {
    connection.completion().wait(Deadline::after(Duration::from_secs(2))).unwrap()
}

/// Fires a vector through the control socket.
fn raise(dext: &Dext, function: &str, vector: u16) {
    let command = serde_json::json!({ "raise": { "address": function, "vector": vector } });
    assert_eq!(dext.simulator.control(&command), "done");
}

/// The rows: each is a test, and all are counted.
macro_rules! rows {
    ($($name:ident: $row:expr;)*) => {
        $(#[test]
        fn $name() {
            let row: fn() = $row;
            row();
        })*

        #[test]
        fn rows_are_counted() {
            let count = [$(stringify!($name)),*].len();
            announce(&format!("ABI rows: {count}, each with a test"));
            assert!(count >= 70, "{count}");
        }
    };
}

rows! {
    services_have_the_class_of_the_dext: || {
        let dext = Dext::usual();
        let services = dext.registry().services().unwrap();
        assert_eq!(services.len(), 2);
        assert!(services.iter().all(|service| service.class == "VFIOUserPCIDriver"));
    };
    services_show_their_clients: || {
        let dext = Dext::usual();
        let _one = dext.open(NVME);
        let services = dext.registry().services().unwrap();
        assert_eq!(services[NVME].clients[0].pid, std::process::id());
        assert!(services[PROBE].clients.is_empty());
    };
    open_with_another_type_is_unsupported: || {
        let dext = Dext::usual();
        let service = dext.registry().services().unwrap()[NVME].id;
        let refused = dext.registry().open(service, 1).err().unwrap();
        assert_eq!(refused.code(), Some(IoReturn::UNSUPPORTED));
    };
    open_of_nothing_is_not_found: || {
        let refused = Dext::usual().registry().open(99, 0).err().unwrap();
        // IOKit's registry does not tell what was never there from what is not there any more.
        let code = if over_iokit() { IoReturn::NOT_ATTACHED } else { IoReturn::NOT_FOUND };
        assert_eq!(refused.code(), Some(code));
    };
    a_function_that_is_not_there_is_no_such_device: || {
        let dext = Dext::usual();
        let refused = open_function(&*dext.registry(), address("07:00.0")).err().unwrap();
        assert!(matches!(refused, DextError::NoSuchDevice(_)), "{refused}");
    };
    too_few_inputs_are_a_bad_argument_for_every_selector: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        let takes = [(3, 2), (5, 3), (6, 1), (7, 2), (8, 2), (9, 3), (10, 1), (11, 3), (12, 4), (16, 4)];
        for (selector, inputs) in takes {
            for fewer in 0..inputs {
                let called = get::<6>(&mut c, selector, &vec![1; fewer]);
                assert_eq!(called.unwrap_err(), IoReturn::BAD_ARGUMENT, "{selector} {fewer}");
            }
        }
    };
    too_little_room_is_a_bad_argument_for_every_selector: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        for selector in [0, 3, 5, 7, 8, 10, 11, 13, 14] {
            let called = get::<0>(&mut c, selector, &[0, 1, 1, 1]);
            assert_eq!(called.unwrap_err(), IoReturn::BAD_ARGUMENT, "{selector}");
        }
    };
    unknown_selectors_are_unsupported: || {
        let dext = Dext::usual();
        let mut c = dext.open(NVME);
        for selector in [18, 99, u32::MAX] {
            assert_eq!(get::<6>(&mut c, selector, &[0; 8]).unwrap_err(), IoReturn::UNSUPPORTED);
        }
    };
    identity_is_six_scalars_and_needs_no_claim: || {
        let dext = Dext::usual();
        let mut c = dext.open(PROBE);
        let identity = get::<6>(&mut c, selector::GET_IDENTITY, &[]).unwrap();
        assert_eq!(identity, [1, 0, 1, 0xc0d0, 2, 0xff_0000]);
    };
    claim_sets_memory_space_and_bus_master: || {
        let dext = Dext::usual();
        let mut c = dext.open(NVME);
        assert_eq!(get::<1>(&mut c, selector::CONFIG_READ, &[4, 2]).unwrap(), [0]);
        get::<0>(&mut c, selector::CLAIM, &[]).unwrap();
        assert_eq!(get::<1>(&mut c, selector::CONFIG_READ, &[4, 2]).unwrap(), [6]);
    };
    claiming_twice_changes_nothing: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(NVME);
        get::<0>(&mut c, selector::CLAIM, &[]).unwrap();
        assert_eq!(dext.simulator.held("01:00.0").1, 1);
    };
    a_later_claim_adds_a_reference: || {
        let dext = Dext::usual();
        let (_a, _b) = (dext.claimed(NVME), dext.claimed(NVME));
        assert_eq!(dext.simulator.held("01:00.0").1, 2);
    };
    the_openers_end_closes_the_device_for_all: || {
        let dext = Dext::usual();
        let opener = dext.claimed(NVME);
        let mut second = dext.claimed(NVME);
        drop(opener);
        assert!(eventually(|| dext.simulator.held("01:00.0").1 == 1));
        let refused = get::<0>(&mut second, selector::RESET_DEVICE, &[]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_OPEN);
    };
    a_seconds_end_leaves_the_device_open: || {
        let dext = Dext::usual();
        let mut opener = dext.claimed(NVME);
        drop(dext.claimed(NVME));
        assert!(eventually(|| dext.simulator.held("01:00.0").1 == 1));
        get::<0>(&mut opener, selector::RESET_DEVICE, &[]).unwrap();
    };
    terminate_stops_the_instance: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(NVME);
        get::<0>(&mut c, selector::TERMINATE, &[]).unwrap();
        let refused = get::<6>(&mut c, selector::GET_IDENTITY, &[]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_ATTACHED);
        assert_eq!(dext.registry().services().unwrap().len(), 1);
    };
    dma_buffer_needs_a_claim: || {
        let dext = Dext::usual();
        let refused = get::<6>(&mut dext.open(NVME), selector::ALLOCATE_DMA_BUFFER, &[4096, 0]);
        assert_eq!(refused.unwrap_err(), IoReturn::NOT_OPEN);
    };
    dma_buffer_of_nothing_or_too_much_is_a_bad_argument: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(NVME);
        for size in [0, (3 << 29) + 1, u64::MAX] {
            let refused = get::<6>(&mut c, selector::ALLOCATE_DMA_BUFFER, &[size, 0]);
            assert_eq!(refused.unwrap_err(), IoReturn::BAD_ARGUMENT);
        }
    };
    dma_buffer_is_one_segment_and_mapped_as_type_0: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        assert_eq!(map(&mut c, memory::DMA_BUFFER).unwrap_err(), IoReturn::BAD_ARGUMENT);
        let buffer = get::<6>(&mut c, selector::ALLOCATE_DMA_BUFFER, &[8192, 0]).unwrap();
        assert_eq!((buffer[0], buffer[2], buffer[4], buffer[5]), (8192, 1, 8192, 0xff_0000));
        assert_eq!(buffer[3] % 4096, 0);
        let mapped = map(&mut c, memory::DMA_BUFFER).unwrap();
        mapped.window.write(0, 0x1122_3344u32).unwrap();
        get::<0>(&mut c, selector::FREE_DMA_BUFFER, &[]).unwrap();
        assert_eq!(map(&mut c, memory::DMA_BUFFER).unwrap_err(), IoReturn::BAD_ARGUMENT);
    };
    dma_buffer_replaces_an_earlier_one: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        for _ in 0..2 {
            get::<6>(&mut c, selector::ALLOCATE_DMA_BUFFER, &[4096, 65536]).unwrap();
            assert_eq!(dext.simulator.held("01:00.1").2, 1);
        }
    };
    dma_needs_a_claim_before_anything_else_is_looked_at: || {
        let dext = Dext::usual();
        let mut c = dext.open(NVME);
        let refused = get::<3>(&mut c, selector::REGISTER_DMA_REGION, &[0, 0, 0]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_OPEN);
    };
    dma_of_address_0_or_size_0_is_a_bad_argument: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(NVME);
        for inputs in [[1, 0, 4096], [1, 4096, 0]] {
            let refused = get::<3>(&mut c, selector::REGISTER_DMA_REGION, &inputs).unwrap_err();
            assert_eq!(refused, IoReturn::BAD_ARGUMENT);
        }
    };
    dma_returns_one_segment_of_full_length: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(NVME);
        let registered = Ram::new(65536).register(&mut c, 0x4000_0000, 65536).unwrap();
        assert_eq!(registered, [1, 0x4000_0000, 65536]);
    };
    dma_of_a_key_that_is_registered_is_still_open: || {
        let dext = Dext::usual();
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(65536));
        ram.register(&mut c, 0x1000, 4096).unwrap();
        assert_eq!(ram.register(&mut c, 0x1000, 4096).unwrap_err(), IoReturn::STILL_OPEN);
    };
    dma_keys_belong_to_their_connection: || {
        let dext = Dext::with(&["--dart=strict"]);
        let (mut a, mut b, ram) = (dext.claimed(NVME), dext.claimed(NVME), Ram::new(65536));
        ram.register(&mut a, 0x1000, 4096).unwrap();
        ram.register(&mut b, 0x1000, 4096).unwrap();
        let unknown = get::<0>(&mut a, selector::UNREGISTER_DMA_REGION, &[0x2000]).unwrap_err();
        assert_eq!(unknown, IoReturn::NOT_FOUND);
        get::<0>(&mut a, selector::UNREGISTER_DMA_REGION, &[0x1000]).unwrap();
        assert_eq!(dext.simulator.held("01:00.0").2, 1);
    };
    dma_by_a_secondary_connection_works_while_somebody_holds_the_claim: || {
        let dext = Dext::usual();
        let (_opener, mut second) = (dext.claimed(NVME), dext.open(NVME));
        Ram::new(65536).register(&mut second, 0x1000, 4096).unwrap();
    };
    dma_of_memory_that_the_task_does_not_have_is_refused: || {
        let dext = Dext::usual();
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(65536));
        assert_eq!(ram.register(&mut c, 0, 65537).unwrap_err(), IoReturn::BAD_ARGUMENT);
        let nothing = get::<3>(&mut c, selector::REGISTER_DMA_REGION, &[0, 0x5000, 4096]);
        assert_eq!(nothing.unwrap_err(), IoReturn::BAD_ARGUMENT);
    };
    dma_of_more_than_128_chunks_is_no_space: || {
        let dext = Dext::usual();
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(65536));
        let refused = ram.register(&mut c, 0, 129 * (3 << 29)).unwrap_err();
        assert_eq!(refused, IoReturn::NO_SPACE);
    };
    dma_that_is_not_one_segment_is_not_aligned_and_rolled_back: || {
        let dext = Dext::with(&["--fault=fragment:nth=1"]);
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(65536));
        assert_eq!(ram.register(&mut c, 0x1000, 4096).unwrap_err(), IoReturn::NOT_ALIGNED);
        assert_eq!(dext.simulator.held("01:00.0").2, 0);
        ram.register(&mut c, 0x1000, 4096).unwrap();
        assert_eq!(dext.simulator.fired(), [1]);
    };
    dma_of_65537_regions_is_no_space: || {
        let dext = Dext::usual();
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(65536));
        for region in 0..65_536u64 {
            ram.register(&mut c, region << 12, 4096).unwrap();
        }
        assert_eq!(ram.register(&mut c, 1 << 40, 4096).unwrap_err(), IoReturn::NO_SPACE);
        get::<0>(&mut c, selector::UNREGISTER_DMA_REGION, &[0x5000]).unwrap();
        ram.register(&mut c, 1 << 40, 4096).unwrap();
    };
    strict_dma_chooses_addresses_of_its_own: || {
        let dext = Dext::with(&["--dart=strict"]);
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(65536));
        let mut unaligned = 0;
        for key in 0..8 {
            let [segments, bus, length] = ram.register(&mut c, key << 16, 65536).unwrap();
            assert_eq!((segments, length), (1, 65536));
            assert_ne!(bus, key << 16);
            unaligned += usize::from(bus % 4096 != 0);
        }
        assert!(unaligned > 0);
    };
    strict_dma_holds_at_most_a_gibibyte_and_a_half: || {
        let dext = Dext::with(&["--dart=strict"]);
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(1 << 30));
        ram.register(&mut c, 0, 1 << 30).unwrap();
        ram.register(&mut c, 1 << 32, 1 << 29).unwrap();
        assert_eq!(ram.register(&mut c, 2 << 32, 4096).unwrap_err(), IoReturn::NO_SPACE);
        get::<0>(&mut c, selector::UNREGISTER_DMA_REGION, &[0]).unwrap();
        ram.register(&mut c, 2 << 32, 4096).unwrap();
    };
    unregister_of_an_unknown_key_is_not_found: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(NVME);
        let refused = get::<0>(&mut c, selector::UNREGISTER_DMA_REGION, &[7]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_FOUND);
    };
    probe_reads_eight_bytes_of_a_region: || {
        let dext = Dext::usual();
        let (mut c, ram) = (dext.claimed(NVME), Ram::new(65536));
        ram.register(&mut c, 0x1000, 4096).unwrap();
        ram.window.write(4088, 0x1122_3344_5566_7788u64).unwrap();
        let read = |c: &mut Connection, inputs: [u64; 2]| {
            get::<1>(c, selector::PROBE_DMA_REGION, &inputs)
        };
        assert_eq!(read(&mut c, [0x1000, 4088]).unwrap(), [0x1122_3344_5566_7788]);
        assert_eq!(read(&mut c, [0x1000, 4089]).unwrap_err(), IoReturn::OVERRUN);
        assert_eq!(read(&mut c, [0x1000, u64::MAX]).unwrap_err(), IoReturn::OVERRUN);
        assert_eq!(read(&mut c, [0x2000, 0]).unwrap_err(), IoReturn::NOT_FOUND);
    };
    config_widths_are_1_2_and_4: || {
        let dext = Dext::usual();
        let mut c = dext.open(PROBE);
        for (width, value) in [(1, 0xd0), (2, 0xc0d0), (4, 0x0002_c0d0)] {
            assert_eq!(get::<1>(&mut c, selector::CONFIG_READ, &[0, width]).unwrap(), [value]);
        }
        for width in [0, 3, 8, u64::MAX] {
            let read = get::<1>(&mut c, selector::CONFIG_READ, &[0, width]).unwrap_err();
            let write = get::<0>(&mut c, selector::CONFIG_WRITE, &[0, width, 0]).unwrap_err();
            assert_eq!((read, write), (IoReturn::BAD_ARGUMENT, IoReturn::BAD_ARGUMENT));
        }
    };
    config_reads_of_bars_are_synthesized: || {
        let dext = Dext::usual();
        let mut c = dext.open(PROBE);
        let bars: Vec<u64> = (0..6)
            .map(|bar| get::<1>(&mut c, selector::CONFIG_READ, &[0x10 + 4 * bar, 4]).unwrap()[0])
            .collect();
        assert_eq!(bars, [0, 0, 0b1100, 0, 0b0001, 0]);
        let raw = get::<1>(&mut c, selector::CONFIG_READ, &[0x12, 2]).unwrap();
        assert_ne!(raw, [0], "narrower reads show the host's own address");
    };
    config_writes_reach_the_device: || {
        let dext = Dext::usual();
        let mut c = dext.open(PROBE);
        get::<0>(&mut c, selector::CONFIG_WRITE, &[0x3c, 1, 0x2a]).unwrap();
        assert_eq!(get::<1>(&mut c, selector::CONFIG_READ, &[0x3c, 1]).unwrap(), [0x2a]);
        get::<0>(&mut c, selector::CONFIG_WRITE, &[0, 4, 0]).unwrap();
        assert_eq!(get::<1>(&mut c, selector::CONFIG_READ, &[0, 2]).unwrap(), [0xc0d0]);
    };
    bar_info_has_index_size_and_type: || {
        let dext = Dext::usual();
        let mut c = dext.open(PROBE);
        let info = |c: &mut Connection, bar| get::<3>(c, selector::GET_BAR_INFO, &[bar]);
        assert_eq!(info(&mut c, 0).unwrap(), [0, 0x20000, 0]);
        assert_eq!(info(&mut c, 1).unwrap(), [1, 0x1000, 0]);
        assert_eq!(info(&mut c, 2).unwrap(), [2, 0x10_0000, 0b1100]);
        assert_eq!(info(&mut c, 4).unwrap(), [3, 64, 1]);
    };
    bar_info_of_an_unused_bar_or_an_upper_half_is_an_error: || {
        let dext = Dext::usual();
        let mut c = dext.open(PROBE);
        for bar in [3, 5, 6, u64::MAX] {
            assert!(get::<3>(&mut c, selector::GET_BAR_INFO, &[bar]).is_err(), "{bar}");
        }
    };
    mmio_takes_the_memory_index: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        get::<0>(&mut c, selector::MMIO_WRITE, &[2, 0x40, 8, 0x1122_3344_5566_7788]).unwrap();
        let bar2 = map(&mut c, memory::BAR0 + 2).unwrap();
        assert_eq!(bar2.window.read::<u64>(0x40).unwrap(), 0x1122_3344_5566_7788);
        for (width, value) in [(1, 0x88), (2, 0x7788), (4, 0x5566_7788), (8, 0x1122_3344_5566_7788)] {
            assert_eq!(get::<1>(&mut c, selector::MMIO_READ, &[2, 0x40, width]).unwrap(), [value]);
        }
    };
    mmio_that_is_no_access_is_a_bad_argument: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        for inputs in [[9, 0, 4], [0, 0, 3], [0, 0x20000, 4], [1, 0xfff, 2], [0, u64::MAX, 8]] {
            let refused = get::<1>(&mut c, selector::MMIO_READ, &inputs).unwrap_err();
            assert_eq!(refused, IoReturn::BAD_ARGUMENT, "{inputs:x?}");
        }
    };
    mmio_of_a_closed_device_reads_all_ones: || {
        let dext = Dext::usual();
        let mut c = dext.open(PROBE);
        assert_eq!(get::<1>(&mut c, selector::MMIO_READ, &[0, 0, 4]).unwrap(), [0xffff_ffff]);
    };
    set_up_interrupts_needs_a_claim: || {
        let dext = Dext::usual();
        let refused = get::<1>(&mut dext.open(NVME), selector::SETUP_INTERRUPTS, &[]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_OPEN);
    };
    set_up_interrupts_prefers_msix: || {
        let dext = Dext::usual();
        let vectors = get::<1>(&mut dext.claimed(PROBE), selector::SETUP_INTERRUPTS, &[]).unwrap();
        assert_eq!(vectors, [32]);
    };
    set_up_interrupts_falls_back_to_one_msi_vector: || {
        let dext = Dext::with(&["--fault=no-msix"]);
        let vectors = get::<1>(&mut dext.claimed(PROBE), selector::SETUP_INTERRUPTS, &[]).unwrap();
        assert_eq!(vectors, [1]);
    };
    set_up_interrupts_takes_msi_where_there_is_no_msix: || {
        let dext = Dext { simulator: Simulator::start(&["--device=01:00.0=probe,vectors=0"]) };
        let vectors = get::<1>(&mut dext.claimed(0), selector::SETUP_INTERRUPTS, &[]).unwrap();
        assert_eq!(vectors, [32]);
    };
    set_up_interrupts_registers_at_most_256: || {
        let simulator = Simulator::start(&["--device=01:00.0=probe,vectors=256"]);
        let dext = Dext { simulator };
        let vectors = get::<1>(&mut dext.claimed(0), selector::SETUP_INTERRUPTS, &[]).unwrap();
        assert_eq!(vectors, [256]);
    };
    set_up_interrupts_twice_is_still_open: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        get::<1>(&mut c, selector::SETUP_INTERRUPTS, &[]).unwrap();
        let refused = get::<1>(&mut c, selector::SETUP_INTERRUPTS, &[]).unwrap_err();
        assert_eq!(refused, IoReturn::STILL_OPEN);
    };
    set_up_interrupts_while_another_has_them_registers_none: || {
        let dext = Dext::usual();
        let (mut a, mut b) = (dext.claimed(PROBE), dext.open(PROBE));
        get::<1>(&mut a, selector::SETUP_INTERRUPTS, &[]).unwrap();
        let refused = get::<1>(&mut b, selector::SETUP_INTERRUPTS, &[]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_FOUND);
    };
    set_up_interrupts_by_a_secondary_connection_works: || {
        let dext = Dext::usual();
        let (_opener, mut second) = (dext.claimed(PROBE), dext.open(PROBE));
        get::<1>(&mut second, selector::SETUP_INTERRUPTS, &[]).unwrap();
    };
    interrupt_calls_before_set_up_are_not_ready: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        assert_eq!(get::<4>(&mut c, selector::CHECK_INTERRUPT, &[]).unwrap_err(), IoReturn::NOT_READY);
        assert_eq!(get::<0>(&mut c, selector::SET_IRQ_MASK, &[0; 4]).unwrap_err(), IoReturn::NOT_READY);
        assert_eq!(arm(&mut c).unwrap_err(), IoReturn::NOT_READY);
    };
    // The dext answers NotReady, NotFound, Unsupported or NotOpen to these; the kernel's wrapper of
    // IOConnectMapMemory64 turns every failure into BadArgument before the client sees it.
    every_failure_of_a_memory_map_is_a_bad_argument: || {
        let dext = Dext::usual();
        let (mut closed, io_bar, upper_half) = (dext.open(PROBE), 4, 3);
        assert_eq!(map(&mut closed, memory::BAR0).unwrap_err(), IoReturn::BAD_ARGUMENT);
        let mut c = dext.claimed(PROBE);
        for kind in [
            memory::DMA_BUFFER,
            memory::INTERRUPT_STATE,
            memory::BAR0 + io_bar,
            memory::BAR0 + upper_half,
            8,
        ] {
            assert_eq!(map(&mut c, kind).unwrap_err(), IoReturn::BAD_ARGUMENT, "{kind}");
        }
    };
    check_interrupt_reads_and_clears: || {
        let (dext, mut c) = interrupts();
        for vector in [0, 5, 31] {
            raise(&dext, "01:00.1", vector);
        }
        let words = get::<4>(&mut c, selector::CHECK_INTERRUPT, &[]).unwrap();
        assert_eq!(words, [1 | 1 << 5 | 1 << 31, 0, 0, 0]);
        assert_eq!(get::<4>(&mut c, selector::CHECK_INTERRUPT, &[]).unwrap(), [0; 4]);
    };
    a_vector_that_was_not_registered_is_not_recorded: || {
        let (dext, mut c) = interrupts();
        raise(&dext, "01:00.1", 32);
        assert_eq!(get::<4>(&mut c, selector::CHECK_INTERRUPT, &[]).unwrap(), [0; 4]);
    };
    an_armed_notification_completes_once: || {
        let (dext, mut c) = interrupts();
        arm(&mut c).unwrap();
        assert!(!c.completion().clear().unwrap());
        raise(&dext, "01:00.1", 1);
        assert!(notified(&c));
        raise(&dext, "01:00.1", 2);
        assert!(!c.completion().clear().unwrap());
    };
    arming_with_a_bit_pending_completes_at_once: || {
        let (dext, mut c) = interrupts();
        raise(&dext, "01:00.1", 1);
        assert!(!c.completion().clear().unwrap());
        arm(&mut c).unwrap();
        assert!(notified(&c));
    };
    a_second_arm_replaces_the_first: || {
        let (dext, mut c) = interrupts();
        arm(&mut c).unwrap();
        arm(&mut c).unwrap();
        raise(&dext, "01:00.1", 1);
        assert!(notified(&c));
        raise(&dext, "01:00.1", 2);
        assert!(!c.completion().clear().unwrap());
    };
    all_vectors_are_enabled_after_set_up: || {
        let (_dext, mut c) = interrupts();
        let page = map(&mut c, memory::INTERRUPT_STATE).unwrap().window;
        for word in 0..4 {
            assert_eq!(page.load_u64(ENABLED_WORDS + 8 * word).unwrap(), u64::MAX);
        }
    };
    a_masked_vector_is_not_recorded_at_all: || {
        let (dext, mut c) = interrupts();
        get::<0>(&mut c, selector::SET_IRQ_MASK, &[0b10, 0, 0, 0]).unwrap();
        raise(&dext, "01:00.1", 0);
        raise(&dext, "01:00.1", 1);
        get::<0>(&mut c, selector::SET_IRQ_MASK, &[u64::MAX; 4]).unwrap();
        assert_eq!(get::<4>(&mut c, selector::CHECK_INTERRUPT, &[]).unwrap(), [0b10, 0, 0, 0]);
    };
    the_state_page_drains_and_masks_without_a_call: || {
        let (dext, mut c) = interrupts();
        let page = map(&mut c, memory::INTERRUPT_STATE).unwrap().window;
        assert_eq!(page.length(), 16 * 1024);
        page.store_u64(ENABLED_WORDS, 0b100).unwrap();
        for vector in 0..4 {
            raise(&dext, "01:00.1", vector);
        }
        assert_eq!(page.swap_u64(0, 0).unwrap(), 0b100);
        assert_eq!(get::<4>(&mut c, selector::CHECK_INTERRUPT, &[]).unwrap(), [0; 4]);
    };
    reset_needs_a_claim: || {
        let dext = Dext::usual();
        let refused = get::<0>(&mut dext.open(NVME), selector::RESET_DEVICE, &[]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_OPEN);
    };
    reset_clears_the_device_and_keeps_what_the_host_set: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        get::<0>(&mut c, selector::MMIO_WRITE, &[0, 0x10, 4, 7]).unwrap();
        get::<0>(&mut c, selector::RESET_DEVICE, &[]).unwrap();
        assert_eq!(get::<1>(&mut c, selector::MMIO_READ, &[0, 0x10, 4]).unwrap(), [0]);
        assert_eq!(get::<1>(&mut c, selector::CONFIG_READ, &[4, 2]).unwrap(), [6]);
    };
    a_reset_by_config_write_is_a_function_level_reset: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        get::<0>(&mut c, selector::MMIO_WRITE, &[0, 0x10, 4, 7]).unwrap();
        get::<0>(&mut c, selector::CONFIG_WRITE, &[0x78, 2, 0x8000]).unwrap();
        assert_eq!(get::<1>(&mut c, selector::MMIO_READ, &[0, 0x10, 4]).unwrap(), [0]);
    };
    bars_are_mapped_by_type_1_plus_bar: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        let map = |c: &mut Connection, bar| map(c, memory::BAR0 + bar);
        assert_eq!(map(&mut c, 0).unwrap().window.read::<u32>(0).unwrap(), 0x4542_5250);
        assert_eq!(map(&mut c, 2).unwrap().window.length(), 0x10_0000);
        for bar in [3, 5] {
            assert_eq!(map(&mut c, bar).unwrap_err(), IoReturn::BAD_ARGUMENT);
        }
        assert_eq!(map(&mut c, 4).unwrap_err(), IoReturn::BAD_ARGUMENT);
    };
    bars_are_mapped_by_a_secondary_connection_and_stay_after_its_end: || {
        let dext = Dext::usual();
        let (_opener, mut second) = (dext.claimed(PROBE), dext.open(PROBE));
        let bar = map(&mut second, memory::BAR0).unwrap().window;
        drop(second);
        assert_eq!(bar.read::<u32>(0).unwrap(), 0x4542_5250);
    };
    bars_of_a_closed_device_are_not_mapped: || {
        let dext = Dext::usual();
        assert_eq!(map(&mut dext.open(PROBE), memory::BAR0).unwrap_err(), IoReturn::BAD_ARGUMENT);
    };
    other_memory_types_are_refused: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(PROBE);
        for kind in [8, 99, u32::MAX] {
            assert_eq!(map(&mut c, kind).unwrap_err(), IoReturn::BAD_ARGUMENT);
        }
    };
    the_end_of_a_connection_releases_interrupts: || {
        let dext = Dext::usual();
        let (_opener, mut a, mut b) = (dext.claimed(PROBE), dext.open(PROBE), dext.open(PROBE));
        get::<1>(&mut a, selector::SETUP_INTERRUPTS, &[]).unwrap();
        drop(a);
        assert!(eventually(|| get::<1>(&mut b, selector::SETUP_INTERRUPTS, &[]).is_ok()));
        assert_eq!(get::<4>(&mut b, selector::CHECK_INTERRUPT, &[]).unwrap(), [0; 4]);
    };
    the_end_of_a_connection_releases_its_dma_and_no_others: || {
        let dext = Dext::usual();
        let (mut a, mut b, ram) = (dext.claimed(NVME), dext.open(NVME), Ram::new(65536));
        ram.register(&mut a, 0x1000, 4096).unwrap();
        ram.register(&mut b, 0x2000, 4096).unwrap();
        drop(b);
        assert!(eventually(|| dext.simulator.held("01:00.0").2 == 1));
        get::<1>(&mut a, selector::PROBE_DMA_REGION, &[0x1000, 0]).unwrap();
    };
    the_end_of_a_connection_releases_its_buffer_and_claim: || {
        let dext = Dext::usual();
        let mut c = dext.claimed(NVME);
        get::<6>(&mut c, selector::ALLOCATE_DMA_BUFFER, &[4096, 0]).unwrap();
        drop(c);
        dext.simulator.assert_released("01:00.0");
        let mut again = dext.open(NVME);
        assert_eq!(get::<1>(&mut again, selector::CONFIG_READ, &[4, 2]).unwrap(), [2]);
    };
    a_slow_clean_up_keeps_the_interrupts_for_its_time: || {
        let dext = Dext::with(&["--fault=cleanup-delay:ms=150"]);
        let (_opener, mut a, mut b) = (dext.claimed(PROBE), dext.open(PROBE), dext.open(PROBE));
        get::<1>(&mut a, selector::SETUP_INTERRUPTS, &[]).unwrap();
        drop(a);
        let refused = get::<1>(&mut b, selector::SETUP_INTERRUPTS, &[]).unwrap_err();
        assert_eq!(refused, IoReturn::NOT_FOUND);
        assert!(eventually(|| get::<1>(&mut b, selector::SETUP_INTERRUPTS, &[]).is_ok()));
    };
    a_fault_fails_its_call_and_says_that_it_fired: || {
        let dext = Dext::with(&["--fault=fail:selector=8,nth=2,code=0xe00002bd"]);
        let mut c = dext.open(NVME);
        get::<1>(&mut c, selector::CONFIG_READ, &[0, 4]).unwrap();
        let failed = get::<1>(&mut c, selector::CONFIG_READ, &[0, 4]).unwrap_err();
        assert_eq!(failed, IoReturn::NO_MEMORY);
        get::<1>(&mut c, selector::CONFIG_READ, &[0, 4]).unwrap();
        assert_eq!(dext.simulator.fired(), [1]);
    };
    a_lost_notification_says_that_it_fired: || {
        let dext = Dext::with(&["--fault=drop-notification:nth=1"]);
        let mut c = dext.claimed(PROBE);
        get::<1>(&mut c, selector::SETUP_INTERRUPTS, &[]).unwrap();
        arm(&mut c).unwrap();
        raise(&dext, "01:00.1", 1);
        assert!(!c.completion().clear().unwrap());
        assert_eq!(dext.simulator.fired(), [1]);
    };
    a_dying_dext_is_a_disconnect: || {
        let dext = Dext::with(&["--fault=die:selector=17,nth=1"]);
        let mut c = dext.claimed(NVME);
        let died = c.call(selector::RESET_DEVICE, &[], &mut [], None).unwrap_err();
        match died {
            // The kernel answers for an extension that is gone.
            SelectorError::Code(IoReturn::OFFLINE) => assert!(over_iokit()),
            SelectorError::Tube(ipc::TubeError::Disconnected) => assert!(!over_iokit()),
            other => panic!("{other:?}"),
        }
    };
    a_function_that_ends_answers_one_code_to_everything_and_hangs_nothing_up: || {
        for (ending, code) in [
            ("offline", IoReturn::OFFLINE), ("no-device", IoReturn::NO_DEVICE),
            ("not-ready", IoReturn::NOT_READY), ("ipc-error", IoReturn::IPC_ERROR),
            ("port-dead", IoReturn::PORT_DEAD),
        ] {
            let dext = Dext::usual();
            let (mut c, mut other) = (dext.claimed(PROBE), dext.claimed(NVME));
            dext.simulator.end("01:00.1", ending);
            // Long enough for any method to be refused for its code alone.
            for selector in 0..18 {
                assert_eq!(get::<6>(&mut c, selector, &[8; 4]).unwrap_err(), code, "{selector}");
            }
            assert_eq!(arm(&mut c).unwrap_err(), code);
            // A map cannot tell, unless its message does not arrive.
            let refused = if ending == "port-dead" { code } else { IoReturn::BAD_ARGUMENT };
            assert_eq!(map(&mut c, memory::BAR0).unwrap_err(), refused);
            get::<0>(&mut other, selector::RESET_DEVICE, &[]).unwrap();
        }
    };
    garbage_ends_or_refuses_the_connection_and_nobody_elses: || {
        let dext = Dext::usual();
        let mut other = dext.open(NVME);
        let mut tube = ipc::Tube::connect(&dext.simulator.socket()).unwrap();
        let deadline = Deadline::after(Duration::from_secs(1));
        tube.send(0, &[0xffu64; 32], &[], deadline).unwrap();
        get::<6>(&mut other, selector::GET_IDENTITY, &[]).unwrap();
    };
    codes_have_iokits_numbers: || {
        let codes = [
            (IoReturn::SUCCESS, 0), (IoReturn::NO_MEMORY, 0xe000_02bd),
            (IoReturn::BAD_ARGUMENT, 0xe000_02c2), (IoReturn::UNSUPPORTED, 0xe000_02c7),
            (IoReturn::NOT_OPEN, 0xe000_02cd), (IoReturn::NOT_ALIGNED, 0xe000_02d0),
            (IoReturn::STILL_OPEN, 0xe000_02d2), (IoReturn::NOT_READY, 0xe000_02d8),
            (IoReturn::NOT_ATTACHED, 0xe000_02d9), (IoReturn::NO_SPACE, 0xe000_02db),
            (IoReturn::OVERRUN, 0xe000_02e8), (IoReturn::NOT_FOUND, 0xe000_02f0),
            (IoReturn::OFFLINE, 0xe000_02d7), (IoReturn::NO_DEVICE, 0xe000_02c0),
            (IoReturn::IPC_ERROR, 0xe000_02bf), (IoReturn::PORT_DEAD, 0x1000_0003),
        ];
        assert!(codes.iter().all(|(code, number)| code.0 == *number));
    };
}

/// A probe whose interrupts are set up.
fn interrupts() -> (Dext, Connection) {
    let dext = Dext::usual();
    let mut connection = dext.claimed(PROBE);
    get::<1>(&mut connection, selector::SETUP_INTERRUPTS, &[]).unwrap();
    (dext, connection)
}
