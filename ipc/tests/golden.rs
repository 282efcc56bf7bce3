//! The bytes of every message type, per protocol version. A change here is a new version.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use cordon_ipc::codec;
use cordon_ipc::wire::call::{Call, Tagged};
use cordon_ipc::wire::common::{BarInfo, Failure, FailureKind, Identity, MsixInfo, Ping, Shutdown};
use cordon_ipc::wire::faults::{Misbehave, Misbehaviour, Point, Wrong};
use cordon_ipc::wire::handshake::{Hello, Role, VERSION};
use cordon_ipc::wire::{connection, dext, dma, function, listing, sandbox, spawn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Checks that `message` encodes to `hex` and back.
fn golden<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: M, hex: &str) {
    let bytes = codec::encode(&message, 4096).unwrap();
    let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, hex.replace([' ', '\n'], ""), "{message:?}");
    assert_eq!(codec::decode::<M>(&bytes).unwrap(), message);
    for length in 0..bytes.len() {
        assert!(codec::decode::<M>(&bytes[..length]).is_err(), "{length} bytes of {message:?}");
    }
}

/// An unknown tag of an enum is an error.
fn unknown_tag<M: DeserializeOwned + Debug>(tags: u32) {
    let bytes = tags.to_le_bytes();
    let mut message = bytes.to_vec();
    message.resize(64, 0);
    assert!(codec::decode::<M>(&message).is_err());
}

fn identity() -> Identity {
    let address = "01:02.3".parse().unwrap();
    Identity { address, vendor: 0xc0d0, device: 1, class: 0x01_0802 }
}

/// Of a group with two descriptors and the function of [`identity`] with one and a request.
const ESCROWED: &str = "02 0100000000000000 0000 010203 01 01";

const IDENTITY: &str = "0000 010203 d0c0 0100 02080100";

fn misbehaviour() -> Misbehaviour {
    let wrong = Wrong::Selector { selector: 8, code: dext::IoReturn::NOT_OPEN };
    Misbehaviour { point: Point::During, wrong }
}

const MISBEHAVIOUR: &str = "01000000 04000000 08000000 cd0200e0";

#[test]
fn hello() {
    assert_eq!(VERSION, 5);
    golden(
        Hello {
            magic: 0x4e44_5243,
            version: 5,
            oldest: 5,
            role: Role::Function,
            features: 0x0102_0304_0506_0708,
            max_message: 0x20000,
            max_handles: 32,
        },
        "4352444e 0500 0500 02000000 0807060504030201 00000200 2000",
    );
    unknown_tag::<Role>(7);
}

/// A request as the enum that is decoded, and as the call that is encoded.
fn call<Q, C>(call: C, hex: &str)
where
    Q: Serialize + DeserializeOwned + PartialEq + Debug + From<C>,
    C: Call<Q> + Clone,
{
    let tagged = codec::encode(&Tagged::<Q, C>::new(&call), 4096).unwrap();
    let request = Q::from(call.clone());
    assert_eq!(tagged, codec::encode(&request, 4096).unwrap(), "{}", call.name());
    golden(request, hex);
}

#[test]
fn function_requests() {
    use function::{
        Access, AddMemory, Companion, Doorbell, GetStatistics, InterruptAction as Action,
        InterruptIndex as Index, Interrupts, ReadConfig, RemoveMemory, Request, Reset, Space,
        TakeOver,
    };
    call::<Request, _>(
        Access::read(Space::Config, 4, 2),
        "00000000 00000000 0400000000000000 02 00 0000000000000000",
    );
    call::<Request, _>(
        Access::write(Space::Bar(2), 0x10, 8, 0x1122),
        "00000000 01000000 02 1000000000000000 08 01 2211000000000000",
    );
    call::<Request, _>(ReadConfig { offset: 4, length: 64 }, "01000000 04000000 40000000");
    let assign = Action::Assign { start: 3, present: vec![true, false], signal: false };
    call::<Request, _>(
        Interrupts { index: Index::Msix, action: assign },
        "02000000 02000000 00000000 0300 0200000000000000 01 00 00",
    );
    let trigger = Action::Trigger { start: 1, count: 2 };
    call::<Request, _>(
        Interrupts { index: Index::Intx, action: trigger },
        "02000000 00000000 04000000 0100 0200",
    );
    call::<Request, _>(Reset, "03000000");
    call::<Request, _>(GetStatistics, "04000000");
    call::<Request, _>(TakeOver, "05000000");
    let layout = function::Layout::Packed64;
    call::<Request, _>(Companion { layout, max_entries: 4096 }, "06000000 01000000 00100000");
    call::<Request, _>(
        AddMemory { base: 1, size: 2, offset: 3, writable: true },
        "07000000 0100000000000000 0200000000000000 0300000000000000 01",
    );
    call::<Request, _>(RemoveMemory { base: 1 }, "08000000 0100000000000000");
    call::<Request, _>(
        Doorbell { page: Some(1), batch: 2, timeout_ms: 3 },
        "09000000 01 0100000000000000 0200000000000000 03000000",
    );
    call::<Request, _>(Ping, "0a000000");
    call::<Request, _>(Shutdown, "0b000000");
    call::<Request, _>(Misbehave(misbehaviour()), &format!("0c000000 {MISBEHAVIOUR}"));
    unknown_tag::<function::Layout>(2);
    unknown_tag::<Request>(13);
    unknown_tag::<Action>(5);
    unknown_tag::<Index>(5);
    unknown_tag::<Space>(2);
}

#[test]
fn function_answers() {
    golden::<Result<(), Failure>>(Ok(()), "00000000");
    golden::<Result<Vec<u8>, Failure>>(Ok(vec![1, 2]), "00000000 0200000000000000 0102");
    golden::<Result<u64, Failure>>(Ok(5), "00000000 0500000000000000");
    let statistics = function::Statistics { notifications: 1, delivered: 2, dropped: 3 };
    golden(statistics, "0100000000000000 0200000000000000 0300000000000000");
    let failure =
        Failure { kind: FailureKind::Io, code: Some(0xe000_02cd), message: "no".to_owned() };
    golden::<Result<u64, Failure>>(
        Err(failure),
        "01000000 01000000 01 cd0200e0 0200000000000000 6e6f",
    );
    golden::<Result<u16, Failure>>(Ok(32), "00000000 2000");
    unknown_tag::<Result<(), Failure>>(2);
    golden(FailureKind::Lost, "06000000");
    unknown_tag::<FailureKind>(7);
}

#[test]
fn ready_messages() {
    let sandbox = sandbox::SandboxReport {
        layers: vec![sandbox::Layer {
            kind: sandbox::LayerKind::Landlock,
            state: sandbox::LayerState::Partial("b".to_owned()),
        }],
        syscalls: 18,
    };
    let report = "0100000000000000 0f000000 01000000 0100000000000000 62 12000000";
    let bar = BarInfo { memory_index: 1, size: 0x4000, kind: 0x0c };
    let msix = MsixInfo {
        capability: 0xb0,
        vectors: 5,
        table_bar: 0,
        table_offset: 0x8000,
        pba_bar: 0,
        pba_offset: 0xc000,
    };
    golden(
        function::Ready {
            identity: identity(),
            known: function::Known {
                place: Some(7),
                bars: [Some(bar), None, None, None, None, None],
                config: vec![(0x34, 0x40)],
            },
            msix: Some(msix),
            vectors: 5,
            max_read_request: Some(2),
            sandbox: sandbox.clone(),
        },
        &format!(
            "{IDENTITY} 01 0700000000000000 01 01 0040000000000000 0c 0000000000 \
             0100000000000000 3400 40000000 01 b000 0500 00 00800000 00 00c00000 0500 01 02 {report}"
        ),
    );
    golden(
        connection::Ready { functions: vec![identity()], sandbox: sandbox.clone() },
        &format!("0100000000000000 {IDENTITY} {report}"),
    );
    golden(listing::Ready { functions: 2, sandbox }, &format!("02000000 {report}"));
    unknown_tag::<sandbox::LayerKind>(19);
}

#[test]
fn connection_messages() {
    use connection::{
        AbandonBatch, AddMemory, AdoptDma, Attach, Attached, BarWindow, Companion, Detach,
        DmaEntry, DmaStatistics, Escrow, Escrowed, EscrowedFunction, GetStatistics, HandOver,
        HandedFiles, MapDma, Mapped, ReleaseDma, RemoveMemory, Request, Reset, UnmapDma,
    };
    call::<Request, _>(Attach { function: 1 }, "00000000 01");
    call::<Request, _>(Detach { function: 1 }, "01000000 01");
    call::<Request, _>(
        AddMemory { function: 5, base: 1, size: 2, offset: 3, writable: true },
        "02000000 05 0100000000000000 0200000000000000 0300000000000000 01",
    );
    call::<Request, _>(RemoveMemory { function: 5, base: 1 }, "03000000 05 0100000000000000");
    let entry = DmaEntry { key: 1, address: 2, size: 3 };
    call::<Request, _>(
        MapDma { function: 0, entry },
        "04000000 00 0100000000000000 0200000000000000 0300000000000000",
    );
    call::<Request, _>(UnmapDma { function: 0, key: 9 }, "05000000 00 0900000000000000");
    call::<Request, _>(GetStatistics { function: 7 }, "06000000 07");
    call::<Request, _>(Reset { function: 2 }, "07000000 02");
    call::<Request, _>(Companion { function: 2 }, "08000000 02");
    call::<Request, _>(ReleaseDma { function: 2 }, "09000000 02");
    call::<Request, _>(AbandonBatch { function: 2, batch: 9 }, "0a000000 02 0900000000000000");
    call::<Request, _>(Ping, "0b000000");
    call::<Request, _>(Shutdown, "0c000000");
    call::<Request, _>(Misbehave(misbehaviour()), &format!("0d000000 {MISBEHAVIOUR}"));
    call::<Request, _>(HandOver { function: 3 }, "0e000000 03");
    golden(function::Handed { descriptors: 1 }, "01");
    call::<Request, _>(Escrow, "0f000000");
    call::<Request, _>(
        AdoptDma { function: 0, entry },
        "10000000 00 0100000000000000 0200000000000000 0300000000000000",
    );
    let address = identity().address;
    let one = EscrowedFunction { address, descriptors: 1, request: true };
    let handed = HandedFiles::Group { group: 3, container: Some(4) };
    assert_eq!(handed.descriptors(), 2);
    golden(handed, "00000000 03000000 01 04000000");
    let handed = HandedFiles::Devices { devices: vec![3, 5], iommufd: 4 };
    assert_eq!(handed.descriptors(), 3);
    golden(handed, "01000000 0200000000000000 03000000 05000000 04000000");
    let escrowed = Escrowed { group: 2, functions: vec![one] };
    assert_eq!(escrowed.descriptors(), 4);
    golden(escrowed, ESCROWED);
    golden(Mapped { bus_address: 1, bus_length: 2 }, "0100000000000000 0200000000000000");
    let window = BarWindow { bar: 0, offset: 0, length: 0x8000, memory_offset: 0 };
    let attached = Attached {
        identity: identity(),
        bars: [None; 6],
        windows: vec![window],
        carrier: connection::Carrier::Port,
        warnings: vec![],
    };
    golden(
        Box::new(attached),
        &format!(
            "{IDENTITY} 000000000000 0100000000000000 \
             00 0000000000000000 0080000000000000 0000000000000000 01000000 0000000000000000"
        ),
    );
    let statistics = DmaStatistics {
        regions: 1,
        bytes: 2,
        peak_regions: 3,
        peak_bytes: 4,
        failed_bytes: 5,
        failed_mappings: 6,
        failed_segments: 7,
    };
    golden(
        statistics,
        "0100000000000000 0200000000000000 0300000000000000 0400000000000000 \
         0500000000000000 0600000000000000 0700000000000000",
    );
    unknown_tag::<Request>(17);
    unknown_tag::<connection::Carrier>(3);
}

#[test]
fn dma_messages() {
    use connection::DmaEntry;
    use dma::{Outcome, Reply, Request};
    let entries = vec![DmaEntry { key: 1, address: 2, size: 3 }];
    golden(
        Request::Map { batch: 7, timeout_ms: 9, entries },
        "00000000 0700000000000000 09000000 0100000000000000 \
         0100000000000000 0200000000000000 0300000000000000",
    );
    golden(
        Request::Unmap { batch: 8, timeout_ms: 9, keys: vec![9] },
        "01000000 0800000000000000 09000000 0100000000000000 0900000000000000",
    );
    golden(Request::Abandon { batch: 8 }, "02000000 0800000000000000");
    let outcomes = vec![
        Outcome::Mapped { bus_address: 1, bus_length: 2 },
        Outcome::Unmapped,
        Outcome::Failed(FailureKind::NoSpace),
    ];
    golden::<Reply>(
        Ok(outcomes),
        "00000000 0300000000000000 00000000 0100000000000000 0200000000000000 01000000 \
         02000000 05000000",
    );
    golden::<Reply>(Err(FailureKind::InvalidArgument), "01000000 00000000");
    unknown_tag::<Request>(3);
    unknown_tag::<Outcome>(3);
}

#[test]
fn listing_messages() {
    use listing::{Function, GetConfig, GetFunction, Request};
    call::<Request, _>(GetFunction(3), "00000000 03000000");
    call::<Request, _>(GetConfig(3), "01000000 03000000");
    call::<Request, _>(Ping, "02000000");
    call::<Request, _>(Shutdown, "03000000");
    call::<Request, _>(Misbehave(misbehaviour()), &format!("04000000 {MISBEHAVIOUR}"));
    unknown_tag::<Request>(5);
    let function = Function {
        identity: identity(),
        root_bridge: Some("r".parse().unwrap()),
        bars: [None; 6],
        msi_vectors: 32,
        msix: None,
        claimed: true,
        clients: vec![dext::Client { pid: 7, name: "x".to_owned() }],
    };
    golden(
        Box::new(function),
        &format!(
            "{IDENTITY} 01 0100000000000000 72 000000000000 2000 00 01 \
             0100000000000000 07000000 0100000000000000 78"
        ),
    );
}

#[test]
fn dext_messages() {
    use dext::{Backing, IoReturn, Reply, Request, Service};
    golden(Request::Services, "00000000");
    golden(Request::Open { service: 5, kind: 0 }, "01000000 0500000000000000 00000000");
    golden(
        Request::Call {
            selector: 8,
            inputs: vec![4],
            outputs: 1,
            backing: Some(Backing { offset: 2, writable: true }),
        },
        "02000000 08000000 0100000000000000 0400000000000000 01000000 \
         01 0200000000000000 01",
    );
    golden(
        Request::CallAsync { selector: 15, inputs: vec![] },
        "03000000 0f000000 0000000000000000",
    );
    golden(Request::Map { kind: 7 }, "04000000 07000000");
    let service = Service {
        id: 1,
        class: "c".to_owned(),
        root_bridge: Some("r".parse().unwrap()),
        clients: vec![],
    };
    golden(
        Reply::Services(vec![service]),
        "00000000 0100000000000000 0100000000000000 0100000000000000 63 \
         01 0100000000000000 72 0000000000000000",
    );
    golden(
        Reply::Return { code: IoReturn::NOT_OPEN, outputs: vec![1] },
        "01000000 cd0200e0 0100000000000000 0100000000000000",
    );
}

#[test]
fn spawner_messages() {
    golden(
        spawn::Grant {
            program: b"/p".to_vec(),
            dext: b"iokit".to_vec(),
            strict: true,
            windows: "handed".to_owned(),
            devices: vec![identity().address],
            sockets: vec![b"/s".to_vec()],
            socket_mode: 0o600,
            socket_group: Some(7),
            user: Some(spawn::User { uid: 1, gid: 2 }),
            programs: true,
        },
        "0200000000000000 2f70 0500000000000000 696f6b6974 01 0600000000000000 68616e646564
         0100000000000000 0000 010203 0100000000000000 0200000000000000 2f73 80010000
         01 07000000 01 01000000 02000000 01",
    );
    let address = identity().address;
    let start = |role| spawn::Request::Start { address, role, program: 5 };
    let function = spawn::Role::Function {
        guest_memory: true,
        known: None,
        max_read_request: Some(2),
        standby: true,
    };
    golden(start(spawn::Role::Connection), "00000000 0000 010203 00000000 05000000");
    golden(start(spawn::Role::Adopter), "00000000 0000 010203 03000000 05000000");
    golden(start(spawn::Role::Handed), "00000000 0000 010203 04000000 05000000");
    let both = spawn::Role::HandedAdopter;
    golden(start(both), "00000000 0000 010203 05000000 05000000");
    golden(start(spawn::Role::Lister), "00000000 0000 010203 01000000 05000000");
    golden(start(function), "00000000 0000 010203 02000000 01 00 01 02 01 05000000");
    golden(spawn::Request::Listen(3), "01000000 03000000");
    golden(spawn::Request::Remove(3), "02000000 03000000");
    golden(spawn::Request::Program, "03000000");
    golden(spawn::Request::Forget(3), "04000000 03000000");
    unknown_tag::<spawn::Request>(5);
    golden(spawn::Reply::Granted, "00000000");
    golden(spawn::Reply::Started { pid: 7 }, "01000000 07000000");
    golden(spawn::Reply::Listening, "02000000");
    golden(spawn::Reply::Removed, "03000000");
    golden(spawn::Reply::Refused("no".to_owned()), "04000000 0200000000000000 6e6f");
    golden(spawn::Reply::Program(3), "05000000 03000000");
    golden(spawn::Reply::Forgotten, "06000000");
    unknown_tag::<spawn::Reply>(7);
}
