//! The calls by their C functions, over a kernel process and a simulated dext. What needs a second process forks.
//!
//! `CORDON_BIN_DIR` says where dext-sim is.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::codes::{COMPLEX, Code, NULL, Name, PAGE, disposition as how, kern, msg, option, right};
use crate::state::SELF;

mod iokit;
mod vm;

/// Begins as a task, once.
fn begin() {
    static BEGUN: OnceLock<()> = OnceLock::new();
    BEGUN.get_or_init(|| {
        // SAFETY: a place for the limits, and limits that are not above what is allowed.
        unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        let kernel = crate::server::start().unwrap();
        crate::client::start(&kernel, None);
        crate::iokit::start(Some(&dext_socket().display().to_string()));
    });
}

fn dext_socket() -> PathBuf {
    std::env::temp_dir().join(format!("mach-kernel-dext-{}", std::process::id()))
}

/// A simulated dext with a probe beneath a root bridge. Killed on drop.
struct Dext(Child);

impl Dext {
    fn start() -> Self {
        let programs = std::env::var_os("CORDON_BIN_DIR").expect("CORDON_BIN_DIR is not set");
        let mut child = Command::new(PathBuf::from(programs).join("dext-sim"))
            .arg("--socket")
            .arg(dext_socket())
            .arg("--control")
            .arg(dext_socket().with_extension("control"))
            .args(["--device=01:00.0=probe,root=apciec0@30000000", "--exit-with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line:?}");
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Dext {
    fn drop(&mut self) {
        self.kill();
    }
}

fn receive_right() -> Name {
    let mut name = NULL;
    assert_eq!(crate::ports::allocate(SELF, right::RECEIVE, &raw mut name), 0);
    name
}

fn receive(port: Name, milliseconds: u32) -> (Code, [u32; 64]) {
    let mut words = [0u32; 64];
    let options = option::RCV | option::RCV_TIMEOUT;
    let at = words.as_mut_ptr().cast();
    let code = crate::ports::mach_msg(at, options, 0, 256, port, milliseconds, NULL);
    (code, words)
}

/// Runs in a process of its own, which is killed when it returns.
fn in_a_fork(what: impl FnOnce()) {
    // SAFETY: the copy does what the test says, and is killed.
    match unsafe { libc::fork() } {
        -1 => panic!("no fork"),
        0 => {
            what();
            // SAFETY: plain numbers.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        child => {
            let mut status = 0;
            // SAFETY: a child of ours and a place for its status.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert!(libc::WIFSIGNALED(status), "{status:#x}");
        }
    }
}

#[test]
fn another_process_sends_memory_and_its_death_by_a_kill_is_told_at_once() {
    begin();
    let port = receive_right();
    assert_eq!(crate::ports::insert_right(SELF, port, port, how::MAKE_SEND), 0);
    assert_eq!(crate::ports::register(SELF, [port].as_ptr(), 1), 0);
    in_a_fork(|| {
        let (mut names, mut count) = (std::ptr::null_mut(), 0);
        assert_eq!(crate::ports::lookup(SELF, &raw mut names, &raw mut count), 0);
        // SAFETY: an array of so many names.
        let names = unsafe { std::slice::from_raw_parts(names, count as usize) };
        assert_eq!(names.len(), 3);
        let own = receive_right();
        let entry = vm::entry_with(&[5, 6, 7]);
        let (copy, made) = (how::COPY_SEND << 16, how::MAKE_SEND << 16);
        let bits = how::COPY_SEND | COMPLEX;
        let mut words = [bits, 52, names[0], 0, 0, 11, 2, entry, 0, copy, own, 0, made];
        let at = words.as_mut_ptr().cast();
        let sent = crate::ports::mach_msg(at, option::SEND, 52, 0, NULL, 0, NULL);
        assert_eq!(sent, 0);
    });
    let (code, words) = receive(port, 5000);
    assert_eq!((code, words[5], words[6]), (0, 11, 2));
    let (entry, sender) = (words[7], words[10]);
    assert_eq!(vm::bytes_of(entry, PAGE)[..3], [5, 6, 7]);
    // The right of the port of the process that was killed is a dead name by now, or will be when the kernel has
    // read the end of it.
    let dead = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let mut words = [how::COPY_SEND, 24, sender, 0, 0, 1];
        let at = words.as_mut_ptr().cast();
        let sent = crate::ports::mach_msg(at, option::SEND, 24, 0, NULL, 0, NULL);
        sent == msg::SEND_INVALID_DEST
    });
    assert!(dead);
    // Of a port that was dead before the message came there is no name.
    let code = crate::ports::mod_refs(SELF, sender, right::DEAD_NAME, 0);
    assert!(sender == crate::codes::DEAD || code == kern::SUCCESS, "{sender:#x}: {code}");
    assert_eq!(crate::ports::register(SELF, std::ptr::null(), 0), 0);
}

#[test]
fn a_receive_times_out_and_a_send_to_a_full_queue_gives_its_rights_back() {
    begin();
    let port = receive_right();
    assert_eq!(receive(port, 10).0, msg::RCV_TIMED_OUT);
    assert_eq!(receive(port, 0).0, msg::RCV_TIMED_OUT);
    assert_eq!(receive(0x7703, 0).0, msg::RCV_INVALID_NAME);
    assert_eq!(crate::ports::insert_right(SELF, port, port, how::MAKE_SEND), 0);
    let entry = vm::entry_with(&[1]);
    let copy = how::COPY_SEND << 16;
    let words = [how::COPY_SEND | COMPLEX, 40, port, 0, 0, 1, 1, entry, 0, copy];
    let options = option::SEND | option::SEND_TIMEOUT;
    for _ in 0..5 {
        let mut words = words;
        let at = words.as_mut_ptr().cast();
        assert_eq!(crate::ports::mach_msg(at, options, 40, 0, NULL, 10, NULL), 0);
    }
    let mut words = words;
    let at: *mut u8 = words.as_mut_ptr().cast();
    let sent = crate::ports::mach_msg(at, options, 40, 0, NULL, 10, NULL);
    assert_eq!((sent, words[0]), (msg::SEND_TIMED_OUT, how::MOVE_SEND | COMPLEX));
    // Libsyscall's own way to give them up: afterwards the sender has one reference, as before.
    crate::ports::destroy(at);
    assert_eq!(crate::ports::mod_refs(SELF, entry, right::SEND, -2), kern::INVALID_VALUE);
    assert_eq!(crate::ports::mod_refs(SELF, entry, right::SEND, -1), 0);
    assert_eq!(crate::ports::mod_refs(SELF, port, right::RECEIVE, -1), 0);
}
