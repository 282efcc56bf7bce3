//! `vfio-serve ADDRESS handed`: the server is one that a service manager started with the files of the function's IOMMU
//! group, by a user who may open none of VFIO's. Its connection process is killed, which another one adopts, and ended
//! as one that broke its sandbox, after which another one has to open the group by the files again.

use std::fs::File;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use cordon_tests::vfio_user::{Client, map, ram};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::nvme::{BASE, Nvme, SIZE};
use crate::{CORDON, DMA_MAP, Failure, LONGEST, READ_WRITE, SOCKETS, Serve, put_back, remove};

/// The word that this program is run with to become the server.
pub(crate) const BECOME: &str = "become";

/// Becomes a server for whom the variables of the service manager are; why not.
pub(crate) fn become_server(words: &[String]) -> Failure {
    let mut command = Command::new(CORDON);
    command.args(words).env("LISTEN_PID", std::process::id().to_string());
    format!("{CORDON}: {}", command.exec()).into()
}

/// Closes what this program was started with, as a manager does that has handed it on: a function's own file keeps the
/// device for as long as it is open.
#[expect(unsafe_code, reason = "descriptors are taken by their numbers")]
fn let_go() {
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    for number in (3..).take(count) {
        // SAFETY: this program was started with these, as whoever set the variable says, and nothing of it has used
        // them; they are taken here, once.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
}

fn process(event: &Value, name: &str) -> Result<Pid, Failure> {
    let pid = event[name].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    Ok(pid.ok_or_else(|| format!("no {name}: {event}"))?)
}

/// Has the kernel take the function back, and returns it: why it is not served again, and how long the kernel took.
fn take_back(serve: &mut Serve, address: &str) -> Result<Value, Failure> {
    let removal = remove(address)?;
    serve.until("requested")?;
    let took = removal.recv_timeout(LONGEST).map_err(|_| "the removal goes on for ever")??;
    put_back(address)?;
    let why = serve.until("given-up")?["why"].clone();
    Ok(json!({ "why": why, "took_ms": u64::try_from(took.as_millis())? }))
}

/// With `taken_back`, which takes root, the kernel takes the function back in the end.
pub(crate) fn check(address: &str, taken_back: bool) -> Result<Value, Failure> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(BECOME);
    let mut serve = Serve::start(command, &[address])?;
    // Of those that it may still make.
    let calls = serve.until("confined")?["syscalls"].as_u64();
    let first = process(&serve.until("listening")?, "connection_process")?;
    serve.until("ready")?;
    let_go();
    let mut client = Client::negotiated(Path::new(SOCKETS[0]));
    let memory = ram(SIZE);
    let mapped = client.ask(DMA_MAP, &map(READ_WRITE, 0, BASE, SIZE), &[memory.as_fd()]);
    if mapped.error != 0 {
        return Err(format!("memory is refused with {}", mapped.error).into());
    }
    let memory = File::from(memory.as_fd().try_clone_to_owned()?);
    client.master_bus();
    let mut nvme = Nvme::start(&mut client, &memory)?;
    let mut verified = nvme.verify(1)?;

    kill_process(first, Signal::KILL)?;
    let second = process(&serve.until("connection-adopted")?, "process")?;
    verified += nvme.verify(2)?;

    kill_process(second, Signal::SYS)?;
    let third = process(&serve.until("connection-replaced")?, "process")?;
    serve.until("back")?;
    client.master_bus();
    verified += Nvme::start(&mut client, &memory)?.verify(3)?;
    let taken_back = if taken_back { Some(take_back(&mut serve, address)?) } else { None };
    drop(client);
    let status = serve.stop()?;
    Ok(json!({
        "confined": calls > Some(0),
        "adopted": second != first,
        "opened_again": third != second,
        "bytes_verified": verified,
        "taken_back": taken_back,
        "status": status,
    }))
}
