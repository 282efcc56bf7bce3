//! Clients of `cordon serve` that mean ill. The neighbour is the client of another function.

use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use cordon_tests::serve::Serve;
use cordon_tests::vfio_user::{Client, access, map, ram, unmap, words};
use cordon_vfio_user::protocol::command::{
    DMA_MAP, DMA_UNMAP, GET_INFO, IRQ_INFO, REGION_INFO, REGION_READ, REGION_WRITE, RESET,
    SET_IRQS, VERSION,
};
use cordon_vfio_user::protocol::{HEADER, Header, MAX_MESSAGE};
use ipc::Event;
use rustix::process::Signal;

use crate::ledger::{Ledger, Stage};
use crate::neighbour::Neighbour;
use crate::{ATTACKER, OTHER, random, simulator};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// An attack: what it does at the socket of the attacked function, and what came of it.
type Attack = (&'static str, fn(&PathBuf) -> String);

const ATTACKS: &[Attack] = &[
    ("commands that are not there", |path| {
        let mut client = Client::negotiated(path);
        for number in 0..2000u16 {
            let command = if number < 32 { number } else { number.wrapping_mul(33) };
            if command != VERSION && command != RESET {
                client.ask(command, &[0xff; 40], &[]);
            }
        }
        client.still_works();
        "2000 commands answered".to_owned()
    }),
    ("sizes that cannot be", |path| {
        let sizes = [0, 1, 15, u32::try_from(MAX_MESSAGE).unwrap() + 1, 1 << 31, u32::MAX];
        for size in sizes {
            let mut client = Client::negotiated(path);
            let header = Header { id: 9, command: GET_INFO, size, flags: 0, error: 0 };
            client.send_raw(&header.to_bytes(), &[]);
            assert_ne!(client.receive().1.error, 0);
            assert!(client.is_closed(), "{size}");
        }
        Client::negotiated(path).still_works();
        format!("{} sizes refused", sizes.len())
    }),
    ("maps that overlap, wrap or are not aligned", |path| {
        let mut client = Client::negotiated(path);
        let memory = ram(4 * MIB);
        let mut next = random(3);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..1500 {
            let edge = |word: u64| match word % 6 {
                0 => word >> 40,
                1 => (word >> 40) * PAGE % (8 * MIB),
                2 => u64::MAX - (word >> 44) * PAGE,
                3 => u64::MAX,
                4 => 0,
                _ => 1 << (word >> 8 & 63),
            };
            let (offset, iova, size) = (edge(next()), edge(next()), edge(next()));
            let flags = u32::try_from(next() % 8).unwrap();
            let with = [memory.as_fd()];
            let body = map(flags, offset, iova, size);
            let reply = client.ask(DMA_MAP, &body, &with[..usize::from(!next().is_multiple_of(4))]);
            *(if reply.error == 0 { &mut taken } else { &mut refused }) += 1;
            if next().is_multiple_of(3) {
                client.ask(DMA_UNMAP, &unmap(0, edge(next()), edge(next())), &[]);
            }
        }
        client.ok(DMA_UNMAP, &unmap(2, 0, 0));
        assert!(refused > 0);
        format!("{taken} taken, {refused} refused")
    }),
    ("maps by the thousand", |path| {
        let mut client = Client::negotiated(path);
        let memory = ram(4096 * PAGE);
        let mut taken = 0;
        for number in 0..4096 {
            let body = map(3, number * PAGE, number * 2 * PAGE, PAGE);
            taken += u32::from(client.ask(DMA_MAP, &body, &[memory.as_fd()]).error == 0);
        }
        assert!((1..4096).contains(&taken), "{taken}");
        format!("{taken} of 4096 taken")
    }),
    ("descriptors of wrong kinds, by the thousand", |path| {
        let mut client = Client::negotiated(path);
        let kinds = wrong_kinds();
        let event = Event::new().unwrap();
        let signaller = event.signaller().unwrap();
        for round in 0..200 {
            for (number, kind) in kinds.iter().enumerate() {
                let many: Vec<BorrowedFd<'_>> = vec![kind.as_fd(); 1 + (round + number) % 60];
                let region = map(3, 0, 0, MIB);
                assert_ne!(client.ask(DMA_MAP, &region, &many).error, 0, "kind {number}");
                let install = words(&[20, 0x24, 2, 0, 1]);
                client.ask(SET_IRQS, &install, &many[..1]);
            }
            // Beside commands that want none.
            client.ask(GET_INFO, &words(&[16, 0, 0, 0]), &vec![signaller.as_fd(); 64]);
        }
        client.ok(SET_IRQS, &words(&[20, 0x21, 2, 0, 0]));
        format!("{} of {} kinds", 200 * kinds.len(), kinds.len())
    }),
    ("events that are full or block", |path| {
        let mut client = Client::negotiated(path);
        client.master_bus();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        for vector in 0..8 {
            let install = words(&[20, 0x24, 2, vector, 1]);
            assert_eq!(client.ask(SET_IRQS, &install, &[event.as_fd()]).error, 0);
        }
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for _ in 0..200 {
            client.ask(SET_IRQS, &words(&[20, 0x21, 2, 0, 8]), &[]);
        }
        client.still_works();
        "200 times 8 triggered".to_owned()
    }),
    ("half messages held open", |path| {
        let mut client = Client::negotiated(path);
        let header = Header { id: 1, command: REGION_WRITE, size: 1 << 20, flags: 0, error: 0 };
        client.send_raw(&header.to_bytes(), &[]);
        client.send_raw(&[0; 4096], &[]);
        // Others who do not even begin.
        let crowd: Vec<_> = (0..50).map(|_| UnixStream::connect(path).unwrap()).collect();
        std::thread::sleep(Duration::from_millis(800));
        drop(crowd);
        "held for 0.8 s, 50 beside it".to_owned()
    }),
    ("bytes one at a time, and none read", |path| {
        let mut client = Client::negotiated(path);
        let header = Header { id: 7, command: GET_INFO, size: 32, flags: 0, error: 0 };
        let message = [&header.to_bytes()[..], &words(&[16, 0, 0, 0])].concat();
        for byte in &message {
            client.send_raw(&[*byte], &[]);
        }
        drop(client);
        // Commands whose replies nobody reads, until there is no room for more of them.
        let mut stream = negotiated_stream(path);
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let read = access(7, 0, 4096, &[]);
        let size = u32::try_from(HEADER + read.len()).unwrap();
        let header = Header { id: 1, command: REGION_READ, size, flags: 0, error: 0 };
        let message = [&header.to_bytes()[..], &read].concat();
        let sent = (0..100_000).take_while(|_| stream.write_all(&message).is_ok()).count();
        assert!(sent < 100_000, "replies without end are kept");
        format!("{sent} replies not read")
    }),
    ("replies to nothing", |path| {
        let mut client = Client::negotiated(path);
        for flags in [1, 0x21, 2, 0xf, u32::MAX] {
            for command in 0..20 {
                client.send(command, flags, &words(&[16, 0, 0, 0]), &[]);
            }
        }
        drop(client);
        Client::negotiated(path).still_works();
        "100 messages that are no commands".to_owned()
    }),
    ("disconnects at each step", |path| {
        let header = Header { id: 0, command: VERSION, size: 40, flags: 0, error: 0 }.to_bytes();
        let mut steps = 0;
        for cut in 0..=header.len() {
            let mut stream = UnixStream::connect(path).unwrap();
            let _ = stream.write_all(&header[..cut]);
            steps += 1;
        }
        let (memory, event) = (ram(MIB), Event::new().unwrap());
        let signaller = event.signaller().unwrap();
        for step in 0..6 {
            let mut client = Client::negotiated(path);
            let reply = client.ask(DMA_MAP, &map(3, 0, 0, MIB), &[memory.as_fd()]);
            assert_eq!(reply.error, 0);
            match step {
                0 => {}
                1 => {
                    client.send(DMA_MAP, 0, &map(3, 0, MIB, MIB), &[memory.as_fd()]);
                }
                2 => {
                    client.send(SET_IRQS, 0, &words(&[20, 0x24, 2, 0, 1]), &[signaller.as_fd()]);
                }
                3 => {
                    client.send(RESET, 0, &[], &[]);
                }
                4 => {
                    client.send(REGION_READ, 0, &access(0, 0, 1 << 16, &[]), &[]);
                }
                _ => client.send_raw(&[0; 7], &[]),
            }
            steps += 1;
        }
        Client::negotiated(path).still_works();
        format!("{steps} steps")
    }),
    ("every edge of every region", |path| {
        let mut client = Client::negotiated(path);
        let (mut read, mut refused) = (0, 0);
        for region in (0..12).chain([u32::MAX]) {
            let info = client.ask(REGION_INFO, &words(&[32, 0, region, 0, 0, 0, 0, 0]), &[]);
            let size = info
                .body
                .get(16..24)
                .map_or(0, |size| u64::from_le_bytes(size.try_into().unwrap()));
            for at in [0, 1, size.wrapping_sub(8), size.wrapping_sub(1), size, size + 1, u64::MAX] {
                for count in [0, 1, 3, 4, 8, 9, 4096, 1 << 16, u32::MAX] {
                    let body = access(region, at, count, &[]);
                    let error = client.ask(REGION_READ, &body, &[]).error;
                    *(if error == 0 { &mut read } else { &mut refused }) += 1;
                    // More or less data than it says, and none where it says very much.
                    client.ask(REGION_WRITE, &access(region, at, count, &[0x5a; 8]), &[]);
                }
            }
        }
        assert!(read > 0 && refused > 0);
        format!("{read} read, {refused} refused")
    }),
    ("interrupts that cannot be", |path| {
        let mut client = Client::negotiated(path);
        let mut next = random(5);
        for _ in 0..1500 {
            let word = |next: &mut dyn FnMut() -> u64| u32::try_from(next() >> 33).unwrap();
            let (size, flags) = (20, word(&mut next) & 0x3f);
            let (index, start) = (word(&mut next) % 7, word(&mut next) >> (next() % 32));
            let count = word(&mut next) >> (next() % 32);
            client.ask(SET_IRQS, &words(&[size, flags, index, start, count]), &[]);
            client.ask(IRQ_INFO, &words(&[16, 0, index, 0]), &[]);
        }
        client.still_works();
        "1500 setups".to_owned()
    }),
    ("resets in a loop", |path| {
        let mut client = Client::negotiated(path);
        for number in 0..100u32 {
            client.ask(RESET, &[], &[]);
            client.ask(REGION_WRITE, &access(7, 4, 2, &number.to_le_bytes()[..2]), &[]);
        }
        "100 resets".to_owned()
    }),
    ("messages of any bytes", |path| {
        let mut next = random(7);
        let mut sent = 0;
        for _ in 0..40 {
            let mut stream = negotiated_stream(path);
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let bytes: Vec<u8> = (0..256).flat_map(|_| next().to_le_bytes()).collect();
            sent += usize::from(stream.write_all(&bytes).is_ok());
        }
        Client::negotiated(path).still_works();
        format!("{sent} of 2 KiB each")
    }),
];

/// Descriptors that are no memory.
fn wrong_kinds() -> Vec<OwnedFd> {
    let (socket, _) = UnixStream::pair().unwrap();
    let (pipe, _) = std::io::pipe().unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    vec![
        socket.into(),
        pipe.into(),
        epoll,
        std::fs::File::open("/").unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
        ram(PAGE).into_fd(),
        rustix::fs::memfd_create("of no bytes", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
    ]
}

/// A client of whom nothing but bytes is wanted.
fn negotiated_stream(path: &PathBuf) -> UnixStream {
    const VERSION_BODY: &[u8] = b"\0\0\0\0{\"capabilities\":{}}\0";
    // One that is let in shows that the client before is taken leave of.
    drop(Client::negotiated(path));
    let mut found = None;
    let welcome = cordon_tests::eventually(|| {
        let mut stream = UnixStream::connect(path).unwrap();
        let size = u32::try_from(HEADER + VERSION_BODY.len()).unwrap();
        let header = Header { id: 0, command: VERSION, size, flags: 0, error: 0 };
        let hello = [&header.to_bytes()[..], VERSION_BODY].concat();
        let greeted = stream.write_all(&hello).is_ok()
            && std::io::Read::read(&mut stream, &mut [0; 256]).is_ok_and(|count| count > 0);
        found = greeted.then_some(stream);
        greeted
    });
    assert!(welcome, "nobody is let in any more");
    found.unwrap()
}

pub(crate) fn attacks(ledger: &mut Ledger) {
    let simulator = simulator();
    let mut serve = Serve::start(&simulator, &[ATTACKER, OTHER]);
    let neighbour = Neighbour::at(&serve.socket(OTHER));
    // What is made at the first client is there before what is measured.
    let path = serve.socket(ATTACKER);
    Client::negotiated(&path).still_works();
    let stage = Stage::new(&neighbour, serve.pid());
    for (name, attack) in ATTACKS {
        ledger.attack(&stage, &format!("client {name}"), || Ok(attack(&path)));
    }
    drop(neighbour);
    let (status, _, events) = serve.end(Signal::TERM);
    assert!(status.success(), "{events:?}");
    for function in [ATTACKER, OTHER] {
        simulator.assert_released(function);
    }
}
