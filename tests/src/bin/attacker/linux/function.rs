//! Attacks of a function process that serves meanwhile.

use std::time::{Duration, Instant};

use device_proc::{backends, function, start};
use ipc::wire::common::BarInfo;
use ipc::wire::connection::DmaEntry;
use ipc::wire::dma;
use ipc::wire::function::{Ready, Request};
use ipc::{Deadline, Handles, lane};

use super::peer::{Outcome, Peer};
use super::steps::{confined, greeted, soon};
use super::{Started, exhaust};

/// Longer than any call is waited for.
const LATE: Duration = Duration::from_secs(3);

/// Carries `name` out, which does not come back; `false` when it is no attack of a function process.
pub(crate) fn run(name: &str, started: &Started) -> bool {
    match name {
        "serves" => ready(started).serve(|_| {}),
        "floods-standard-error-while-it-serves" => {
            ready(started).serve(|_| exhaust::standard_error());
        }
        "signals-every-event-without-end" => ready(started).serve(signal),
        "spins-while-it-serves" => ready(started).serve(|_| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
        }),
        "rewrites-the-lane" => unserved(started).serve(rewrite()),
        "wakes-the-callers-of-the-lane-without-an-answer" => unserved(started).serve(|peer| {
            if let Some((_, wakes)) = &peer.lane {
                (0..200).for_each(|_| wakes.iter().for_each(ipc::event::Signaller::signal));
            }
        }),
        "asks-for-memory-and-keys-of-others" => ready(started).serve(ask_for_others()),
        "answers-twice" => odd(started, |peer, id, request| {
            for _ in 0..2 {
                peer.answer(id, request, Handles::default());
            }
        }),
        "answers-another-number" => odd(started, |peer, id, request| {
            peer.answer(id.wrapping_add(1000), request, Handles::default());
        }),
        "answers-late" => odd(started, |peer, id, request| {
            let _ = ipc::poll::wait::<()>(&[], Some(Deadline::after(LATE)));
            peer.answer(id, request, Handles::default());
        }),
        "answers-with-more-than-was-asked-for" => odd(started, |peer, id, _| {
            let long = vec![0x55u8; 100_000];
            peer.tube.send(id, &Outcome::Ok(long), &[], soon()).unwrap();
        }),
        "says-that-it-has-what-no-device-has" => boast(started),
        _ => false,
    }
}

fn ready(started: &Started) -> Peer {
    Peer::new(confined(started, true))
}

/// One that takes its lane and serves nothing in it.
fn unserved(started: &Started) -> Peer {
    Peer { serves_lane: false, ..ready(started) }
}

/// Answers oddly what comes by the tube alone, and the lane as it should.
fn odd(started: &Started, answer: fn(&mut Peer, u32, &Request)) -> ! {
    Peer { odd: Some(answer), ..ready(started) }.serve(|_| {})
}

fn signal(peer: &mut Peer) {
    for _ in 0..100 {
        peer.signallers.iter().for_each(ipc::event::Signaller::signal);
    }
}

/// Every word of the lane in turn, again and again: numbers that may be waited for, and any.
fn rewrite() -> impl FnMut(&mut Peer) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |peer| {
        let Some((window, _)) = &peer.lane else { return };
        for _ in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = if state.is_multiple_of(8) { state } else { state >> 61 };
            window.store_u64((state >> 8) % (lane::BYTES / 8) * 8, value).unwrap();
        }
    }
}

/// Asks the connection process for what is not this guest's, and has a read answer how much of it was given.
fn ask_for_others() -> impl FnMut(&mut Peer) {
    let mut number = 0u32;
    move |peer| {
        let Some(tube) = &mut peer.companion else { return };
        number += 1;
        // What the guest has is from 0x8000_0000 to 4 MiB behind.
        let ranges = [
            (0, 0x4000),
            (0x7fff_c000, 0x4000),
            (0x7fff_c000, 0x8000),
            (0x8040_0000, 0x4000),
            (0x803f_c000, 0x8000),
            (0x4000_0000, 0x4000),
            (0x8000_0000, 0),
            (0x8000_0000, u64::MAX),
            (u64::MAX - 0x3fff, 0x8000),
            (0xffff_ffff_0000_0000, 0x4000),
        ];
        let mut entries: Vec<_> = ranges
            .iter()
            .map(|(address, size)| DmaEntry { key: *address, address: *address, size: *size })
            .collect();
        // As many as a batch may have, and the same again and again.
        if number.is_multiple_of(4) {
            entries = entries.iter().cycle().take(dma::MAX_BATCH).copied().collect();
        }
        let batch = number.into();
        let map = dma::Request::Map { batch, timeout_ms: 500, entries };
        let keys = (0..64).map(|bit| 1u64 << bit).chain([0, 0x8000_0000]).collect();
        let unmap = dma::Request::Unmap { batch, timeout_ms: u32::MAX, keys };
        for request in [map, unmap, dma::Request::Abandon { batch: batch.wrapping_add(1) }] {
            if tube.send(number, &request, &[], soon()).is_err() {
                peer.companion = None;
                return;
            }
            if matches!(request, dma::Request::Abandon { .. }) {
                continue;
            }
            let Ok(reply) = tube.receive::<dma::Reply>(soon()) else {
                peer.companion = None;
                return;
            };
            let outcomes = reply.message.unwrap_or_default();
            let given =
                outcomes.iter().filter(|one| !matches!(one, dma::Outcome::Failed(_))).count();
            // In the upper half what was given; in the lower how often it was asked.
            let before = peer.value & !0xffff_ffff;
            let now = (u64::try_from(given).unwrap() << 32) + u64::from(number);
            peer.value = before + now;
        }
    }
}

/// Says that it is ready with numbers that cannot be.
fn boast(started: &Started) -> ! {
    let Started::Function { address, serving, common } = started else { unreachable!() };
    let mut tube = greeted(started);
    let backend = backends::open(&common.dext).unwrap();
    let confinement = common.confinement();
    let prepared =
        function::prepare(&*backend, *address, serving.clone(), None, confinement, &tube);
    let (state, mut ready): (_, Ready) = prepared.unwrap();
    std::mem::forget(state);
    ready.vectors = u16::MAX;
    ready.max_read_request = Some(u8::MAX);
    ready.known.config = vec![(u16::MAX, u32::MAX); 10_000];
    ready.known.bars = [Some(BarInfo { memory_index: u8::MAX, size: u64::MAX, kind: u8::MAX }); 6];
    if let Some(msix) = &mut ready.msix {
        (msix.vectors, msix.table_bar, msix.pba_bar) = (u16::MAX, u8::MAX, u8::MAX);
        (msix.table_offset, msix.pba_offset) = (u32::MAX, u32::MAX);
    }
    start::announce(&mut tube, Ok(((), ready))).unwrap();
    Peer::new(tube).serve(|_| {})
}
