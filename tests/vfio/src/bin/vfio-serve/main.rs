//! `vfio-serve ADDRESS`: runs `cordon serve --device vfio:ADDRESS`, drives the NVMe controller at ADDRESS through its
//! socket as a client of vfio-user's does, has it reach outside of the client's memory, takes it out of the machine and
//! puts it back, and prints what came of it as one JSON object. `vfio-serve ADDRESS handed`: see `handed`. With two
//! addresses, of one IOMMU group, it is the client of both: see `pair`. `vfio-serve kept ADDRESS…`: see `kept`, and
//! `apart`.

mod apart;
mod handed;
mod huge;
mod kept;
mod nvme;
mod pair;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use console::{complain, say};
use cordon_tests::vfio_user::{Client, map, ram};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use vfio_guest::binding::bind;

use self::nvme::{BASE, Nvme, SIZE, version};

type Failure = Box<dyn std::error::Error>;

const CORDON: &str = "/bin/cordon";
/// Where the sockets are, one for each function that is served.
const SOCKETS: [&str; 2] = ["/tmp/nvme.sock", "/tmp/second.sock"];
/// DMA_MAP, and the flags of memory that devices may read and write.
const DMA_MAP: u16 = 2;
const READ_WRITE: u32 = 3;
/// How long an event may take: a device may be away for 30 s.
const LONGEST: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let found = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [handed::BECOME, ..] => Err(handed::become_server(&words[1..])),
        [kept::BECOME] => Err(kept::become_server()),
        ["kept", ref addresses @ ..] => kept::check(addresses),
        ["apart", first, second] => apart::check([first, second]),
        [pair::OTHER, socket] => return pair::other(socket),
        [address, "handed"] => handed::check(address, false),
        [address, "handed", "removed"] => handed::check(address, true),
        [first, second] => pair::check([first, second]),
        [address] => check(address),
        _ => Err("vfio-serve ADDRESS [handed [removed] | ADDRESS]".into()),
    };
    match found.and_then(|found| Ok(say!("{found}")?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vfio-serve: {error}"));
            ExitCode::from(console::exit::FAILED)
        }
    }
}

/// A running server. Killed on drop.
struct Serve {
    child: Child,
    events: Receiver<Value>,
    seen: Vec<Value>,
}

impl Serve {
    fn start(mut command: Command, addresses: &[&str]) -> Result<Self, Failure> {
        command.args(["serve", "--json"]);
        for (address, socket) in addresses.iter().zip(SOCKETS) {
            command.args(["--device", &format!("vfio:{address}"), "--socket", socket]);
        }
        Self::of(command)
    }

    /// One that this command starts.
    fn of(mut command: Command) -> Result<Self, Failure> {
        command.stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, events, seen: Vec::new() })
    }

    /// Waits until there was an event of this name.
    fn until(&mut self, name: &str) -> Result<Value, Failure> {
        Ok(self.until_all(name, 1)?.swap_remove(0))
    }

    /// Waits until there were so many events of this name.
    fn until_all(&mut self, name: &str, count: usize) -> Result<Vec<Value>, Failure> {
        self.wait_for(0, name, count)
    }

    /// Waits until there was an event of this name behind the one at `after`.
    fn until_after(&mut self, after: usize, name: &str) -> Result<(), Failure> {
        self.wait_for(after, name, 1).map(drop)
    }

    fn wait_for(&mut self, from: usize, name: &str, count: usize) -> Result<Vec<Value>, Failure> {
        let until = Instant::now() + LONGEST;
        loop {
            let found = self.seen.iter().skip(from).filter(|event| event["event"] == name);
            let found: Vec<Value> = found.cloned().collect();
            if found.len() >= count {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.map_err(|_| format!("no event {name}, only {:?}", self.seen))?;
            self.seen.push(event);
        }
    }

    /// Stops it: its exit status.
    fn stop(&mut self) -> Result<Option<i32>, Failure> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.ok_or("no process")?, Signal::TERM)?;
        Ok(self.child.wait()?.code())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn check(address: &str) -> Result<Value, Failure> {
    let mut serve = Serve::start(Command::new(CORDON), &[address])?;
    serve.until("ready")?;
    let mut client = Client::negotiated(Path::new(SOCKETS[0]));
    let ids = client.read(7, 0, 4);
    let memory = ram(SIZE);
    let mapped = client.ask(DMA_MAP, &map(READ_WRITE, 0, BASE, SIZE), &[memory.as_fd()]);
    let memory = File::from(memory.as_fd().try_clone_to_owned()?);
    client.master_bus();
    let before = version(&mut client)?;
    let mut nvme = Nvme::start(&mut client, &memory)?;
    let model = nvme.model()?;
    let mut verified = nvme.verify(1)?;
    let outside = nvme.reach_outside()?;
    verified += nvme.verify(2)?;

    let removal = remove(address)?;
    let requested = serve.until("requested")?;
    serve.until("away")?;
    let ones = (version(&mut client)?, client.read(7, 0, 4));
    let removal_took =
        removal.recv_timeout(LONGEST).map_err(|_| "the removal goes on for ever")??;
    put_back(address)?;
    let back = serve.until("back")?;
    client.master_bus();
    let after = version(&mut client)?;
    verified += Nvme::start(&mut client, &memory)?.verify(3)?;
    let huge = huge::check(&mut client)?;
    drop(client);
    let status = serve.stop()?;
    Ok(json!({
        "ids": ids,
        "memory_error": mapped.error,
        "version": before,
        "model": model,
        "outside_status": outside,
        "requested": requested["why"],
        "ones": ones.0 == u32::MAX && ones.1 == [0xff; 4],
        "removal_took_ms": u64::try_from(removal_took.as_millis())?,
        "back": back["client"],
        "same_version": after == before,
        "bytes_verified": verified,
        "huge": huge,
        "status": status,
    }))
}

/// Has the kernel remove a function; how long that took comes when it is done.
fn remove(address: &str) -> Result<Receiver<Result<Duration, std::io::Error>>, Failure> {
    let remove = Path::new("/sys/bus/pci/devices").join(address).join("remove");
    let (sender, removed) = channel();
    std::thread::Builder::new().spawn(move || {
        let began = Instant::now();
        let _ = sender.send(fs::write(remove, "1").map(|()| began.elapsed()));
    })?;
    Ok(removed)
}

/// Has the kernel look for it again, and gives it to vfio-pci, as whoever put it back does.
fn put_back(address: &str) -> Result<(), Failure> {
    fs::write("/sys/bus/pci/rescan", "1")?;
    // The kernel has looked, and its own driver has it, when that returns.
    Ok(bind(address)?)
}
