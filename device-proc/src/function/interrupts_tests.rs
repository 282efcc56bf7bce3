//! P9, rule by rule, against the fake dext.

use super::*;
use dext_client::Client;
use dext_client::fake::Fake;
use ipc::Event;
use ipc::wire::dext::{IoReturn, selector};
use std::os::fd::OwnedFd;

struct Setup {
    fake: Fake,
    client: Client,
    interrupts: Interrupts,
}

fn setup() -> Setup {
    let (fake, mut client) = Fake::client();
    let interrupts = Interrupts::new(&mut client, 32).unwrap();
    Setup { fake, client, interrupts }
}

impl Setup {
    fn change(
        &mut self,
        index: InterruptIndex,
        action: InterruptAction,
        events: &[&Event],
    ) -> Result<(), Failure> {
        use std::os::fd::AsFd as _;
        let handles: Vec<OwnedFd> = events
            .iter()
            .map(|event| event.signaller().unwrap().as_fd().try_clone_to_owned().unwrap())
            .collect();
        self.interrupts.change(&mut self.client, index, &action, handles.into())
    }

    fn assign(&mut self, index: InterruptIndex, start: u16, events: &[&Event]) {
        let present = vec![true; events.len()];
        self.change(index, InterruptAction::Assign { start, present, signal: false }, events)
            .unwrap();
    }

    fn fire(&mut self, vectors: &[u16]) {
        self.fake.pend(vectors);
        self.interrupts.deliver(&mut self.client).unwrap();
    }

    /// The guest has accessed the device, and as long ago as INTx is held off.
    fn unmask(&mut self) {
        self.change(IntxIndex, InterruptAction::Unmask, &[]).unwrap();
        std::thread::sleep(HOLD_OFF);
        self.interrupts.settle(&mut self.client).unwrap();
    }

    fn last_mask(&self) -> Vec<u64> {
        self.fake.enabled_words()
    }
}

fn events<const N: usize>() -> [Event; N] {
    std::array::from_fn(|_| Event::new().unwrap())
}

use InterruptIndex::{Err as ErrIndex, Intx as IntxIndex, Msi, Msix, Req};

#[test]
fn p9_1_notifications_are_drained_delivered_and_armed_again() {
    let mut s = setup();
    let [a, b] = events();
    s.assign(Msix, 3, &[&a, &b]);
    let arms = s.fake.calls_of(selector::WAIT_INTERRUPT).len();
    s.fire(&[3, 4]);
    assert!(a.clear().unwrap() && b.clear().unwrap());
    assert_eq!(s.fake.calls_of(selector::WAIT_INTERRUPT).len(), arms + 1);
    s.fire(&[]);
    assert!(!a.clear().unwrap() && !b.clear().unwrap());
}

#[test]
fn p9_1_arming_goes_on_when_draining_fails() {
    let (fake, mut client) = Fake::client();
    fake.fail_map(6);
    let mut interrupts = Interrupts::new(&mut client, 32).unwrap();
    fake.fail(selector::CHECK_INTERRUPT, IoReturn::NO_MEMORY);
    let arms = fake.calls_of(selector::WAIT_INTERRUPT).len();
    interrupts.deliver(&mut client).unwrap();
    assert_eq!(fake.calls_of(selector::WAIT_INTERRUPT).len(), arms + 1);
}

/// What fires after the pending bits were drained and before the next notification is armed.
#[test]
fn p9_1_what_fires_between_draining_and_arming_is_notified_at_once() {
    let mut s = setup();
    let [a, b] = events();
    s.assign(Msix, 3, &[&a, &b]);
    s.fake.fire_before_arming(&[4]);
    s.fire(&[3]);
    assert!(a.clear().unwrap() && !b.clear().unwrap());
    assert!(s.client.completion().wait(ipc::Deadline::now()).unwrap(), "nobody is told of 4");
    s.interrupts.deliver(&mut s.client).unwrap();
    assert!(!a.clear().unwrap() && b.clear().unwrap());
    assert!(!s.client.completion().clear().unwrap());
}

#[test]
fn p9_1_a_notification_that_could_not_be_armed_is_armed_later_and_nothing_is_lost() {
    let mut s = setup();
    let [a] = events();
    s.assign(Msix, 3, &[&a]);
    s.fake.fail(selector::WAIT_INTERRUPT, IoReturn::NO_MEMORY);
    s.fire(&[3]);
    assert!(a.clear().unwrap());
    for _ in 0..3 {
        let due = s.interrupts.due().expect("it is tried again");
        std::thread::sleep(due.remaining().unwrap_or_default());
        s.interrupts.settle(&mut s.client).unwrap();
    }
    // It fires while nobody would be told.
    s.fake.pend(&[3]);
    assert!(s.client.completion().clear().unwrap());
    s.fake.recover(selector::WAIT_INTERRUPT);
    let arms = s.fake.calls_of(selector::WAIT_INTERRUPT).len();
    std::thread::sleep(s.interrupts.due().unwrap().remaining().unwrap_or_default());
    s.interrupts.settle(&mut s.client).unwrap();
    assert!(a.clear().unwrap(), "what fired meanwhile is delivered");
    assert_eq!(s.fake.calls_of(selector::WAIT_INTERRUPT).len(), arms + 1);
    assert!(s.interrupts.due().is_none(), "it is armed");
}

#[test]
fn p9_1_a_lost_dext_ends_delivery() {
    let mut s = setup();
    s.fake.die();
    assert!(s.interrupts.deliver(&mut s.client).unwrap_err().is_fatal());
}

#[test]
fn p9_2_only_vectors_in_use_are_delivered_and_the_rest_is_dropped() {
    let mut s = setup();
    let [a] = events();
    s.assign(Msix, 1, &[&a]);
    s.fire(&[0, 1, 2, 31, 32, 200]);
    assert!(a.clear().unwrap());
    assert_eq!(s.interrupts.statistics().delivered, 1);
    assert_eq!(s.interrupts.statistics().dropped, 5);
}

#[test]
fn p9_2_any_bit_is_intx_and_nothing_is_delivered_without_a_setup() {
    let mut s = setup();
    s.fire(&[5]);
    assert_eq!(s.interrupts.statistics().dropped, 1);
    let [line] = events();
    s.assign(IntxIndex, 0, &[&line]);
    s.fire(&[17, 200]);
    assert!(line.clear().unwrap());
}

#[test]
fn intx_is_held_back_until_unmasked() {
    let mut s = setup();
    let [line] = events();
    s.assign(IntxIndex, 0, &[&line]);
    s.fire(&[0]);
    assert!(line.clear().unwrap());
    s.fire(&[0]);
    assert!(!line.clear().unwrap());
    s.unmask();
    assert!(line.clear().unwrap());
    s.unmask();
    assert!(!line.clear().unwrap());
}

#[test]
fn intx_that_fires_before_its_signal_is_taken_is_one_interrupt() {
    let mut s = setup();
    let [line] = events();
    s.assign(IntxIndex, 0, &[&line]);
    s.fire(&[0]);
    s.fire(&[0]);
    s.fire(&[0]);
    assert!(line.clear().unwrap());
    // The guest has looked at the device later than all three.
    s.unmask();
    if cfg!(any(target_os = "macos", cordon_portable)) {
        // Of a pipe nobody can tell whether a signal was taken: it may have been after the first one.
        assert!(line.clear().unwrap());
        s.unmask();
    }
    assert!(!line.clear().unwrap());
    // And what comes after it was taken is another one's, however many.
    s.fire(&[0]);
    assert!(line.clear().unwrap());
    s.fire(&[0]);
    s.fire(&[0]);
    s.unmask();
    assert!(line.clear().unwrap());
    s.unmask();
    assert!(!line.clear().unwrap());
}

#[test]
fn intx_that_fires_while_the_guest_masks_it_is_held_back() {
    let mut s = setup();
    let [line] = events();
    s.assign(IntxIndex, 0, &[&line]);
    s.change(IntxIndex, InterruptAction::Mask, &[]).unwrap();
    s.fire(&[0]);
    assert!(!line.clear().unwrap());
    s.unmask();
    assert!(line.clear().unwrap());
}

#[test]
fn intx_is_not_signalled_again_at_once_after_an_unmask() {
    let mut s = setup();
    let [line] = events();
    s.assign(IntxIndex, 0, &[&line]);
    s.fire(&[0]);
    assert!(line.clear().unwrap());
    s.change(IntxIndex, InterruptAction::Unmask, &[]).unwrap();
    // Nothing is due that has not come.
    assert!(s.interrupts.due().is_none());
    let before = std::time::Instant::now();
    s.fire(&[0]);
    let due = s.interrupts.due();
    assert!(due.is_some_and(|due| due.instant() < before + HOLD_OFF));
    s.unmask();
    assert!(line.clear().unwrap());
    assert!(s.interrupts.due().is_none());
}

#[test]
fn intx_whose_cause_is_gone_is_not_signalled_once_the_device_has_shown_one() {
    let mut s = setup();
    let [line] = events();
    s.assign(IntxIndex, 0, &[&line]);
    // It never showed anything: edges are all that is known.
    s.fire(&[0]);
    assert!(line.clear().unwrap());
    s.unmask();
    s.fake.assert_pin(true);
    s.fire(&[0]);
    assert!(line.clear().unwrap());
    // An edge that the guest has seen, since it acknowledged it with the one before.
    s.fire(&[0]);
    s.fake.assert_pin(false);
    s.unmask();
    assert!(!line.clear().unwrap());
    // One that comes late is no different.
    s.fire(&[0]);
    assert!(!line.clear().unwrap());
    // What is left to do is signalled again, also without another edge.
    s.fake.assert_pin(true);
    s.fire(&[0]);
    assert!(line.clear().unwrap());
    s.unmask();
    assert!(line.clear().unwrap());
    s.fake.assert_pin(false);
    s.unmask();
    assert!(!line.clear().unwrap());
    // A device that cannot be asked may assert it.
    s.fake.fail(selector::CONFIG_READ, IoReturn::NO_MEMORY);
    s.fire(&[0]);
    assert!(line.clear().unwrap());
}

#[test]
fn p9_3_a_closed_receiver_is_ignored() {
    let mut s = setup();
    let [a, b] = events();
    s.assign(Msix, 0, &[&a, &b]);
    drop(a);
    s.fire(&[0, 1]);
    assert!(b.clear().unwrap());
}

#[test]
fn p9_4_the_mask_follows_the_setup() {
    let mut s = setup();
    assert_eq!(s.last_mask(), [0, 0, 0, 0]);
    let [a, b, c] = events();
    s.assign(Msix, 0, &[&a]);
    s.assign(Msix, 30, &[&b, &c]);
    assert_eq!(s.last_mask(), [1 | 3 << 30, 0, 0, 0]);
    let take_away = InterruptAction::Assign { start: 30, present: vec![false], signal: false };
    s.change(Msix, take_away, &[]).unwrap();
    assert_eq!(s.last_mask(), [1 | 1 << 31, 0, 0, 0]);
    s.change(Msix, InterruptAction::Disable, &[]).unwrap();
    assert_eq!(s.last_mask(), [0, 0, 0, 0]);
    s.assign(IntxIndex, 0, &[&a]);
    assert_eq!(s.last_mask(), [1, 0, 0, 0]);
}

#[test]
fn p4_counts_bound_what_can_be_assigned() {
    let mut s = setup();
    let [a] = events();
    for (index, start) in [(IntxIndex, 1), (Msi, 32), (Msix, 32), (ErrIndex, 0), (Req, 0)] {
        let action = InterruptAction::Assign { start, present: vec![true], signal: false };
        let refused = s.change(index, action, &[&a]).unwrap_err();
        assert_eq!(refused.kind, FailureKind::InvalidArgument, "{index:?}");
    }
    let wraps = InterruptAction::Trigger { start: u16::MAX, count: u16::MAX };
    assert!(s.change(Msix, wraps, &[]).is_err());
}

#[test]
fn descriptors_must_match_the_vectors_they_are_for() {
    let mut s = setup();
    let [a, b] = events();
    let one = || InterruptAction::Assign { start: 0, present: vec![true], signal: false };
    assert!(s.change(Msix, one(), &[]).is_err());
    assert!(s.change(Msix, one(), &[&a, &b]).is_err());
    assert!(s.change(Msix, InterruptAction::Disable, &[&a]).is_err());
    let holes = InterruptAction::Assign { start: 0, present: vec![false, true], signal: false };
    s.change(Msix, holes, &[&b]).unwrap();
    s.fire(&[0, 1]);
    assert!(b.clear().unwrap());
}

#[test]
fn one_index_at_a_time() {
    let mut s = setup();
    let [a] = events();
    s.assign(Msix, 0, &[&a]);
    let action = InterruptAction::Assign { start: 0, present: vec![true], signal: false };
    assert_eq!(s.change(IntxIndex, action, &[&a]).unwrap_err().kind, FailureKind::Busy);
    s.change(IntxIndex, InterruptAction::Disable, &[]).unwrap();
    s.fire(&[0]);
    assert!(a.clear().unwrap());
}

#[test]
fn a_trigger_signals_as_the_device_would() {
    let mut s = setup();
    let [a, b] = events();
    s.assign(Msi, 0, &[&a, &b]);
    s.change(Msi, InterruptAction::Trigger { start: 1, count: 1 }, &[]).unwrap();
    assert!(!a.clear().unwrap() && b.clear().unwrap());
}

#[test]
fn one_vector_more_than_a_request_has_room_for_is_refused() {
    let mut setup = setup();
    for (count, says) in [(MAX_ASSIGN, None), (MAX_ASSIGN + 1, Some("the limit is 32"))] {
        let present = vec![false; count];
        let action = InterruptAction::Assign { start: 0, present, signal: false };
        let refused = setup.change(InterruptIndex::Msix, action, &[]).err();
        let told = refused.as_ref().map(|failure| failure.message.as_str());
        assert_eq!(told.is_some(), says.is_some(), "{count}: {told:?}");
        assert!(told.is_none_or(|told| told.contains(says.unwrap())), "{told:?}");
    }
}
