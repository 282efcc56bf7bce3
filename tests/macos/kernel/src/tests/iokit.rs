//! IOKit over a simulated dext, by its C functions.

use super::*;
use crate::cf::{self, Value};
use crate::iokit::release;
use crate::iokit::{async_call, connect, notify, registry, returned};
use cordon_ipc::wire::dext::selector;

const PLANE: *const std::ffi::c_char = c"IOService".as_ptr();
const MAP_ANYWHERE: u32 = 1;

/// The dext is one for all tests of the process, which take turns.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    begin();
    TURN.lock().unwrap_or_else(|error| error.into_inner())
}

fn services() -> Vec<Name> {
    let mut iterator = NULL;
    let class = registry::matching(c"IOUserService".as_ptr());
    assert_eq!(registry::matching_services(NULL, class, &raw mut iterator), 0);
    let all = std::iter::from_fn(|| Some(registry::next(iterator)).filter(|name| *name != NULL));
    let all = all.collect();
    assert_eq!(release(iterator), 0);
    all
}

fn open(service: Name) -> Name {
    let mut connect = NULL;
    assert_eq!(connect::open(service, SELF, 0, &raw mut connect), 0);
    connect
}

fn call<const N: usize>(connect: Name, selector: u32, inputs: &[u64]) -> Result<[u64; N], Code> {
    let (mut outputs, mut count) = ([0; N], u32::try_from(N).unwrap());
    let given = u32::try_from(inputs.len()).unwrap();
    let out = outputs.as_mut_ptr();
    let code = connect::call_scalar(connect, selector, inputs.as_ptr(), given, out, &raw mut count);
    if code == 0 { Ok(outputs) } else { Err(code) }
}

fn property(entry: Name, name: &str) -> Option<String> {
    let key = cf::new(Value::Text(name.to_owned()));
    let found = registry::create_property(entry, key, std::ptr::null(), 0);
    cf::release(key);
    (!found.is_null()).then(|| {
        // SAFETY: just created.
        let text = match unsafe { &cf::get(found).value } {
            Value::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        cf::release(found);
        text
    })
}

fn parent(entry: Name) -> Result<Name, Code> {
    let mut above = NULL;
    match registry::parent_entry(entry, PLANE, &raw mut above) {
        0 => Ok(above),
        code => Err(code),
    }
}

#[test]
fn the_registry_shows_services_beneath_devices_bridges_and_their_root_bridge() {
    let _turn = turn();
    let _dext = Dext::start();
    let all = services();
    let [service] = all[..] else { panic!("{all:?}") };
    // Whatever references other tests left.
    while release(service) == 0 {}
    let service = services()[0];
    assert_eq!(property(service, "IOUserClass").as_deref(), Some("VFIOUserPCIDriver"));
    assert_eq!(property(service, "IONothing"), None);
    let (mut bridges, mut at, mut above_bridge) = (0, service, None);
    loop {
        let was_bridge = registry::conforms_to(at, c"IOPCIBridge".as_ptr()) != 0;
        bridges += u32::from(was_bridge);
        match parent(at) {
            Ok(next) => at = next,
            Err(code) => {
                assert_eq!(code, returned::NO_DEVICE);
                break;
            }
        }
        if was_bridge {
            above_bridge = Some(at);
        }
    }
    assert_eq!(bridges, 2);
    let (mut name, mut location) = ([0u8; 128], [0u8; 128]);
    let above = above_bridge.unwrap();
    assert_eq!(registry::name_in_plane(above, PLANE, name.as_mut_ptr()), 0);
    assert_eq!(registry::location_in_plane(above, PLANE, location.as_mut_ptr()), 0);
    assert!(name.starts_with(b"apciec0\0") && location.starts_with(b"30000000\0"));
    // One entry has one name however often it is looked up, with a reference for each.
    let mut id = 0;
    assert_eq!(registry::entry_id(service, &raw mut id), 0);
    assert_eq!(registry::matching_service(NULL, registry::id_matching(id)), service);
    assert_eq!((release(service), release(service)), (0, 0));
    assert_eq!(release(service), kern::INVALID_NAME);
    assert_eq!(registry::matching_service(NULL, registry::id_matching(id ^ 0x7777)), NULL);
}

#[test]
fn only_the_own_task_opens_and_what_is_open_is_shown_with_who_opened_it() {
    let _turn = turn();
    let _dext = Dext::start();
    let service = services()[0];
    let mut connect = NULL;
    let code = connect::open(service, NULL, 0, &raw mut connect);
    assert_eq!(code, returned::BAD_ARGUMENT);
    assert_eq!(connect::open(service, SELF, 5, &raw mut connect), returned::UNSUPPORTED);
    let above = parent(service).unwrap();
    assert_eq!(connect::open(above, SELF, 0, &raw mut connect), returned::UNSUPPORTED);
    let connect = open(service);
    let again = services()[0];
    let mut children = NULL;
    assert_eq!(registry::child_iterator(again, PLANE, &raw mut children), 0);
    let creator = property(registry::next(children), "IOUserClientCreator").unwrap();
    assert!(creator.starts_with(&format!("pid {}, ", std::process::id())), "{creator}");
    assert_eq!(connect::close(connect), 0);
    assert_eq!(call::<6>(connect, selector::GET_IDENTITY, &[]), Err(returned::PORT_DEAD));
    assert_eq!(connect::close(connect), returned::PORT_DEAD);
}

#[test]
fn methods_take_and_give_scalars_and_the_codes_are_the_dexts() {
    let _turn = turn();
    let _dext = Dext::start();
    let connect = open(services()[0]);
    assert_eq!(call::<6>(connect, selector::GET_IDENTITY, &[]).unwrap()[..3], [1, 0, 0]);
    assert_eq!(call::<5>(connect, selector::GET_IDENTITY, &[]), Err(returned::BAD_ARGUMENT));
    assert_eq!(call::<0>(connect, 99, &[]), Err(returned::UNSUPPORTED));
    assert_eq!(call::<0>(connect, 0, &[0; 17]), Err(returned::BAD_ARGUMENT));
    // The last right ends a connection as closing does.
    assert_eq!(crate::ports::deallocate(SELF, connect), 0);
    assert_eq!(call::<6>(connect, selector::GET_IDENTITY, &[]), Err(returned::PORT_DEAD));
}

/// IOUserClient.cpp: every failure of a map is BadArgument; memory of this task is what an address means.
#[test]
fn memory_is_mapped_on_pages_and_goes_with_the_connection() {
    let _turn = turn();
    let _dext = Dext::start();
    let connect = open(services()[0]);
    let (mut address, mut size) = (0, 0);
    let mut map = |kind| {
        let code =
            connect::map_memory(connect, kind, SELF, &raw mut address, &raw mut size, MAP_ANYWHERE);
        if code == 0 { Ok((address, size)) } else { Err(code) }
    };
    assert_eq!(map(7), Err(returned::BAD_ARGUMENT));
    assert_eq!(map(99), Err(returned::BAD_ARGUMENT));
    assert_eq!(call::<0>(connect, selector::CLAIM, &[]), Ok([]));
    let (bar, length) = map(1).unwrap();
    assert!(bar.is_multiple_of(PAGE) && length > 0);
    // A part of a BAR can be handed on as a memory entry.
    let (mut entry, mut wanted) = (NULL, PAGE);
    let share = 3 | 0x40_0000;
    let made =
        crate::vm::make_memory_entry(SELF, &raw mut wanted, bar, share, &raw mut entry, NULL);
    assert_eq!((made, wanted), (0, PAGE));
    let again = vm::bytes_of(entry, PAGE);
    // SAFETY: mapped just now.
    let first = unsafe { (bar as *mut u8).add(0x200) };
    // SAFETY: as above; the probe's scratch registers.
    unsafe { first.write_volatile(0x5a) };
    assert_eq!(again[0x200], 0x5a);
    assert_eq!(connect::unmap_memory(connect, 2, SELF, bar), returned::BAD_ARGUMENT);
    assert_eq!(connect::unmap_memory(connect, 1, SELF, bar), 0);
    assert_eq!(connect::unmap_memory(connect, 1, SELF, bar), returned::BAD_ARGUMENT);
    let (bar, length) = map(1).unwrap();
    assert!(crate::space::is_mapped(bar, bar + length));
    // DMA names addresses of this task, also of memory that had no file before.
    let ram = crate::vm::anonymous(2 * PAGE).unwrap();
    // SAFETY: mapped just now.
    unsafe { (ram as *mut u64).add(1).write_volatile(0x1122_3344) };
    let key = 0x1_0000;
    let registered = call::<3>(connect, selector::REGISTER_DMA_REGION, &[key, ram, 2 * PAGE]);
    assert_eq!(registered.unwrap()[0], 1);
    assert_eq!(call::<1>(connect, selector::PROBE_DMA_REGION, &[key, 8]), Ok([0x1122_3344]));
    let hole = call::<3>(connect, selector::REGISTER_DMA_REGION, &[key * 2, 0x4000, PAGE]);
    assert_eq!(hole, Err(returned::BAD_ARGUMENT));
    assert_eq!(connect::close(connect), 0);
    assert!(!crate::space::is_mapped(bar, bar + length));
}

fn arm(connect: Name, port: Name, reference: &mut [u64; 8]) -> Code {
    let mut none = 0;
    async_call::call(
        connect,
        selector::WAIT_INTERRUPT,
        port,
        reference.as_mut_ptr(),
        3,
        std::ptr::null(),
        0,
        std::ptr::null_mut(),
        &raw mut none,
    )
}

fn fire() {
    use std::io::Write as _;
    let path = dext_socket().with_extension("control");
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream.write_all(b"{\"raise\":{\"address\":\"01:00.0\",\"vector\":0}}\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("done"), "{line}");
}

/// IOUserClient.cpp _sendAsyncResult64: the message as a client without IOKit's library receives it.
#[test]
fn a_completion_is_one_message_in_the_layout_of_the_kernels() {
    let _turn = turn();
    let _dext = Dext::start();
    let connect = open(services()[0]);
    let port = receive_right();
    let mut reference = [u64::MAX, 0xaaaa_bbbb_cccc, 0xdddd, 3, 4, 5, 6, 7];
    assert_eq!(arm(connect, port, &mut reference), 0xe000_02d8_u32.cast_signed());
    call::<0>(connect, selector::CLAIM, &[]).unwrap();
    call::<1>(connect, selector::SETUP_INTERRUPTS, &[]).unwrap();
    assert_eq!(arm(connect, port, &mut reference), 0);
    assert_eq!(receive(port, 50).0, msg::RCV_TIMED_OUT);
    fire();
    let (code, words) = receive(port, 5000);
    // Bits, size, remote, local, voucher, id; size and type; references; result; trailer.
    assert_eq!((code, words[..6].to_vec()), (0, vec![how::MOVE_SEND << 8, 100, 0, port, 0, 53]));
    assert_eq!((words[6], words[7] & 0xfff), (4, 150));
    assert_eq!(words[10..14], [0xbbbb_cccc, 0xaaaa, 0xdddd, 0]);
    assert_eq!(words[14..24], [0; 10], "what was not given");
    assert_eq!(words[24..27], [0, 0, 8]);
    // One completion for each arm.
    fire();
    assert_eq!(receive(port, 50).0, msg::RCV_TIMED_OUT);
    // A wake port must be one that this task receives from.
    assert_ne!(arm(connect, NULL, &mut reference), 0);
    assert_eq!(connect::close(connect), 0);
}

extern "C" fn completed(context: *mut std::ffi::c_void, result: Code) {
    // SAFETY: the test's own channel.
    unsafe { &*context.cast::<std::sync::mpsc::Sender<i64>>() }.send(result.into()).unwrap();
}

extern "C" fn interested(
    context: *mut std::ffi::c_void,
    _service: Name,
    message: u32,
    _argument: *mut std::ffi::c_void,
) {
    // SAFETY: as above.
    unsafe { &*context.cast::<std::sync::mpsc::Sender<i64>>() }.send(message.into()).unwrap();
}

extern "C" fn nothing(_: *mut std::ffi::c_void) {}

/// IOKitLib.c: callbacks on the queue; the death of the dext ends the service for whoever asked, and every call is a
/// code.
#[test]
fn callbacks_come_on_the_queue_and_the_dexts_death_is_told() {
    let _turn = turn();
    let mut dext = Dext::start();
    let service = services()[0];
    let connect = open(service);
    call::<0>(connect, selector::CLAIM, &[]).unwrap();
    call::<1>(connect, selector::SETUP_INTERRUPTS, &[]).unwrap();
    let queue = crate::dispatch::queue::create(std::ptr::null(), std::ptr::null());
    let port = notify::create(NULL);
    notify::set_queue(port, queue);
    let (sender, told) = std::sync::mpsc::channel::<i64>();
    let sender = Box::new(sender);
    let context = &raw const *sender as usize;
    let callback: extern "C" fn(_, _) = completed;
    let mut reference = [0, callback as usize as u64, context as u64, 0, 0, 0, 0, 0];
    assert_eq!(arm(connect, notify::mach_port(port), &mut reference), 0);
    let callback: extern "C" fn(_, _, _, _) = interested;
    let mut notification = NULL;
    let general = c"IOGeneralInterest".as_ptr();
    let added = notify::add_interest(
        port,
        service,
        general,
        callback as usize,
        context,
        &raw mut notification,
    );
    assert_eq!(added, 0);
    let soon = std::time::Duration::from_secs(5);
    fire();
    assert_eq!(told.recv_timeout(soon), Ok(0));
    dext.kill();
    assert_eq!(told.recv_timeout(soon), Ok(0xe000_0010));
    assert_eq!(call::<6>(connect, selector::GET_IDENTITY, &[]), Err(returned::OFFLINE));
    assert_eq!(release(notification), 0);
    notify::destroy(port);
    // After this no callback runs: the context may go.
    crate::dispatch::queue::sync(queue, std::ptr::null_mut(), nothing);
    drop(sender);
    crate::dispatch::release(queue.cast());
    assert_eq!(connect::close(connect), 0);
    assert!(services().is_empty());
}
