//! A path is bytes, not text: everything that takes one takes any.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use cordon_tests::vfio_user::Client;
use cordon_tests::{copy_program, program, signal};
use rustix::process::Signal;

/// A folder whose name is no text, with the programs in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(folder.path()).unwrap();
        for name in ["device-proc", "faulty-device-proc", "dext-sim", "sandbox-probe"] {
            copy_program(name, &folder.at(name));
        }
        folder
    }

    fn path(&self) -> PathBuf {
        self.0.path().join(OsStr::from_bytes(b"any\xff\xfe bytes"))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// An option with a path of this folder.
    fn option(&self, option: &str, name: &str) -> OsString {
        joined(option, &self.at(name))
    }
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut joined = OsString::from(option);
    joined.push(path);
    joined
}

/// A child that is killed on drop, and whose output began with the line that was expected.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, until: &str) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let running = Self(child);
        let mut line = Vec::new();
        loop {
            line.clear();
            assert!(output.read_until(b'\n', &mut line).unwrap() > 0, "it ended");
            if line.starts_with(until.as_bytes()) {
                break;
            }
        }
        // Whoever goes on writing finds somebody who reads.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {errors}", output.status);
    output
}

fn cordon() -> Command {
    Command::new(program("cordon"))
}

#[test]
fn a_dext_a_server_and_a_look_are_at_any_path() {
    let folder = Folder::new();
    std::fs::File::create(folder.at("image")).unwrap().set_len(2 << 20).unwrap();
    let mut simulator = Command::new(folder.at("dext-sim"));
    simulator.arg(folder.option("--socket=", "dext")).arg(folder.option("--control=", "tell"));
    simulator.arg(folder.option("--device=01:00.0=nvme,image=", "image"));
    let _simulator = Running::start(&mut simulator, "ready");
    UnixStream::connect(folder.at("tell")).unwrap();
    let dext = folder.option("--dext=sim:", "dext");
    let program = folder.option("--device-proc=", "device-proc");
    done(cordon().args(["devices", "--json"]).arg(&dext).arg(&program));
    done(cordon().arg("devices").env("CORDON_DEXT", folder.option("sim:", "dext")).arg(&program));
    done(cordon().args(["inspect", "01:00.0", "--attach"]).arg(&dext).arg(&program));
    done(cordon().arg("doctor").arg(&dext).arg(&program));
    std::fs::write(folder.at("plan"), r#"{"faults":[]}"#).unwrap();
    for windows in ["handed", "own-connection"] {
        let mut serve = cordon();
        serve.args(["serve", "--device=01:00.0", "--windows", windows]).arg(&dext).arg(&program);
        serve.arg(folder.option("--socket=", "nvme")).arg(folder.option("--control=", "control"));
        serve.arg(folder.option("--plan=", "plan"));
        // It opens the dext itself, for which it must not be confined.
        let sandbox = if windows == "handed" { "strict" } else { "relaxed" };
        serve.arg(format!("--sandbox={sandbox}"));
        let mut serve = Running::start(&mut serve, "ready");
        assert_eq!(Client::negotiated(&folder.at("nvme")).read(7, 0, 2), [0xd0, 0xc0]);
        let mut look = cordon();
        look.args(["inspect", "01:00.0"]).arg(&dext).arg(&program);
        let seen = done(look.arg(folder.option("--control=", "control"))).stdout;
        assert!(String::from_utf8_lossy(&seen).contains("Served as"));
        signal(serve.0.id(), Signal::TERM);
        assert!(serve.0.wait().unwrap().success());
    }
}

#[test]
fn the_demo_and_the_torture_run_at_any_path() {
    let folder = Folder::new();
    std::fs::File::create(folder.at("image")).unwrap().set_len(4 << 20).unwrap();
    let plan =
        r#"{"faults":[{"process":"function","request":"BarRead","when":"after","what":"kill"}]}"#;
    std::fs::write(folder.at("plan"), plan).unwrap();
    let programs = |command: &mut Command| {
        command.env("TMPDIR", folder.path());
        command.arg(folder.option("--device-proc=", "device-proc"));
        command.arg(folder.option("--dext-sim=", "dext-sim"));
    };
    let mut demo = cordon();
    demo.arg("demo").arg(folder.option("--image=", "image"));
    demo.arg(folder.option("--sandbox-probe=", "sandbox-probe"));
    programs(&mut demo);
    done(&mut demo);
    let mut torture = cordon();
    torture.args(["torture", "--kills=3"]).arg(folder.option("--plan=", "plan"));
    programs(&mut torture);
    let said = done(&mut torture).stdout;
    assert!(String::from_utf8_lossy(&said).contains("fired at process"));
}
