//! A function process with an open doorbell goes on with everything else.

use super::*;
use ipc::wire::dma::{self, Outcome};
use ipc::wire::function::{AddMemory, Companion, Doorbell, Layout};

/// A function process with a companion, the connection process's end of its tube, and its guest's memory.
fn with_companion(fake: &Fake) -> (Driven, Tube, ipc::Window) {
    let mut function = Driven::function(fake);
    let (ours, theirs) = Tube::pair().unwrap();
    let joined = std::thread::spawn(move || {
        let mut tube = ours;
        tube.handshake(Role::Connection, Role::Function, soon()).unwrap();
        tube
    });
    let call = Companion { layout: Layout::Packed32, max_entries: 4096 };
    function.ask::<fun::Request, _>(&call, &[theirs.as_fd()]).unwrap().0.unwrap();
    let ram = SharedMemory::create("ram", 0x10000).unwrap();
    let call = AddMemory { base: 0x10000, size: 0x10000, offset: 0, writable: true };
    function.ask::<fun::Request, _>(&call, &[ram.as_fd()]).unwrap().0.unwrap();
    let window = ram.map_all(Protection::ReadWrite).unwrap();
    (function, joined.join().unwrap(), window)
}

#[test]
fn c5_6_an_open_doorbell_holds_up_neither_interrupts_nor_requests() {
    let fake = fake(|_| {});
    let mut connection = Driven::connection(&fake);
    connection.con(&con::Attach { function: 0 }).unwrap();
    let (mut function, mut peer, ram) = with_companion(&fake);
    let event = Event::new().unwrap();
    function.assign(0, &event);
    // Removes one key.
    let words = [2, 1, 0xffff_ffff, 0].map(u32::to_le_bytes).concat();
    let arrays = [0x10100, 0x10800].map(u64::to_le_bytes).concat();
    ram.copy_in(0, &[words, arrays].concat()).unwrap();
    ram.copy_in(0x100, &[0x7000u64, 0x10].map(u64::to_le_bytes).concat()).unwrap();
    let ring = |function: &mut Driven, id, batch, timeout_ms| {
        let call = Doorbell { page: Some(0x10000), batch, timeout_ms };
        function.tube.send(id, &Tagged::<fun::Request, _>::new(&call), &[], soon()).unwrap();
    };
    ring(&mut function, 1000, 1, 60_000);
    let asked = peer.receive::<dma::Request>(soon()).unwrap();
    let dma::Request::Unmap { batch: 1, ref keys, .. } = asked.message else { panic!("{asked:?}") };
    assert_eq!(keys, &[0x7000]);
    // It is open: nobody has answered.
    for _ in 0..3 {
        fake.fire(address(), [0]);
        assert!(event.wait(soon()).unwrap());
        event.clear().unwrap();
        function.fun(&Ping).unwrap();
        assert_eq!(function.fun(&Access::read(Space::Config, 0, 2)), Ok(0xc0d0));
    }
    // A second one waits for it.
    ring(&mut function, 1001, 2, 60_000);
    function.fun(&Ping).unwrap();
    let early = peer.receive::<dma::Request>(Deadline::now());
    assert!(matches!(early, Err(TubeError::TimedOut)), "{early:?}");
    for (id, asked_as) in [(1000, Some(asked.id)), (1001, None)] {
        let asked_as = asked_as.unwrap_or_else(|| peer.receive::<dma::Request>(soon()).unwrap().id);
        let reply = dma::Reply::Ok(vec![Outcome::Unmapped]);
        peer.send(asked_as, &reply, &[], soon()).unwrap();
        let rung = function.tube.receive::<Result<u32, Failure>>(soon()).unwrap();
        assert_eq!((rung.id, rung.message), (id, Ok(0)));
    }
    // One that is never answered is given up in its own time.
    ring(&mut function, 1002, 3, 50);
    let rung = function.tube.receive::<Result<u32, Failure>>(soon()).unwrap();
    assert_eq!((rung.id, rung.message), (1002, Ok(1)));
    assert!(matches!(
        peer.receive::<dma::Request>(soon()).unwrap().message,
        dma::Request::Unmap { batch: 3, .. }
    ));
    let abandoned = peer.receive::<dma::Request>(soon()).unwrap().message;
    assert_eq!(abandoned, dma::Request::Abandon { batch: 3 });
    // And so is one whose connection process is gone.
    drop(peer);
    function.fun(&Ping).unwrap();
    ring(&mut function, 1003, 4, 60_000);
    let rung = function.tube.receive::<Result<u32, Failure>>(soon()).unwrap();
    assert_eq!(
        (rung.id, rung.message.map_err(|failure| failure.kind)),
        (1003, Err(FailureKind::Io))
    );
    function.fun(&Shutdown).unwrap();
    assert_eq!(function.ended().0, Ended::Status(0));
}
