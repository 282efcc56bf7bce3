//! `cordon doctor`, line by line, against systems that are made up: programs that print what a Mac would,
//! and simulated dexts that hang, refuse and have devices of one address.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;
use std::process::Command;

use cordon_tests::{Simulator, program, write_script};
use serde_json::Value;

const ID: &str = "org.example.VFIOUserPCIDriver";

/// A Mac on which everything is as it must be.
struct Mac {
    extension: &'static str,
    entitled: &'static str,
    registry: &'static str,
    thunderbolt: &'static str,
    processes: &'static str,
}

const REGISTRY: &str = r#"+-o Root  <class IORegistryEntry, id 0x1>
  +-o display@0  <class IOPCIDevice, id 0x3>
  | {
  |   "IODEXTMatchCount" = 1
  |   "assigned-addresses" = <1000038200000000>
  | }
  | +-o VFIOUserPCIDriver  <class IOUserService, id 0x4>
  |     {
  |       "IOUserClass" = "VFIOUserPCIDriver"
  |     }
"#;

const GOOD: Mac = Mac {
    extension: "* * TEAM org.example.VFIOUserPCIDriver (1.0/1) VFIOUserPCIDriver [activated enabled]",
    entitled: "<key>com.apple.developer.driverkit.userclient-access</key>\n<array>\n<string>org.example.VFIOUserPCIDriver</string></array>",
    registry: REGISTRY,
    thunderbolt: "Thunderbolt/USB4 Bus 0:\n  Device Name: MacBook Pro\n  Speed: Up to 40 Gb/s\n  Enclosure:\n    Device Name: Node Titan\n    Speed: Up to 40 Gb/s",
    processes: "  1 /sbin/launchd\n 77 /Library/SystemExtensions/X/org.example.VFIOUserPCIDriver.dext/org.example.VFIOUserPCIDriver",
};

impl Mac {
    fn write(&self, folder: &Path) {
        for (name, text) in [
            ("systemextensionsctl", self.extension),
            ("codesign", self.entitled),
            ("ioreg", self.registry),
            ("system_profiler", self.thunderbolt),
            ("ps", self.processes),
        ] {
            // One whose output is not known is not there.
            if text == "-" {
                continue;
            }
            write_script(&folder.join(name), &format!("#!/bin/sh\ncat <<'END'\n{text}\nEND\n"));
        }
    }
}

/// A descriptor that is left open to every program that is started, as shells and terminals leave theirs.
fn leave_one_open() {
    use std::os::fd::AsRawFd as _;
    static LEFT: std::sync::OnceLock<std::fs::File> = std::sync::OnceLock::new();
    let left = LEFT.get_or_init(|| std::fs::File::open("/dev/null").unwrap());
    rustix::io::fcntl_setfd(left, rustix::io::FdFlags::empty()).unwrap();
    assert!(left.as_raw_fd() > 2);
}

/// What doctor says: its exit status, and its lines as JSON.
fn doctor(mac: Option<&Mac>, dext: Option<&str>, more: &[&str]) -> (i32, Value) {
    leave_one_open();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("cordon"));
    command.args(["doctor", "--json"]).args(more).env_remove("CORDON_DEXT");
    if let Some(mac) = mac {
        mac.write(folder.path());
        command.arg("--tools").arg(folder.path());
    }
    if let Some(dext) = dext {
        command.args(["--dext", dext]);
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
    (output.status.code().unwrap(), found)
}

/// The state of a line, with what was found and the cure.
fn line<'v>(found: &'v Value, check: &str) -> (&'v str, String) {
    let lines = found["lines"].as_array().unwrap();
    let line = lines.iter().find(|line| line["check"] == check);
    let line = line.unwrap_or_else(|| panic!("there is no line '{check}': {found:#}"));
    (line["state"].as_str().unwrap(), format!("{} {}", line["found"], line["cure"]))
}

#[test]
fn a_machine_on_which_everything_is_there_is_well_and_every_line_was_asked() {
    let simulator = Simulator::usual();
    let (status, found) = doctor(Some(&GOOD), Some(&simulator.endpoint()), &[]);
    assert_eq!(status, 0, "{found:#}");
    for check in [
        "confinement",
        "the extension is active",
        "device-proc may open the dext",
        "the extension runs",
        "BARs have addresses",
        "the enclosure and its link",
        "no stale processes of the extension",
        "the dext answers",
        "devices answer",
        "addresses are unique",
    ] {
        assert_eq!(line(&found, check).0, "ok", "{found:#}");
    }
    assert_eq!((&found["missing"], &found["unknown"]), (&Value::from(0), &Value::from(0)));
}

#[test]
fn what_was_not_asked_is_unknown_and_the_exit_status_says_so() {
    let (status, found) = doctor(None, None, &[]);
    assert_eq!(status, 3, "{found:#}");
    for check in ["the dext answers", "devices answer", "addresses are unique"] {
        assert_eq!(line(&found, check).0, "unknown");
    }
    // Programs that are not there, or say what nobody understands.
    let nothing =
        Mac { extension: "-", entitled: "-", registry: "-", thunderbolt: "-", processes: "-" };
    let simulator = Simulator::usual();
    let (status, found) = doctor(Some(&nothing), Some(&simulator.endpoint()), &[]);
    assert_eq!((status, &found["unknown"]), (3, &Value::from(6)), "{found:#}");
    let empty = Mac { registry: "", thunderbolt: "", processes: "", ..GOOD };
    let (status, found) = doctor(Some(&empty), Some(&simulator.endpoint()), &[]);
    assert_eq!((status, &found["unknown"]), (3, &Value::from(4)), "{found:#}");
}

/// What is changed of a good Mac, the line that says so, and a word of its cure.
type Case = (Mac, &'static str, &'static str);

#[test]
fn each_thing_that_owners_have_met_is_a_line_with_its_cure() {
    let without_service: &'static str =
        Box::leak(REGISTRY.replace("IOUserClass", "Other").into_boxed_str());
    let unmatched: &'static str = Box::leak(
        without_service
            .replace("IODEXTMatchCount\" = 1", "IODEXTMatchCount\" = 0")
            .into_boxed_str(),
    );
    let unassigned: &'static str =
        Box::leak(REGISTRY.replace("<1000038200000000>", "<>").into_boxed_str());
    let waiting =
        "* * T org.example.VFIOUserPCIDriver (1/1) VFIOUserPCIDriver [activated waiting for user]";
    let fast = "Device Name: Fast\n Speed: Up to 80 Gb/s";
    let twice = "7 /x/org.example.VFIOUserPCIDriver\n8 /x/org.example.VFIOUserPCIDriver";
    let cases: [Case; 9] = [
        (Mac { extension: "0 extension(s)", ..GOOD }, "the extension is active", "/Applications"),
        (Mac { extension: waiting, ..GOOD }, "the extension is active", "System Settings"),
        (Mac { entitled: "<dict></dict>", ..GOOD }, "device-proc may open the dext", "0xe00002e2"),
        (
            Mac {
                entitled: "<key>com.apple.developer.driverkit.userclient-access</key><array><string>a</string></array>",
                ..GOOD
            },
            "device-proc may open the dext",
            "--dext-bundle-id org.example.VFIOUserPCIDriver",
        ),
        (Mac { registry: without_service, ..GOOD }, "the extension runs", "restart the Mac"),
        (Mac { registry: unmatched, ..GOOD }, "the extension runs", "personality"),
        (Mac { registry: unassigned, ..GOOD }, "BARs have addresses", "enclosure attached"),
        (Mac { thunderbolt: fast, ..GOOD }, "the enclosure and its link", "SPTM and DART"),
        (Mac { processes: twice, ..GOOD }, "no stale processes of the extension", "end them"),
    ];
    for (mac, check, says) in cases {
        let (status, found) = doctor(Some(&mac), None, &["--dext-bundle-id", ID]);
        let (state, text) = line(&found, check);
        assert_eq!((status, state), (1, "missing"), "{check}: {found:#}");
        assert!(text.contains(says), "{check}: {text}");
    }
}

#[test]
fn a_dext_that_hangs_is_a_line_and_not_the_end_of_doctor() {
    let simulator = Simulator::start(&[
        "--device=01:00.0=probe",
        "--fault=delay:selector=0,nth=1,calls=9,ms=60000",
    ]);
    let began = std::time::Instant::now();
    let (status, found) = doctor(None, Some(&simulator.endpoint()), &[]);
    let (state, text) = line(&found, "the dext answers");
    assert_eq!((status, state), (1, "missing"), "{found:#}");
    assert!(text.contains("the dext hangs"), "{text}");
    assert!(began.elapsed() < std::time::Duration::from_secs(15));
    assert_eq!(line(&found, "devices answer").0, "unknown");
}

#[test]
fn a_refusal_is_told_by_its_code() {
    for (code, says) in [("0xe00002e2", "sign device-proc"), ("0xe00002bc", "the kernel refused")] {
        let fault = format!("--fault=fail:selector=0,nth=1,code={code}");
        let simulator = Simulator::start(&["--device=01:00.0=probe", &fault]);
        let (status, found) = doctor(None, Some(&simulator.endpoint()), &[]);
        let (state, text) = line(&found, "the dext answers");
        assert_eq!((status, state), (1, "missing"), "{found:#}");
        assert!(text.contains(code) && text.contains(says), "{text}");
    }
}

#[test]
fn two_devices_of_one_address_are_named_by_their_root_bridges() {
    let simulator = Simulator::start(&[
        "--device=01:00.0=probe,root=apciec0",
        "--device=01:00.0=probe,root=apciec1",
    ]);
    let (status, found) = doctor(None, Some(&simulator.endpoint()), &[]);
    let (state, text) = line(&found, "addresses are unique");
    assert_eq!((status, state), (1, "missing"), "{found:#}");
    assert!(text.contains("apciec0 and apciec1") && text.contains("--dext=iokit@apciec"), "{text}");
}
