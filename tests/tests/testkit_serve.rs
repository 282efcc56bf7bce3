//! The test kit with a `cordon serve`, for VMMs that speak vfio-user.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use cordon_testkit::{Programs, Rig, function};
use cordon_tests::vfio_user::Client;
use cordon_tests::{announce, bin_dir, eventually, is_running};

/// Regions, as vfio-user numbers them.
const BAR0: u32 = 0;
const CONFIG: u32 = 7;

#[test]
fn a_client_of_a_server_lives_through_the_third_bar_write() {
    let kill = function().at_bar_write(3).during().kill();
    let rig =
        Rig::with_device("01:00.0=probe").programs(Programs::in_folder(bin_dir())).fault(kill);
    let served = rig.serve(&["01:00.0"]).unwrap();
    let before = served.status("01:00.0").unwrap();
    let mut client = Client::negotiated(&served.socket("01:00.0"));
    served.until("attach").unwrap();
    // As a guest does before it touches a BAR: COMMAND.MEM.
    client.write(CONFIG, 0x04, &[0x02, 0]);
    for number in 0..6u8 {
        client.write(BAR0, 0x10, &[number; 4]);
        assert_eq!(client.read(BAR0, 0x10, 4), [number; 4]);
    }
    let after = served.until_status("01:00.0", |status| status.replacements == 1).unwrap();
    assert_ne!(after.function_process, before.function_process);
    assert_eq!((after.connection_process, after.returns), (before.connection_process, 0));
    drop(client);
    let [outcome] = &served.stop().unwrap()[..] else { panic!("there is one fault") };
    assert_eq!(outcome.process, Some(before.function_process));
    announce(&format!("{}: struck process {:?}", outcome.fault, outcome.process));
}

#[test]
fn a_server_that_is_dropped_leaves_nothing() {
    let rig = Rig::with_device("01:00.0=probe").programs(Programs::in_folder(bin_dir()));
    let served = rig.serve(&["01:00.0"]).unwrap();
    let status = served.status("01:00.0").unwrap();
    let (folder, server) = (served.folder().to_owned(), served.pid());
    let pids = [server, status.function_process, status.connection_process];
    assert!(folder.join("01:00.0").exists() && pids.iter().all(|pid| is_running(*pid)));
    drop(served);
    assert!(eventually(|| !pids.iter().any(|pid| is_running(*pid))), "{pids:?}");
    assert!(!folder.exists());
}

#[test]
fn a_function_that_is_not_there_is_said_by_the_server() {
    let rig = Rig::with_device("01:00.0=probe").programs(Programs::in_folder(bin_dir()));
    let error = rig.serve(&["02:00.0"]).unwrap_err().to_string();
    assert!(error.contains("did not get ready"), "{error}");
}
