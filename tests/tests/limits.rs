//! Past the limits of the simulated dext that are one client's own.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use cordon_tests::dext::{register, unsealed};
use cordon_tests::{Simulator, address};
use dext_client::sim::SimulatedRegistry;
use dext_client::{Client, open_function};
use ipc::wire::dext::IoReturn;

const PROBE: &str = "01:00.1";

fn claimed(simulator: &Simulator) -> Client {
    let registry = SimulatedRegistry::new(&simulator.socket());
    let mut client = open_function(&registry, address(PROBE)).unwrap();
    client.claim().unwrap();
    client
}

#[test]
fn a_connection_has_so_many_regions_and_another_one_as_many() {
    const REGIONS: u64 = 65_536;
    let simulator = Simulator::usual();
    let (mut client, memory) = (claimed(&simulator), unsealed(4096));
    for key in 0..REGIONS {
        register(&mut client, key << 12, &memory, 16).unwrap();
    }
    let more = REGIONS << 12;
    assert_eq!(register(&mut client, more, &memory, 16), Err(IoReturn::NO_SPACE));
    let mut other = claimed(&simulator);
    register(&mut other, more << 1, &memory, 16).unwrap();
    client.unregister_dma(0).unwrap();
    register(&mut client, more, &memory, 16).unwrap();
}

#[test]
fn a_region_has_so_many_chunks_and_not_a_byte_more() {
    const MOST: u64 = 128 * (3 << 29);
    let simulator = Simulator::usual();
    let (mut client, memory) = (claimed(&simulator), unsealed(MOST + 4096));
    assert_eq!(register(&mut client, 0, &memory, MOST + 1), Err(IoReturn::NO_SPACE));
    register(&mut client, 0, &memory, MOST).unwrap();
}

#[test]
fn a_line_of_the_control_socket_that_is_a_byte_too_long_is_refused_and_ends_the_conversation() {
    const LINE: usize = 4096;
    let simulator = Simulator::usual();
    let control = simulator.socket().with_file_name("control");
    let mut reader = BufReader::new(UnixStream::connect(control).unwrap());
    let mut say = |length: usize| {
        let line = format!("{:<1$}\n", "\"state\"", length - 1);
        assert_eq!(line.len(), length);
        reader.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        answer
    };
    assert!(say(LINE).starts_with("{\"state\":"));
    let refused = say(LINE + 1);
    assert!(refused.contains("more than 4096 bytes"), "{refused}");
    let mut rest = Vec::new();
    // What it did not read may make the end of the connection an error.
    let _ = reader.read_to_end(&mut rest);
    assert_eq!(rest, b"", "the rest of the line was taken for another command");
    assert_eq!(simulator.held(PROBE), (0, 0, 0, false));
}
