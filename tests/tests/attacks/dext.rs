//! A dext that has gone mad, between the real simulated one and the processes of one VMM. The neighbour is over
//! the real one, in the same VMM.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cordon_tests::{Simulator, address, config, eventually};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{DmaMode, Host, InterruptIndex, PassthroughDevice as _, Recovery};
use ipc::event::Signaller;
use ipc::tube::Listener;
use ipc::wire::dext::{IoReturn, Reply, Request, Service, memory, selector};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Event, SharedMemory, Tube};

use crate::ledger::{Ledger, Stage};
use crate::neighbour::Neighbour;
use crate::{ATTACKER, Guest, OTHER, simulator};

/// Selectors of the dext.
const SELECTORS: u32 = 18;
/// Selectors that no program of ours calls, so that a dext has no answer to them which it could make wrong: it is
/// never asked for its own end, for buffers of its own and for what is in memory, and BARs are accessed in memory that
/// is mapped.
const NEVER_CALLED: [(u32, &str); 6] = [
    (selector::TERMINATE, "Terminate"),
    (selector::ALLOCATE_DMA_BUFFER, "AllocateDMABuffer"),
    (selector::FREE_DMA_BUFFER, "FreeDMABuffer"),
    (selector::PROBE_DMA_REGION, "ProbeDMARegion"),
    (selector::MMIO_READ, "MMIORead"),
    (selector::MMIO_WRITE, "MMIOWrite"),
];
/// Selectors that are called where the interrupt page cannot be mapped.
const WITHOUT_PAGE: [u32; 2] = [selector::CHECK_INTERRUPT, selector::SET_IRQ_MASK];
/// How long attaching may take where it fails: its deadline, and a busy machine.
const ATTACH: Duration = Duration::from_secs(7);
/// The longest that is used of what is attached.
const USE: Duration = Duration::from_millis(300);

const CODES: [IoReturn; 18] = [
    IoReturn::ERROR,
    IoReturn::NO_MEMORY,
    IoReturn::NO_RESOURCES,
    IoReturn::IPC_ERROR,
    IoReturn::NO_DEVICE,
    IoReturn::BAD_ARGUMENT,
    IoReturn::UNSUPPORTED,
    IoReturn::NOT_OPEN,
    IoReturn::NOT_ALIGNED,
    IoReturn::STILL_OPEN,
    IoReturn::OFFLINE,
    IoReturn::NOT_READY,
    IoReturn::NOT_ATTACHED,
    IoReturn::NO_SPACE,
    IoReturn::OVERRUN,
    IoReturn::NOT_FOUND,
    IoReturn::PORT_DEAD,
    IoReturn(u32::MAX),
];

/// What comes of an answer of the real dext's on its way: it is changed, or not sent at all.
type Change = Box<dyn FnMut(&Request, &mut Reply, &mut Vec<OwnedFd>) -> bool + Send>;

/// Between the real dext and its clients.
struct Mad {
    change: Arc<Mutex<Change>>,
    /// Whether completions are signalled without end.
    storm: Arc<AtomicBool>,
    endpoint: String,
    over: Arc<AtomicBool>,
    _folder: tempfile::TempDir,
}

impl Mad {
    fn before(simulator: &Simulator) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dext");
        let listener = Listener::bind(&path).unwrap();
        let change: Arc<Mutex<Change>> = Arc::new(Mutex::new(Box::new(|_, _, _| true)));
        let (storm, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let real = simulator.socket();
        let (shared, storms, ended) = (Arc::clone(&change), Arc::clone(&storm), Arc::clone(&over));
        std::thread::spawn(move || {
            while let Ok(client) = listener.accept() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let (real, shared, storms) =
                    (real.clone(), Arc::clone(&shared), Arc::clone(&storms));
                std::thread::spawn(move || relay(client, &real, &shared, &storms));
            }
        });
        let endpoint = format!("sim:{}", path.display());
        Self { change, storm, endpoint, over, _folder: folder }
    }

    fn answers(
        &self,
        change: impl FnMut(&Request, &mut Reply, &mut Vec<OwnedFd>) -> bool + Send + 'static,
    ) {
        *self.change.lock().unwrap() = Box::new(change);
    }
}

impl Drop for Mad {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let path = self.endpoint.trim_start_matches("sim:");
        let _ = Tube::connect(std::path::Path::new(path));
    }
}

/// Passes on what one client and the real dext say, until one of them is gone.
fn relay(
    mut client: Tube,
    real: &std::path::Path,
    change: &Mutex<Change>,
    storm: &AtomicBool,
) -> Option<()> {
    let soon = || Deadline::after(Duration::from_secs(5));
    client.handshake(Role::Dext, Role::DextClient, soon()).ok()?;
    let mut dext = Tube::connect(real).ok()?;
    dext.handshake(Role::DextClient, Role::Dext, soon()).ok()?;
    let mut completion: Option<Signaller> = None;
    loop {
        while storm.load(Ordering::Relaxed) && completion.is_some() {
            completion.iter().for_each(Signaller::signal);
            // As fast as a device could: nobody is to be kept off the processors by this side.
            let pause = Deadline::after(Duration::from_micros(50));
            if ipc::poll::wait_readable(&client, pause).unwrap_or(true) {
                break;
            }
        }
        let wait = Deadline::after(Duration::from_millis(20));
        let received = match client.receive::<Request>(wait) {
            Ok(received) => received,
            Err(ipc::TubeError::TimedOut) => continue,
            Err(_) => return None,
        };
        let (id, request) = (received.id, received.message);
        let handles: Vec<OwnedFd> = received.handles.collect();
        if let (Request::Open { .. }, [event]) = (&request, &handles[..]) {
            completion = event.try_clone().ok().map(Signaller::from_trusted);
        }
        let borrowed: Vec<_> = handles.iter().map(OwnedFd::as_fd).collect();
        dext.send(id, &request, &borrowed, soon()).ok()?;
        let mut reply = dext.receive::<Reply>(soon()).ok()?;
        let mut beside: Vec<OwnedFd> = reply.handles.by_ref().collect();
        let goes = (change.lock().unwrap())(&request, &mut reply.message, &mut beside);
        if goes {
            let borrowed: Vec<_> = beside.iter().map(OwnedFd::as_fd).collect();
            client.send(id, &reply.message, &borrowed, soon()).ok()?;
        }
    }
}

/// The selector of a request, and its inputs.
fn called(request: &Request) -> Option<(u32, &[u64])> {
    match request {
        Request::Call { selector, inputs, .. } | Request::CallAsync { selector, inputs } => {
            Some((*selector, inputs))
        }
        _ => None,
    }
}

/// Attaches the attacker's function over a mad dext, uses it if it comes, and detaches it; whether it came.
fn try_it(host: &Host, time: Duration) -> Result<bool, String> {
    let guest = Guest::new(DmaMode::Direct);
    let began = Instant::now();
    let attached = host.attach(address(ATTACKER), &guest.container, None);
    if began.elapsed() > ATTACH {
        return Err(format!("attaching took {:?}", began.elapsed()));
    }
    let Ok(function) = attached else { return Ok(false) };
    let began = Instant::now();
    let event = Event::new().unwrap();
    while began.elapsed() < time && function.death().is_none() {
        let _ = function.config_read(0x40, &mut [0; 4]);
        let _ = function.config_write(4, &[6, 0]);
        let _ = function.config_write(0x48, &[0xff; 4]);
        let _ = function.bar_read(0, 0, &mut [0; 4]);
        let _ = function.bar_write(4, 0, &[1; 4]);
        let _ = function.bar_read(1, 0, &mut [0; 4]);
        for index in [InterruptIndex::Msix, InterruptIndex::Intx] {
            let signallers = vec![Some(event.signaller().unwrap())];
            let assign = InterruptSetup::Assign { start: 0, signallers };
            let _ = function.set_interrupts(index, assign);
            let _ = function.set_interrupts(index, InterruptSetup::Mask);
        }
        let _ = function.reset();
    }
    let began = Instant::now();
    host.detach(&function);
    if began.elapsed() > Duration::from_secs(3) {
        return Err(format!("detaching took {:?}", began.elapsed()));
    }
    Ok(true)
}

/// Attaches again and again while each selector in turn answers by `wrong`, another way at each call, until it
/// has answered in all `ways`. Those that nothing calls are left after the second time.
fn each_selector(
    mad: &Mad,
    host: &Host,
    ways: usize,
    wrong: fn(usize, &mut Reply),
) -> Result<String, String> {
    let (mut attached, mut refused, mut tried) = (0, 0, 0);
    let (mut called_at_all, mut never) = (0, Vec::new());
    for at in 0..SELECTORS {
        let way = Arc::new(Mutex::new(0));
        let into = Arc::clone(&way);
        mad.answers(move |request, reply, beside| {
            let maps_page = *request == Request::Map { kind: memory::INTERRUPT_STATE };
            if maps_page && WITHOUT_PAGE.contains(&at) {
                *reply = Reply::Return { code: IoReturn::BAD_ARGUMENT, outputs: Vec::new() };
                beside.clear();
            }
            if called(request).is_some_and(|(called, _)| called == at) {
                let mut way = into.lock().unwrap();
                wrong(*way % ways, reply);
                *way += 1;
            }
            true
        });
        // Pending bits are asked for when a completion comes.
        mad.storm.store(at == selector::CHECK_INTERRUPT, Ordering::Relaxed);
        let answered = || *way.lock().unwrap();
        for round in 0..2 * ways {
            if answered() >= ways || (round > 1 && answered() == 0) {
                break;
            }
            let came = try_it(host, Duration::from_millis(5))?;
            *(if came { &mut attached } else { &mut refused }) += 1;
        }
        mad.storm.store(false, Ordering::Relaxed);
        if answered() == 0 {
            never.push(at);
        } else {
            called_at_all += 1;
        }
        tried += answered().min(ways);
    }
    if tried < called_at_all * ways {
        return Err(format!("{tried} of {ways} ways of {called_at_all} selectors tried"));
    }
    let mut expected = NEVER_CALLED;
    expected.sort_unstable();
    if never != expected.map(|(selector, _)| selector) {
        return Err(format!("never called were {never:?}, expected {expected:?}"));
    }
    let names = expected.map(|(_, name)| name).join(", ");
    Ok(format!(
        "{ways} ways of {called_at_all} selectors; {attached} attached, {refused} refused; never called, so \
         never answered: {names}"
    ))
}

/// Every answer of one kind is changed by `change`; what it takes is one attach.
fn once(
    mad: &Mad,
    host: &Host,
    change: impl FnMut(&Request, &mut Reply, &mut Vec<OwnedFd>) -> bool + Send + 'static,
) -> Result<String, String> {
    mad.answers(change);
    Ok(if try_it(host, USE)? { "attached and detached" } else { "not attached" }.to_owned())
}

/// Changes the outputs of one selector.
fn outputs(
    of: u32,
    mut change: impl FnMut(&[u64], &mut Vec<u64>) + Send + 'static,
) -> impl FnMut(&Request, &mut Reply, &mut Vec<OwnedFd>) -> bool + Send + 'static {
    move |request, reply, _| {
        if let (Some((called, inputs)), Reply::Return { outputs, .. }) = (called(request), reply)
            && called == of
        {
            change(inputs, outputs);
        }
        true
    }
}

/// What it hands out instead of a device's memory.
fn instead(way: usize, size: u64, beside: &mut Vec<OwnedFd>, outputs: &mut [u64]) {
    let lie = [u64::MAX, 0, 1, size * 2, size / 2][way % 5];
    match way {
        0..5 => outputs.iter_mut().for_each(|one| *one = lie),
        5 => *beside = vec![std::io::pipe().unwrap().0.into()],
        6 => *beside = vec![std::fs::File::open("/").unwrap().into()],
        7 => *beside = vec![SharedMemory::create("small", 4096).unwrap().into_fd()],
        8 => beside.clear(),
        _ => {
            let more = SharedMemory::create("more", 4096).unwrap().into_fd();
            beside.extend((0..20).map(|_| more.try_clone().unwrap()));
        }
    }
}

pub(crate) fn attacks(ledger: &mut Ledger) {
    let (simulator, ours) = (simulator(), std::process::id());
    let real = Host::new(config(&simulator));
    let guest = Guest::new(DmaMode::Direct);
    let function = guest.attach(&real, OTHER);
    let neighbour = Neighbour::of(&function, &guest.ram);
    let mad = Mad::before(&simulator);
    let mut through = config(&simulator).with_recovery(Recovery::OFF);
    through.dext = mad.endpoint.clone().into();
    through.deadlines.call = Duration::from_secs(2);
    through.deadlines.start = Duration::from_secs(2);
    let host = Host::new(through);
    let stage = Stage::new(&neighbour, ours);
    let mut attack = |name: &str, attack: &dyn Fn() -> Result<String, String>| {
        ledger.attack(&stage, &format!("dext {name}"), || {
            let outcome = attack();
            mad.answers(|_, _, _| true);
            mad.storm.store(false, Ordering::Relaxed);
            // As soon as it is itself again it is used as if nothing had been.
            let mended = eventually(|| try_it(&host, Duration::from_millis(1)) == Ok(true));
            if mended { outcome } else { Err("nothing can be attached afterwards".to_owned()) }
        });
    };
    attack("fails by every selector and code", &|| {
        each_selector(&mad, &host, CODES.len(), |way, reply| {
            *reply = Reply::Return { code: CODES[way], outputs: vec![u64::MAX; way] };
        })
    });
    attack("answers with numbers that cannot be", &|| {
        each_selector(&mad, &host, 5, |way, reply| {
            if let Reply::Return { outputs, .. } = reply {
                match way {
                    0 => outputs.fill(u64::MAX),
                    1 => outputs.fill(0),
                    2 => outputs.clear(),
                    3 => outputs.resize(10_000, 7),
                    _ => outputs.fill(1 << 63),
                }
            }
        })
    });
    for vectors in [0, 65_535, u64::MAX] {
        attack(&format!("has {vectors} vectors"), &|| {
            let of = selector::SETUP_INTERRUPTS;
            once(&mad, &host, outputs(of, move |_, outputs| outputs.fill(vectors)))
        });
    }
    attack("has capabilities that loop", &|| {
        let loops = |inputs: &[u64], outputs: &mut Vec<u64>| {
            // Every capability leads to itself, and so does every extended one.
            let at = inputs.first().copied().unwrap_or_default();
            let value = match at {
                0x34 => 0x40,
                0x40..0x100 => (at & 0xfc) << 8 | 0x11,
                0x100.. => (at & 0xffc) << 20 | 0x1_0003,
                _ => return,
            };
            outputs.fill(value);
        };
        once(&mad, &host, outputs(selector::CONFIG_READ, loops))
    });
    attack("reads as all ones", &|| {
        once(&mad, &host, outputs(selector::CONFIG_READ, |_, outputs| outputs.fill(u64::MAX)))
    });
    attack("hands out other memory than a device's", &|| {
        let mut came = 0;
        for way in 0..10 {
            mad.answers(move |request, reply, beside| {
                if let (Request::Map { .. }, Reply::Return { outputs, .. }) = (request, reply) {
                    let size = outputs.first().copied().unwrap_or_default();
                    instead(way, size, beside, outputs);
                }
                true
            });
            came += u32::from(try_it(&host, Duration::from_millis(1))?);
        }
        Ok(format!("10 ways, {came} attached"))
    });
    attack("signals completions without end", &|| {
        mad.storm.store(true, Ordering::Relaxed);
        once(&mad, &host, |_, _, _| true)
    });
    attack("shows services without end", &|| {
        once(&mad, &host, |_, reply, _| {
            if let Reply::Services(services) = reply {
                let one = services[0].clone();
                let many = (0..2000u64).map(|id| Service { id: u64::MAX - id, ..one.clone() });
                services.splice(0..0, many);
            }
            true
        })
    });
    attack("answers with another type", &|| {
        once(&mad, &host, |request, reply, _| {
            if called(request).is_some() {
                *reply = Reply::Services(Vec::new());
            }
            true
        })
    });
    for (name, at) in [("claim", selector::CLAIM), ("reset", selector::RESET_DEVICE)] {
        attack(&format!("never answers a {name}"), &|| {
            once(&mad, &host, move |request, _, _| {
                called(request).is_none_or(|(called, _)| called != at)
            })
        });
    }
    drop(neighbour);
    real.detach(&function);
    drop((host, mad));
    for function in [ATTACKER, OTHER] {
        simulator.assert_released(function);
    }
}
