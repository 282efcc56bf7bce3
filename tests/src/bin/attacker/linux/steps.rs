//! Ends, silence and lies at each step from the start to being ready.

use std::time::Duration;

use device_proc::{backends, connection, function, start};
use ipc::wire::handshake::{Hello, Role};
use ipc::{Deadline, MemoryPort, Tube};

use super::Started;

/// Exits with a status that only an attacker has.
pub(crate) fn leave() -> ! {
    std::process::exit(57)
}

/// Says and does nothing until it is killed, or whoever started it is gone.
pub(crate) fn silent() -> ! {
    loop {
        let _ = ipc::poll::wait::<()>(&[], None);
    }
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

fn role(started: &Started) -> Role {
    match started {
        Started::Function { .. } => Role::Function,
        Started::Connection { .. } => Role::Connection,
    }
}

/// The tube, after the handshake.
pub(crate) fn greeted(started: &Started) -> Tube {
    start::greet(start::inherited_tube(started.common()).unwrap(), role(started)).unwrap()
}

/// Confines itself as the role does; says that it is ready if `tells`. What it holds is held for good.
pub(crate) fn confined(started: &Started, tells: bool) -> Tube {
    let mut tube = greeted(started);
    let backend = backends::open(&started.common().dext).unwrap();
    let confinement = started.common().confinement();
    match started {
        Started::Function { address, serving, .. } => {
            let prepared =
                function::prepare(&*backend, *address, serving.clone(), None, confinement, &tube);
            let (state, ready) = prepared.unwrap();
            std::mem::forget(state);
            if tells {
                start::announce(&mut tube, Ok(((), ready))).unwrap();
            }
        }
        Started::Connection { address, windows, .. } => {
            let port = MemoryPort::inherited();
            let prepared =
                connection::prepare(&*backend, *address, *windows, port, confinement, &tube);
            let (state, ready) = prepared.unwrap();
            std::mem::forget(state);
            if tells {
                start::announce(&mut tube, Ok(((), ready))).unwrap();
            }
        }
    }
    tube
}

/// Carries `name` out, which does not come back; `false` when it is no step.
pub(crate) fn run(name: &str, started: &Started) -> bool {
    match name {
        "exits-before-its-greeting" => leave(),
        "exits-after-its-greeting" => {
            greeted(started);
            leave()
        }
        "exits-once-confined" => {
            confined(started, false);
            leave()
        }
        "exits-once-ready" => {
            confined(started, true);
            leave()
        }
        "exits-at-its-first-request" => {
            let mut tube = confined(started, true);
            let _ = tube.receive_frame(soon());
            leave()
        }
        "is-silent-from-the-start" => silent(),
        "is-silent-once-confined" => {
            let _tube = confined(started, false);
            silent()
        }
        "is-silent-once-ready" => {
            let _tube = confined(started, true);
            silent()
        }
        "greets-twice" => {
            let mut tube = greeted(started);
            tube.send(0, &Hello::ours(role(started)), &[], soon()).unwrap();
            silent()
        }
        "greets-as-the-other-role" => {
            let mut tube = start::inherited_tube(started.common()).unwrap();
            let other = match role(started) {
                Role::Function => Role::Connection,
                _ => Role::Function,
            };
            tube.introduce(other, soon()).unwrap();
            silent()
        }
        _ => false,
    }
}
