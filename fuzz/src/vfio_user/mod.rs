//! A vfio-user session (`cordon_vfio_user`) against a client that sends any commands, right and wrong, one
//! after the other. A model that is made of the protocol alone knows the client's maps, and where
//! regions end.
//!
//! Asserted: each command is answered as the protocol says, or with an errno that the model has a reason
//! for; the container has the model's memory and nothing else; what reaches the device lies in its
//! regions and is permitted; afterwards nothing of the client is left, no descriptor either, and config
//! space is as it was found.

mod client;
mod device;
mod model;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use cordon_ipc::{Event, SharedMemory};
use cordon_vfio_user::fuzzing::{Handover, Session};
use cordon_vfio_user::protocol::{Header, command, flag};
use cordon_vfio_user::{Budget, Options};
use cordon_vmm::{Container, DmaMode};

use self::client::Command;
use self::device::Device;
use self::model::{EINVAL, Model, Verdict};
use crate::lists;

/// What a client does.
#[derive(Arbitrary, Debug)]
pub struct Input {
    /// It begins as it should not.
    #[arbitrary(with = lists::rarely)]
    out_of_order: Option<()>,
    #[arbitrary(with = lists::rest)]
    steps: Vec<Step>,
}

/// One message, and what is unusual about it.
#[derive(Arbitrary, Debug)]
struct Step {
    command: Command,
    /// No answer is wanted.
    #[arbitrary(with = lists::rarely)]
    silent: Option<()>,
    /// Flags of the header, if they are others.
    #[arbitrary(with = lists::rarely)]
    flags: Option<u8>,
    /// The size that the header says, if it is another that is less than a header's.
    #[arbitrary(with = lists::rarely)]
    size: Option<u8>,
    /// The device goes away, or comes back, before it.
    #[arbitrary(with = lists::rarely)]
    moves: Option<()>,
}

/// Bytes of the memory file that clients map.
const MEMORY: u64 = 64 << 10;
/// Most regions of a client here.
const MOST_REGIONS: usize = 6;

/// Descriptors that a client may send.
struct Descriptors {
    memory: SharedMemory,
    event: Event,
    other: OwnedFd,
}

/// Does it.
pub fn run(input: &Input) {
    let descriptors = Descriptors {
        memory: SharedMemory::create("ram", MEMORY).unwrap(),
        event: Event::new().unwrap(),
        other: std::fs::File::open("/dev/null").unwrap().into(),
    };
    let (device, container) = (Device::new(), Container::new(DmaMode::Direct));
    let mut handover = Handover::default();
    handover.clean(&device).unwrap();
    let (found, before) = (device.config(), open());
    serve(input, &descriptors, &device, &container, &mut handover);
    assert_eq!(container.usage(), (0, 0), "memory of a client that is gone");
    device.comes_back();
    handover.clean(&device).unwrap();
    assert_eq!(device.config(), found, "what a client wrote is still there");
    device.release_events();
    assert_eq!(open(), before, "descriptors of a client that is gone");
}

/// How many descriptors this process has.
fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn serve(
    input: &Input,
    descriptors: &Descriptors,
    device: &Device,
    container: &Container,
    handover: &mut Handover,
) {
    let (near, far) = UnixStream::pair().unwrap();
    let stopped = Event::new().unwrap();
    let budget = Budget { files: 4, events: 6, regions: MOST_REGIONS, reports: 4 };
    let options = Options { sealed_memory: true, budget };
    let mut session = Session::new(near, &stopped, device, container, handover, options);
    let mut model = Model::default();
    let version = Command::Version { major: 0, minor: 1, json: 0 };
    let first = Step { command: version, silent: None, flags: None, size: None, moves: None };
    let first = Some(&first).filter(|_| input.out_of_order.is_none());
    for (id, step) in (1..).zip(first.into_iter().chain(&input.steps)) {
        if step.moves.is_some() {
            device.moves();
        }
        if !exchange(id, step, &mut model, descriptors, device, &far, &mut session) {
            break;
        }
        assert_eq!(container.usage(), model.backed(), "{model:?}");
    }
    session.end();
}

/// One message and its answer; `false` when the client is served no more.
fn exchange(
    id: u16,
    step: &Step,
    model: &mut Model,
    descriptors: &Descriptors,
    device: &Device,
    far: &UnixStream,
    session: &mut Session<'_>,
) -> bool {
    let (number, body, sent) = step.command.message(descriptors, model);
    // Of VERSION it is not known before it is answered whether it was taken.
    let silent = step.silent.is_some() && number != command::VERSION;
    let flags = u32::from(step.flags.unwrap_or(0)) & !flag::NO_REPLY;
    let flags = flags | if silent { flag::NO_REPLY } else { 0 };
    let right = 16 + body.len() as u32;
    let size = step.size.map_or(right, |size| u32::from(size) % 16);
    client::send(far, &Header { id, command: number, size, flags, error: 0 }, &body, &sent);
    let served = session.serve_one();
    let reply = client::receive(far);
    if size != right {
        assert!(served.is_err(), "a size that cannot be");
        assert_eq!(reply.map(|reply| reply.header.error), Some(EINVAL));
        return false;
    }
    served.unwrap_or_else(|error| panic!("{error}: {step:?}"));
    let verdict = model.judge(flags, number, &body, &sent, device.is_there());
    let done = match (&reply, silent) {
        (None, true) => verdict.is_right(),
        (Some(reply), false) => {
            let header = reply.header;
            assert_eq!((header.id, header.command), (id, number));
            assert!(header.flags == flag::REPLY || header.flags == flag::REPLY | flag::ERROR);
            let is_error = header.flags & flag::ERROR != 0;
            assert_eq!(is_error, header.error != 0);
            assert!(verdict.allows(header.error), "{} for {step:?}: {verdict:?}", header.error);
            if !is_error {
                model.check(number, &body, &reply.body, device);
            }
            !is_error
        }
        (reply, _) => panic!("{reply:?} for {step:?}"),
    };
    if done && !matches!(verdict, Verdict::Refused(_)) {
        model.carry_out(number, &body, !sent.is_empty());
    }
    true
}
