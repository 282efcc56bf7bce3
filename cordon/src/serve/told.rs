//! What happens to the server of a function, as an event.

use cordon_cli::event::{Event, LimitName, Limited, Part};
use cordon_vfio_user as vfio_user;
use cordon_vmm::text::printable;
use ipc::event::Signaller;

use super::Watched;
use super::sink::Sink;

/// A budget of clients, as events name it.
fn limit(kind: vfio_user::BudgetKind) -> Option<LimitName> {
    Some(match kind {
        vfio_user::BudgetKind::Files => LimitName::MemoryFiles,
        vfio_user::BudgetKind::Events => LimitName::Events,
        vfio_user::BudgetKind::Regions => LimitName::Regions,
        _ => return None,
    })
}

/// Tells what happened to a server of a function, and remembers what its client sees.
pub(super) fn report(
    watched: &Watched,
    part: Part,
    sink: &Sink,
    failed: &Signaller,
    event: vfio_user::Event,
) {
    let device = watched.function.address();
    let is_function = part == Part::Function;
    let event = match event {
        vfio_user::Event::Attached => {
            if is_function {
                watched.attached();
            }
            Event::Attach { device, part }
        }
        vfio_user::Event::TakenOver => {
            watched.attached();
            Event::ClientAdopted { device }
        }
        vfio_user::Event::Lost(why) => Event::ClientLost { device, why: printable(&why) },
        vfio_user::Event::Detached(why) => {
            if is_function {
                watched.detached();
            }
            Event::Detach { device, part, why: printable(&why) }
        }
        vfio_user::Event::Refused(why) => Event::Refused { device, part, why: printable(&why) },
        vfio_user::Event::AtBudget(at) => {
            let Some(limit) = limit(at.kind) else { return };
            let most = u64::try_from(at.most).unwrap_or(u64::MAX);
            let (of, part, most) = (Limited::Client, Some(part), Some(most));
            Event::Limit { device, of, part, limit, most, deaths: None, milliseconds: None }
        }
        vfio_user::Event::Busy => Event::Busy { device, part },
        vfio_user::Event::Delayed(why) => Event::Delayed { device, part, why: printable(&why) },
        vfio_user::Event::Withheld(why) => Event::Withheld { device, part, why: printable(&why) },
        vfio_user::Event::Available => Event::Available { device, part },
        vfio_user::Event::Finished => {
            // That the client is gone was told.
            if is_function {
                watched.finished();
                failed.signal();
            }
            return;
        }
        vfio_user::Event::Failed(why) => {
            if is_function {
                watched.failed();
            }
            Event::Failed { device, part, why: printable(&why) }
        }
    };
    watched.count(part, event.name());
    let is_failure = matches!(event, Event::Failed { .. });
    sink.tell(&event);
    if is_failure {
        failed.signal();
    }
}
