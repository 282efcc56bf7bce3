//! `vfio-serve kept ADDRESS…`: `cordon keep` has `cordon serve` started again, which is killed at any moment while a
//! client of each function drives its NVMe controller by it and verifies what that writes and reads. The client is
//! strict: each answer comes once, with its number. Then a client goes away, and another one sends garbage, while
//! nobody is there; and the server comes back with another configuration.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cordon_tests::vfio_user::{Client, map, ram};
use cordon_vmm::{Event, SharedMemory};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::nvme::{BASE, Nvme, PART, SIZE, is_enabled, vectors, version};
use crate::{CORDON, DMA_MAP, Failure, LONGEST, READ_WRITE, SOCKETS, Serve};

/// The word that this program is run with to become the server that [`WORDS`] says.
pub(crate) const BECOME: &str = "become-kept";
/// A file with the server's words, one a line.
const WORDS: &str = "/tmp/words";
/// Servers that are killed while clients work.
const KILLS: usize = 40;
/// Config space, as a region, and a register of it that drivers may write.
const CONFIG: u32 = 7;
const LINE_SIZE: u64 = 0x0c;
const REGION_WRITE: u16 = 10;
/// Bus mastering, in the low byte of COMMAND.
const BUS_MASTER: u8 = 1 << 2;
/// Bytes of a message of which a socket holds a small part.
const LONG: usize = 1 << 20;
/// Accesses that are measured.
const ACCESSES: usize = 2000;

/// Becomes the server that is wanted now; why not.
pub(crate) fn become_server() -> Failure {
    match fs::read_to_string(WORDS) {
        Ok(words) => Command::new(CORDON).args(words.lines()).exec().into(),
        Err(error) => error.into(),
    }
}

/// Has the next server be this one.
pub(crate) fn wanted(addresses: &[&str], more: &[&str]) -> Result<(), Failure> {
    let mut words = vec!["serve".to_owned(), "--json".to_owned()];
    for (address, socket) in addresses.iter().zip(SOCKETS) {
        words.extend(
            ["--device", &format!("vfio:{address}"), "--socket", socket].map(str::to_owned),
        );
    }
    words.extend(more.iter().map(|word| (*word).to_owned()));
    Ok(fs::write(WORDS, words.join("\n"))?)
}

/// What starts it again and again.
fn keeper() -> Result<Serve, Failure> {
    let mut command = Command::new(CORDON);
    command.args(["keep", "--restarts=1000", "--"]).arg(std::env::current_exe()?).arg(BECOME);
    Serve::of(command)
}

/// The servers that there were.
pub(crate) struct Servers {
    pub(crate) serve: Serve,
    /// How many were started.
    started: usize,
    random: u64,
}

impl Servers {
    pub(crate) fn start() -> Result<Self, Failure> {
        Ok(Self { serve: keeper()?, started: 0, random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// The next one is there, and serves.
    pub(crate) fn next(&mut self) -> Result<Pid, Failure> {
        let pid = self.next_process()?;
        // One that was killed may have been ready just before: that is not meant.
        let mut all = self.serve.seen.iter().enumerate();
        let own = all.by_ref().filter(|(_, event)| event["event"] == "confined");
        let (at, _) = own.take(self.started).last().ok_or("it has not begun")?;
        self.serve.until_after(at, "ready")?;
        Ok(pid)
    }

    /// The next one is there, and does not serve yet.
    fn next_process(&mut self) -> Result<Pid, Failure> {
        self.started += 1;
        let confined = self.serve.until_all("confined", self.started)?;
        process(confined.iter(), "process")
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.serve.seen.iter().filter(|event| event["event"] == name).count()
    }

    /// Any number below.
    fn any(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Kills one after the other, some of them before they serve.
    fn kill_all(&mut self, done: &AtomicBool) -> Result<(), Failure> {
        for number in 0..KILLS {
            let pid = if number % 4 == 3 { self.next_process()? } else { self.next()? };
            let pause = if number % 4 == 3 { self.any(200_000) } else { self.any(400_000) };
            std::thread::sleep(Duration::from_micros(pause));
            kill_process(pid, Signal::KILL)?;
            if done.load(Ordering::Relaxed) {
                return Err("a client failed".into());
            }
        }
        self.next()?;
        Ok(())
    }
}

/// A client with its guest's memory and events.
pub(crate) struct Driven {
    pub(crate) client: Client,
    memory: SharedMemory,
    events: [Event; 2],
    part: u64,
}

impl Driven {
    pub(crate) fn connect(number: usize, memory: &SharedMemory) -> Result<Self, Failure> {
        let mut client = Client::negotiated(Path::new(SOCKETS[number]));
        client.waits_for(LONGEST);
        let whole = map(READ_WRITE, 0, BASE, SIZE);
        match client.ask(DMA_MAP, &whole, &[memory.as_fd()]).error {
            0 => {}
            error => return Err(format!("its memory is refused: {error}").into()),
        }
        let events = [Event::new()?, Event::new()?];
        vectors(&mut client, &events)?;
        let part = PART * u64::try_from(number)?;
        Ok(Self { client, memory: memory.try_clone()?, events, part })
    }

    /// Works until it is told to end: rounds, and bytes that were verified.
    fn work(&mut self, done: &AtomicBool) -> Result<(u64, u64), Failure> {
        let file = File::from(self.memory.as_fd().try_clone_to_owned()?);
        let Self { client, events, part, .. } = self;
        let mut nvme = Nvme::start_with(client, &file, *part, Some(&events[1]))?;
        let (mut rounds, mut verified) = (0, 0);
        // A round more than there are kills in.
        let mut is_last = false;
        while !is_last {
            is_last = done.load(Ordering::Relaxed);
            rounds += 1;
            verified += nvme.verify(rounds + *part)?;
        }
        Ok((rounds, verified))
    }

    /// Whether the controller is as its driver left it, and nothing came that nobody asked for.
    pub(crate) fn is_undisturbed(&mut self) -> Result<bool, Failure> {
        Ok(is_enabled(&mut self.client)? && !self.client.has_more())
    }

    /// Asks for something before and after the server is killed, and while nobody is there.
    fn asks_over_a_kill(&mut self, servers: &mut Servers, pid: Pid) -> Result<Pid, Failure> {
        let before = version(&mut self.client)?;
        kill_process(pid, Signal::KILL)?;
        let after = version(&mut self.client)?;
        if before != after || !self.is_undisturbed()? {
            return Err("it was disturbed".into());
        }
        servers.next()
    }

    /// Asks for something while there is no spawner any more, without which the server ends.
    fn asks_without_a_spawner(&mut self, servers: &mut Servers) -> Result<Pid, Failure> {
        let before = version(&mut self.client)?;
        let spawner = process(servers.serve.seen.iter(), "spawner")?;
        kill_process(spawner, Signal::KILL)?;
        servers.serve.until("spawner-lost")?;
        let after = version(&mut self.client)?;
        if before != after || !self.is_undisturbed()? {
            return Err("it was disturbed".into());
        }
        servers.next()
    }

    /// Changes a register and is in the middle of a message that is too long to stay in its socket: the server has
    /// taken out the most of it. What the register was before.
    fn tear(&mut self) -> Result<Vec<u8>, Failure> {
        let found = self.client.read(CONFIG, LINE_SIZE, 1);
        let other = [found.first().ok_or("nothing was read")? ^ 0x10];
        self.client.write(CONFIG, LINE_SIZE, &other);
        if self.client.read(CONFIG, LINE_SIZE, 1) != other {
            return Err("the cache line size cannot be written".into());
        }
        self.client.send_most(REGION_WRITE, &vec![0; LONG]);
        Ok(found)
    }
}

/// How many processes of servers there are still, 10 s after the last one at most.
fn remaining() -> Result<usize, Failure> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let mut found = 0;
        for process in fs::read_dir("/proc")?.flatten() {
            // Others than processes have none.
            let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let mut words = words.split(|byte| *byte == 0);
            let name = words.next().unwrap_or_default();
            found += usize::from(name.ends_with(b"cordon") || name.ends_with(b"device-proc"));
        }
        if found == 0 || Instant::now() > until {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn median(all: &mut [Duration]) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// How long a trapped access takes.
fn measured(client: &mut Client) -> Result<Duration, Failure> {
    let mut all = Vec::new();
    for _ in 0..ACCESSES {
        let began = Instant::now();
        version(client)?;
        all.push(began.elapsed());
    }
    Ok(median(&mut all))
}

/// The same by a server without a keeper.
fn measured_without(address: &str) -> Result<Duration, Failure> {
    let mut serve = Serve::start(Command::new(CORDON), &[address])?;
    serve.until("ready")?;
    let mut client = Client::negotiated(Path::new(SOCKETS[0]));
    let measured = measured(&mut client);
    drop(client);
    serve.stop()?;
    measured
}

/// Drives all of them while servers are killed.
fn drive(servers: &mut Servers, driven: &mut [Driven]) -> Result<Vec<(u64, u64)>, Failure> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = driven
            .iter_mut()
            .map(|one| {
                let done = &done;
                scope.spawn(move || {
                    let worked = one.work(done).map_err(|error| error.to_string());
                    // Nothing is to be waited for any more.
                    if worked.is_err() {
                        done.store(true, Ordering::Relaxed);
                    }
                    worked
                })
            })
            .collect();
        let killed = servers.kill_all(&done);
        done.store(true, Ordering::Relaxed);
        let mut worked = Vec::new();
        for worker in workers {
            worked.push(worker.join().map_err(|_| "a client panicked")??);
        }
        killed?;
        Ok(worked)
    })
}

pub(crate) fn check(addresses: &[&str]) -> Result<Value, Failure> {
    let without = measured_without(addresses[0])?;
    wanted(addresses, &[])?;
    let mut servers = Servers::start()?;
    servers.next()?;
    let memory = ram(SIZE);
    let mut driven = Vec::new();
    for number in 0..addresses.len() {
        let mut one = Driven::connect(number, &memory)?;
        one.client.master_bus();
        driven.push(one);
    }
    let with = measured(&mut driven[0].client)?;
    // The first one, once more.
    servers.started = 0;
    let worked = drive(&mut servers, &mut driven)?;
    let mut waits: Vec<Duration> =
        driven.iter().flat_map(|one| one.client.waits().iter().copied()).collect();
    let in_flight = waits.len();
    let undisturbed =
        driven.iter_mut().map(Driven::is_undisturbed).collect::<Result<Vec<_>, _>>()?;
    let (attached, adopted) = (servers.count("attach"), servers.count("client-adopted"));
    let is_loss = |event: &&Value| event["event"] == "client-lost" || event["event"] == "detach";
    let lost: Vec<Value> = servers.serve.seen.iter().filter(is_loss).cloned().collect();
    let last = process(servers.serve.seen.iter(), "process")?;

    // Another configuration: windows are handed, which a client that has none does not notice.
    wanted(addresses, &["--windows", "handed"])?;
    driven[0].asks_over_a_kill(&mut servers, last)?;
    // Whoever starts device processes is killed: the server ends as by a kill, and the next one goes on.
    let before = servers.count("client-adopted");
    let mut last = driven[0].asks_without_a_spawner(&mut servers)?;
    servers.serve.until_all("client-adopted", before + addresses.len())?;
    let mut less = Value::Null;
    if addresses.len() > 1 {
        // A device less: its client is sent away, the other one goes on.
        wanted(&addresses[..1], &[])?;
        last = driven[0].asks_over_a_kill(&mut servers, last)?;
        let closed = driven.pop().is_some_and(|mut gone| gone.client.is_closed());
        // It was taken over with its group.
        let config = fs::read(format!("/sys/bus/pci/devices/{}/config", addresses[1]))?;
        let masters = config.get(4).is_none_or(|command| command & BUS_MASTER != 0);
        let told = servers.serve.until("client-lost")?;
        less = json!({ "closed": closed, "masters": masters, "told": told["why"] });
        let file = File::from(memory.as_fd().try_clone_to_owned()?);
        Nvme::start(&mut driven[0].client, &file)?.verify(77)?;
    }
    // One that goes away while nobody is there, whose function is cleaned for the next.
    kill_process(last, Signal::KILL)?;
    let gone = driven.swap_remove(0);
    drop((gone, driven));
    let last = servers.next()?;
    servers.serve.until("detach")?;
    let mut next = Driven::connect(0, &memory)?;
    let cleaned = !is_enabled(&mut next.client)?;
    next.client.master_bus();
    let file = File::from(memory.as_fd().try_clone_to_owned()?);
    Nvme::start(&mut next.client, &file)?.verify(78)?;
    // Garbage while nobody is there.
    kill_process(last, Signal::KILL)?;
    next.client.send_raw(&[0xff; 64], &[memory.as_fd()]);
    let last = servers.next()?;
    servers.serve.until_all("detach", 2)?;
    let mut closed = false;
    for _ in 0..4 {
        closed |= next.client.is_closed();
    }
    drop(next);
    let mut torn = Driven::connect(0, &memory)?;
    torn.client.master_bus();
    Nvme::start(&mut torn.client, &file)?.verify(79)?;
    let (found, others) = (torn.tear()?, servers.count("client-lost"));
    kill_process(last, Signal::KILL)?;
    let last = servers.next()?;
    let told = servers.serve.until_all("client-lost", others + 1)?.pop();
    let torn_closed = torn.client.is_closed();
    let mut after = Driven::connect(0, &memory)?;
    let restored = after.client.read(CONFIG, LINE_SIZE, 1) == found;
    let torn = json!({ "closed": torn_closed, "restored": restored, "told": told });
    after.client.master_bus();
    Nvme::start(&mut after.client, &file)?.verify(80)?;
    // In order: everything is given back.
    kill_process(last, Signal::TERM)?;
    let status = servers.serve.child.wait()?.code();
    let ended = after.client.is_closed();
    // Before and after, since others use the machine's processors too.
    let again = measured_without(addresses[0])?;
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(json!({
        "functions": addresses.len(),
        "kills": KILLS,
        "rounds": worked.iter().map(|one| one.0).collect::<Vec<_>>(),
        "bytes_verified": worked.iter().map(|one| one.1).sum::<u64>(),
        "in_flight": in_flight,
        "waited_us": micros(median(&mut waits)),
        "longest_us": waits.last().copied().map(micros),
        "access_us": { "without": micros(without), "with": micros(with), "without_again": micros(again) },
        "undisturbed": undisturbed,
        "attached": attached,
        "adopted": adopted,
        "lost": lost,
        "less": less,
        "cleaned": cleaned,
        "garbage_closed": closed,
        "torn": torn,
        "ended": ended,
        "status": status,
        "remaining": remaining()?,
    }))
}

/// A process of the last server that said which there are.
fn process<'e>(
    events: impl DoubleEndedIterator<Item = &'e Value>,
    of: &str,
) -> Result<Pid, Failure> {
    let mut confined = events.filter(|event| event["event"] == "confined");
    let pid = confined.next_back().and_then(|event| event[of].as_i64());
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    Ok(pid.ok_or("no process")?)
}
