//! What a client wrote to config space that does not go on: put back, however often a server is killed before.

use ipc::wire::function::CONFIG_SPACE;

use super::*;
use crate::server::{Clients, Event as Told, Keeping, Server};

const COMMAND: u16 = 1;
const SESSION: &str = "cordon.client.0000-01-00-0.session";

/// What is known of a client that wrote to COMMAND.
fn record() -> Record {
    let mut record = Record::default();
    record.handover.found = vec![0; CONFIG_SPACE];
    record.handover.written = vec![COMMAND];
    record
}

/// A server of a device in which the client's COMMAND is, until it has told this.
fn serve(device: &Arc<Fake>, store: &Arc<Store>, baseline: Baseline, told: &Told) {
    let (sender, heard) = std::sync::mpsc::channel();
    let clients = Clients::One(None, "none".into());
    let keeping =
        Keeping { store: Some(Arc::clone(store)), adopted: None, baseline: Some(baseline) };
    let container = Arc::new(Container::new(DmaMode::Direct));
    let device: Arc<Fake> = Arc::clone(device);
    let log = move |event| drop(sender.send(event));
    let server = Server::start_kept(clients, keeping, device, container, Options::default(), log);
    let heard = heard.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(std::mem::discriminant(&heard), std::mem::discriminant(told), "{heard:?}");
    // A kill: nobody stops it in order.
    std::mem::forget(server.unwrap());
}

fn device_with_command() -> Arc<Fake> {
    let device = device();
    device.set_config(4, &[6, 0]);
    Arc::new(device)
}

/// What the next server finds of a client of which nothing else is kept.
fn baseline(store: &Store) -> Baseline {
    let unusable = store.unusable_clients();
    assert!(unusable.len() == 1 && store.clients().is_empty(), "{unusable:?}");
    Baseline::of(store.take_session(address()).unwrap()).unwrap()
}

#[test]
fn what_a_torn_client_wrote_is_put_back_however_many_servers_are_killed_before() {
    let (mut keeper, store) = Keeper::new();
    let (near, _far) = UnixStream::pair().unwrap();
    let mut kept = Kept::new(store.client(address()).unwrap(), &near, &record()).unwrap();
    kept.journal.set(Phase::Torn);
    let store = Arc::new(keeper.restart());
    std::mem::forget(kept);
    let container = Container::new(DmaMode::Direct);
    let left = store.take_client(address()).unwrap();
    let not = Adopted::of(left, &container, &[], Options::default()).unwrap_err();
    assert!(matches!(not.why, KeptError::Torn));
    assert_eq!(keeper.names(), [SESSION]);
    // The device is not there to be reset, and its server is killed meanwhile; and so is the next one.
    let mut next = (store, not.baseline.unwrap());
    for _ in 0..2 {
        let (store, baseline) = next;
        let device = device_with_command();
        device.goes_away();
        serve(&device, &store, baseline, &Told::Withheld(String::new()));
        let store = Arc::new(keeper.start().1);
        let baseline = self::baseline(&store);
        next = (store, baseline);
    }
    let (store, device) = (Arc::new(keeper.restart()), device_with_command());
    serve(&device, &store, baseline(&store), &Told::Finished);
    assert!(device.calls().contains(&Call::ConfigWrite(4, 2, 0)), "it is not as it was");
    assert!(keeper.names().is_empty(), "{:?}", keeper.names());
}

#[test]
fn what_a_client_writes_that_is_not_kept_any_more_is_known_to_the_next_server() {
    let (mut keeper, store) = Keeper::new();
    let (near, _far) = UnixStream::pair().unwrap();
    let mut record = record();
    record.handover.written.clear();
    let mut kept = Kept::new(store.client(address()).unwrap(), &near, &record).unwrap();
    // More events than are kept of one client.
    for vector in 0..100 {
        let event = Event::new().unwrap().signaller().unwrap();
        kept.change_events(&record, &[((2, vector), Some(event.as_fd()))]);
        keeper.hear();
    }
    assert_eq!(keeper.names(), [SESSION]);
    record.handover.written = vec![COMMAND, 7];
    kept.write(&record);
    // And what is too long to be written down in whole.
    record.told = vec![0; crate::limits::MAX_SESSION];
    record.handover.written.push(9);
    kept.write(&record);
    let store = keeper.restart();
    assert!(store.unusable_clients()[0].1.to_string().contains("was not kept any more"));
    assert_eq!(baseline(&store).record, record.handover);
}
