//! `cordon run`: a VMM with devices from one command line; how it ends, and that nothing is left. The VMM is
//! a script that is called as one and writes down what it was told.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use cordon_tests::processes::processes_of;
use cordon_tests::vfio_user::Client;
use cordon_tests::{Simulator, eventually, is_running, program, signal, write_script};
use rustix::process::Signal;

/// Of config space.
const CONFIG: u32 = 7;
/// Writes its arguments, one a line, and then does something.
const WRITES: &str = "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$0.new\" && mv \"$0.new\" \"$0.told\"\n";

/// A folder for a VMM and for what `cordon run` makes.
struct Place {
    folder: tempfile::TempDir,
    vmm: PathBuf,
}

impl Place {
    /// A VMM of this name that goes on with `then`.
    fn new(name: &str, then: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let vmm = folder.path().join(name);
        write_script(&vmm, &format!("{WRITES}{then}\n"));
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        Self { folder, vmm }
    }

    fn temporary(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// A run of it with these options.
    fn run(&self, simulator: &Simulator, options: &[&str], vmm: &[&str]) -> Command {
        let mut command = Command::new(program("cordon"));
        command.args(["run", "--dext", &simulator.endpoint()]).args(options).arg("--");
        command.arg(&self.vmm).args(vmm).env("TMPDIR", self.temporary());
        command
    }

    /// What the VMM was told, once it runs.
    fn told(&self) -> Vec<String> {
        let path = PathBuf::from(format!("{}.told", self.vmm.display()));
        assert!(
            eventually(|| path.exists()) || eventually(|| path.exists()),
            "the VMM does not run"
        );
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(self.temporary()).unwrap().next().is_none()
    }
}

/// The sockets that QEMU was told of.
fn sockets(told: &[String]) -> Vec<PathBuf> {
    let devices = told.windows(2).filter(|pair| pair[0] == "-device").map(|pair| &pair[1]);
    let device = devices.map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
    device.map(|device| device["socket"]["path"].as_str().unwrap().into()).collect()
}

const SHARED: &str = "memory-backend-memfd,id=ram,size=1G,share=on";
const FOR_EVER: &str = "trap 'exit 9' TERM\nwhile :; do sleep 0.05; done";

fn ended(child: &mut Child) -> ExitStatus {
    let mut done = || matches!(child.try_wait(), Ok(Some(_)));
    assert!(eventually(&mut done) || eventually(&mut done), "it does not end");
    child.wait().unwrap()
}

#[test]
fn a_vmm_is_told_of_every_function_its_status_is_passed_on_and_nothing_is_left() {
    let simulator = Simulator::usual();
    for (status, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 128 + 9)] {
        let place = Place::new("qemu-system-x86_64", status);
        let mut run = place.run(&simulator, &["--device=01:00"], &["-object", SHARED]);
        assert_eq!(run.status().unwrap().code(), Some(code));
        let told = place.told();
        assert_eq!(told[..2], ["-object", SHARED]);
        let names: Vec<_> =
            sockets(&told).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["01:00.0.sock", "01:00.1.sock"]);
        assert!(place.is_empty(), "{status}: a folder is left");
        simulator.assert_released("01:00.0");
    }
    let place = Place::new("cloud-hypervisor", "exit 0");
    let mut run = place.run(&simulator, &["--device=01:00.1"], &["--memory", "size=1G,shared=on"]);
    assert!(run.status().unwrap().success());
    let told = place.told();
    assert_eq!(told[2], "--user-device");
    assert!(told[3].starts_with("socket=/") && told[3].ends_with("/01:00.1.sock"), "{told:?}");
}

#[test]
fn its_devices_work_signals_are_passed_on_and_the_vmm_decides_the_status() {
    let simulator = Simulator::usual();
    let place = Place::new("qemu-system-x86_64", FOR_EVER);
    let mut run = place.run(&simulator, &["--device=01:00.1", "--standby"], &["-object", SHARED]);
    let mut run = run.spawn().unwrap();
    let socket = sockets(&place.told()).remove(0);
    assert_ne!(Client::negotiated(&socket).read(CONFIG, 0, 4), [0xff; 4]);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(socket.parent().unwrap()).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700, "others can enter the folder");
    signal(run.id(), Signal::TERM);
    assert_eq!(ended(&mut run).code(), Some(9));
    assert!(place.is_empty());
    simulator.assert_released("01:00.1");
}

#[test]
fn whoever_is_killed_takes_the_rest_along_and_the_folder_goes_too() {
    let simulator = Simulator::usual();
    let place = Place::new("qemu-system-x86_64", FOR_EVER);
    let mut run = place.run(&simulator, &["--device=01:00.0"], &["-object", SHARED]);
    let mut run = run.stdout(Stdio::null()).spawn().unwrap();
    let _ = place.told();
    let of_it = || -> Vec<u32> {
        processes_of(place.folder.path()).into_iter().map(|(pid, _)| pid).collect()
    };
    assert!(!of_it().is_empty(), "no process names the folder");
    let all = of_it();
    signal(run.id(), Signal::KILL);
    run.wait().unwrap();
    let gone = || all.iter().all(|pid| !is_running(*pid)) && of_it().is_empty();
    assert!(eventually(gone) || eventually(gone), "{:?} of {all:?} run on", of_it());
    assert!(eventually(|| place.is_empty()), "its folder is left");
    simulator.assert_released("01:00.0");
}

#[test]
fn a_dry_run_prints_what_a_shell_can_run_and_does_nothing() {
    let simulator = Simulator::usual();
    let place = Place::new("qemu-system-x86_64", "exit 7");
    let odd = "-name=it's \"a\" $HOME";
    let mut run =
        place.run(&simulator, &["--device=01:00", "--dry-run"], &["-object", SHARED, odd]);
    let output = run.output().unwrap();
    assert!(output.status.success());
    assert!(place.is_empty() && !Path::new(&format!("{}.told", place.vmm.display())).exists());
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(script.contains(" serve --json --dext sim:"), "{script}");
    let status = Command::new("sh").arg("-c").arg(&script).status().unwrap();
    assert_eq!(status.code(), Some(7), "{script}");
    let told = place.told();
    assert_eq!((told[2].as_str(), sockets(&told).len()), (odd, 2));
    assert!(place.is_empty());
    simulator.assert_released("01:00.0");
}

#[test]
fn a_dry_run_shows_the_commands_also_where_there_is_no_such_vmm() {
    let simulator = Simulator::usual();
    let output = Command::new(program("cordon"))
        .args(["run", "--dext", &simulator.endpoint(), "--device=01:00.0", "--dry-run", "--"])
        .args(["qemu-system-none", "-object", SHARED])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let script = String::from_utf8(output.stdout).unwrap();
    let vmm = script.lines().find(|line| line.starts_with("qemu-system-none -object "));
    assert!(
        vmm.is_some_and(|line| line.contains(SHARED) && line.contains(" -device ")),
        "{script}"
    );
}

#[test]
fn what_is_missing_is_named_before_anything_is_started() {
    let simulator = Simulator::usual();
    let place = Place::new("qemu-system-x86_64", "exit 0");
    let other = Place::new("bochs", "exit 0");
    let refused = |place: &Place, options: &[&str], vmm: &[&str], says: &str| {
        let output = place.run(&simulator, options, vmm).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(says), "{options:?} does not say {says:?}: {errors}");
        assert!(place.is_empty());
    };
    let shared = ["-object", SHARED];
    refused(&place, &["--device=01:00.0"], &["-m", "1G"], "guest memory must be shared");
    refused(&place, &["--device=07:00"], &shared, "the dext offers no function of 07:00");
    refused(&place, &["--device=01:00.7"], &shared, "offers no 01:00.7: cordon devices lists");
    refused(&place, &["--device=01:00", "--device=01:00.1"], &shared, "01:00.1 is named twice");
    refused(&other, &["--device=01:00.0"], &shared, "bochs is called neither qemu-system-*");
    refused(&place, &["--device=01:00.0", "--device-proc=/nonexistent"], &shared, "/nonexistent");
    let gone = Place {
        vmm: place.folder.path().join("qemu-system-arm"),
        folder: tempfile::tempdir().unwrap(),
    };
    std::fs::create_dir(gone.temporary()).unwrap();
    refused(&gone, &["--device=01:00.0"], &shared, "qemu-system-arm is no program that can be run");
    // By what it is told it is, another name is none.
    let mut run = other.run(&simulator, &["--device=01:00.0", "--vmm=qemu"], &shared);
    assert!(run.status().unwrap().success());
    assert_eq!(sockets(&other.told()).len(), 1);
    simulator.assert_released("01:00.0");
}
