//! What belongs to no command: order, sizes, unknown commands, the end of a client.

use std::os::fd::AsFd as _;

use crate::EINVAL;
use cordon_tests::vfio_user::{Served, map, ram, words};
use cordon_vfio_user::Event;
use cordon_vfio_user::protocol::command::{DMA_MAP, GET_INFO, IRQ_INFO, RESET};
use cordon_vfio_user::protocol::{HEADER, Header, MAX_MESSAGE, flag};

const EOPNOTSUPP: i32 = 95;

#[test]
fn unknown_commands_are_not_supported() {
    let served = Served::probe();
    let mut client = served.client();
    for command in [0, 6, 11, 12, 14, 15, 16, 17, 18, 99, u16::MAX] {
        assert_eq!(client.refused(command, &[0; 40], &[]), EOPNOTSUPP, "{command}");
    }
}

#[test]
fn replies_and_other_types_are_no_commands() {
    let served = Served::probe();
    let mut client = served.client();
    for flags in [1, 2, 0xf] {
        client.send(GET_INFO, flags, &words(&[16, 0, 0, 0]), &[]);
        let (_, reply) = client.receive();
        assert_eq!(i32::try_from(reply.error).unwrap(), EINVAL);
    }
    client.still_works();
}

#[test]
fn commands_in_one_piece_or_byte_by_byte_are_answered_in_order() {
    let served = Served::probe();
    let mut client = served.client();
    let ids: Vec<u16> = (0..50)
        .map(|number| client.send(IRQ_INFO, 0, &words(&[16, 0, number % 7, 0]), &[]))
        .collect();
    for (number, id) in ids.into_iter().enumerate() {
        let (header, reply) = client.receive();
        assert_eq!(header.id, id);
        assert_eq!(reply.error != 0, number % 7 > 4, "{number}");
    }
    let header = Header { id: 7, command: RESET, size: 16, flags: 0, error: 0 };
    for byte in header.to_bytes() {
        client.send_raw(&[byte], &[]);
    }
    assert_eq!(client.receive().0.id, 7);
}

#[test]
fn descriptors_are_those_of_their_own_message_however_the_bytes_come_together() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(1 << 20);
    for number in 0..30u64 {
        // Short ones, so that the beginning of the last is received together with them.
        let mut ids: Vec<u16> = (0..3).map(|_| client.send(99, 0, &[], &[])).collect();
        let region = map(3, 0, number << 20, 1 << 20);
        ids.push(client.send(DMA_MAP, 0, &region, &[memory.as_fd()]));
        ids.push(client.send(99, 0, &[], &[]));
        for (at, id) in ids.into_iter().enumerate() {
            let (header, reply) = client.receive();
            assert_eq!((header.id, reply.error == 0), (id, at == 3), "{number}: {at}");
        }
    }
    // Memory that came without a descriptor would not be registered.
    assert_eq!(served.simulator.held("01:00.1").2, 30);
}

#[test]
fn sizes_that_cannot_be_are_told_and_end_the_connection() {
    let served = Served::probe();
    for size in [0, 1, 15, u32::try_from(MAX_MESSAGE).unwrap() + 1, u32::MAX] {
        let mut client = served.client();
        let header = Header { id: 9, command: GET_INFO, size, flags: flag::COMMAND, error: 0 };
        client.send_raw(&header.to_bytes(), &[]);
        let (answer, reply) = client.receive();
        assert_eq!((answer.id, i32::try_from(reply.error).unwrap()), (9, EINVAL), "{size}");
        assert!(client.is_closed(), "{size}");
        served.until(|event| matches!(event, Event::Detached(why) if why.contains("bytes")));
    }
    served.client().still_works();
}

#[test]
fn the_end_of_a_client_takes_everything_back_and_the_next_one_is_served() {
    let served = Served::probe();
    let memory = ram(1 << 20);
    for _ in 0..5 {
        let mut client = served.client();
        let reply = client.ask(DMA_MAP, &map(3, 0, 0, 1 << 20), &[memory.as_fd()]);
        assert_eq!(reply.error, 0);
        client.write(7, 4, &[6]);
        client.write(0, 0x10, &[1, 2, 3, 4]);
        drop(client);
        served.until(|event| matches!(event, Event::Detached(_)));
        assert_eq!(served.simulator.held("01:00.1").2, 0);
        assert_eq!(served.container.usage(), (0, 0));
        let mut next = served.client();
        assert_eq!(next.read(7, 4, 1)[0] & 4, 0);
        next.master_bus();
        assert_eq!(next.read(0, 0x10, 4), [0; 4]);
        drop(next);
        served.until(|event| matches!(event, Event::Detached(_)));
    }
}

#[test]
fn a_client_that_ends_in_the_middle_of_a_message_is_a_client_that_ends() {
    let served = Served::probe();
    for cut in [1, HEADER - 1, HEADER, HEADER + 8] {
        let mut client = served.client();
        let header = Header { id: 1, command: GET_INFO, size: 32, flags: 0, error: 0 };
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(32, 0);
        client.send_raw(&bytes[..cut], &[]);
        drop(client);
        served.until(|event| matches!(event, Event::Detached(why) if why == "end of file"));
    }
    served.client().still_works();
}

#[test]
fn a_second_client_is_sent_away_and_the_first_does_not_notice() {
    let served = Served::probe();
    let mut client = served.client();
    let mut second = served.connect();
    assert!(second.is_closed());
    served.until(|event| *event == Event::Busy);
    client.still_works();
}

#[test]
fn random_messages_cost_an_error_each_and_nothing_else() {
    use cordon_vfio_user::protocol::command::VERSION;
    // The same numbers every time: a message that broke something is found again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(1 << 20);
    for _ in 0..3000 {
        let command = match random() % 16 {
            // A reset is slow, and a second VERSION is another test's.
            13 => RESET,
            other => u16::try_from(other).unwrap(),
        };
        if command == VERSION {
            continue;
        }
        let length = usize::try_from(random() % 64).unwrap();
        // Small numbers find more than large ones do.
        let body: Vec<u8> = (0..length)
            .map(|_| if random() % 4 == 0 { random().to_le_bytes()[0] } else { 0 })
            .collect();
        let handles = if random() % 8 == 0 { vec![memory.as_fd()] } else { Vec::new() };
        client.ask(command, &body, &handles);
    }
    client.still_works();
    assert!(served.proxy.death().is_none());
    // It may have put the device to sleep.
    client.ok(RESET, &[]);
    client.master_bus();
    assert_eq!(client.read(0, 0, 4), b"PRBE");
    drop(client);
    served.until(|event| matches!(event, Event::Detached(_)));
    assert_eq!(served.container.usage(), (0, 0));
    assert_eq!(served.simulator.held("01:00.1").2, 0);
}
