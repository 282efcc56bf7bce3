//! The death of each process: noticed, told, read as all ones; nobody hangs, nothing is left.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cordon_tests::{Simulator, Vmm, children, config, eventually, is_running, program, signal};
use cordon_vmm::child::{Cause, ExitStatus};
use cordon_vmm::{DmaMode, ErrorKind, Function, HostConfig, PassthroughDevice as _};
use rustix::process::Signal;

fn quick(simulator: &Simulator) -> HostConfig {
    let mut config = config(simulator);
    config.deadlines.call = Duration::from_secs(1);
    config.deadlines.stop = Duration::from_secs(1);
    config
}

fn reads_all_ones(proxy: &Function) {
    let mut bytes = [0; 8];
    proxy.config_read_or_ones(0, &mut bytes[..4]);
    proxy.bar_read_or_ones(0, 0, &mut bytes[4..]);
    assert_eq!(bytes, [0xff; 8]);
}

#[test]
fn a_killed_function_process_is_data_and_its_sibling_does_not_notice() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let (disk, probe) = (vmm.attach("01:00.0"), vmm.attach("01:00.1"));
    signal(probe.pid(), Signal::KILL);
    assert!(eventually(|| probe.death().is_some()));
    let death = probe.death().unwrap();
    assert_eq!((&death.cause, death.exit), (&Cause::Ended, ExitStatus::Signal(9)));
    assert!(
        matches!(probe.config_read(0, &mut [0; 4]), Err(error) if error.kind() == ErrorKind::Gone)
    );
    assert_eq!(probe.config_write(4, &[6]).unwrap_err().errno(), 19);
    reads_all_ones(&probe);
    disk.config_read(0, &mut [0; 4]).unwrap();
    // Claim, DMA and windows are the connection process's and stay.
    assert!(eventually(|| simulator.held("01:00.1") == (1, 1, 1, false)));
    let window = probe.windows().unwrap()[0].map().unwrap();
    assert_eq!(window.read::<u32>(0).unwrap(), 0x4542_5250);
    vmm.host.detach(&probe);
    simulator.assert_released("01:00.1");
    disk.config_read(0, &mut [0; 4]).unwrap();
    vmm.host.detach(&disk);
    simulator.assert_released("01:00.0");
}

#[test]
fn a_stopped_function_process_is_killed_at_the_deadline() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(quick(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    signal(probe.pid(), Signal::STOP);
    let before = Instant::now();
    let error = probe.config_read(0, &mut [0; 4]).unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(5));
    // Its answer to this, or to what its keeper asked it for.
    assert!(error.to_string().contains("in time"), "{error}");
    assert!(!is_running(probe.pid()));
    reads_all_ones(&probe);
}

#[test]
fn a_killed_connection_process_is_data_and_everything_is_released() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let (disk, probe) = (vmm.attach("01:00.0"), vmm.attach("01:00.1"));
    signal(disk.connection().pid(), Signal::KILL);
    assert!(eventually(|| disk.death().is_some() && probe.death().is_some()));
    // The opener is gone, and with it claim and DMA of both functions.
    assert!(eventually(|| simulator.held("01:00.0").1 == 0 && simulator.held("01:00.0").2 == 0));
    vmm.host.detach(&disk);
    vmm.host.detach(&probe);
    simulator.assert_released("01:00.0");
    simulator.assert_released("01:00.1");
    let again = vmm.attach("01:00.0");
    again.config_read(0, &mut [0; 4]).unwrap();
    vmm.host.detach(&again);
}

#[test]
fn a_stopped_connection_process_does_not_hang_a_detach() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(quick(&simulator), DmaMode::Direct);
    let disk = vmm.attach("01:00.0");
    signal(disk.connection().pid(), Signal::STOP);
    vmm.host.detach(&disk);
    assert!(!is_running(disk.connection().pid()));
    simulator.assert_released("01:00.0");
}

#[test]
fn a_dead_dext_ends_both_processes() {
    let mut simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let disk = vmm.attach("01:00.0");
    let pids = [disk.pid(), disk.connection().pid()];
    simulator.kill();
    assert!(eventually(|| pids.iter().all(|pid| !is_running(*pid))));
    assert!(eventually(|| disk.death().is_some()));
    reads_all_ones(&disk);
    vmm.host.detach(&disk);
}

#[test]
fn a_dropped_vmm_leaves_nothing() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let (disk, probe) = (vmm.attach("01:00.0"), vmm.attach("01:00.1"));
    let pids = [disk.pid(), probe.pid(), disk.connection().pid()];
    drop((disk, probe, vmm));
    assert!(pids.iter().all(|pid| !is_running(*pid)));
    simulator.assert_released("01:00.0");
}

/// Killed on drop: one that is left would keep its devices from the tests that follow.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vmm_that_is_killed_leaves_nothing_within_a_second() {
    let simulator = Simulator::usual();
    let sockets = tempfile::tempdir().unwrap();
    let mut serve = Command::new(program("cordon"));
    serve.args(["serve", "--json", "--standby", "--dext", &simulator.endpoint()]);
    for device in ["01:00.0", "01:00.1"] {
        serve.args(["--device", device, "--socket"]).arg(sockets.path().join(device));
    }
    let mut serve = Killed(serve.stdout(Stdio::piped()).spawn().unwrap());
    let serve = &mut serve.0;
    let mut lines = BufReader::new(serve.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("\"ready\"") {}
    // A connection process, two function processes and two standbys, each with connections; and on Linux the
    // spawner.
    let all = if cfg!(target_os = "linux") { 6 } else { 5 };
    assert!(eventually(|| children(serve.id()).len() == all), "{:?}", children(serve.id()));
    let pids = children(serve.id());
    let before = Instant::now();
    serve.kill().unwrap();
    serve.wait().unwrap();
    let gone = || {
        pids.iter().all(|pid| !is_running(*pid))
            && ["01:00.0", "01:00.1"].iter().all(|one| simulator.held(one) == (0, 0, 0, false))
    };
    let left = || {
        let running: Vec<_> = pids.iter().filter(|pid| is_running(**pid)).collect();
        (running, ["01:00.0", "01:00.1"].map(|one| simulator.held(one)))
    };
    assert!(eventually(gone), "of {pids:?}: {:?}", left());
    // What is built for a Mac is run by an emulator here, a tenth as fast.
    let longest = Duration::from_secs(if cfg!(target_os = "macos") { 10 } else { 1 });
    assert!(before.elapsed() < longest, "{:?}", before.elapsed());
}
