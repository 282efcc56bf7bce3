//! The lane of a function process: accesses that come without a message.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipc::lane::{JoinError, Server};
use ipc::wire::faults::Point;
use ipc::wire::function::UseLane;
use ipc::{Handles, Tube};

use super::FunctionProcess;
use crate::hooks::{Hooks, Route};
use crate::start::{self, RoleError};

/// How long the lane is served before there is a look at everything else: so long an interrupt waits at
/// most, and for one access that is under way or one look for another.
const SLICE: Duration = Duration::from_micros(20);

/// A lane, and whether it is in use just now.
pub(super) struct Lane {
    server: Server,
    /// Something came not long ago, so that it may be worth looking for more.
    hot: bool,
}

impl Lane {
    /// Joins the lane that `handles` are of.
    pub(super) fn join(handles: Handles, call: &UseLane) -> Result<Self, JoinError> {
        Ok(Self { server: Server::join(handles, call.looks)?, hot: false })
    }

    /// Says that the process is about to sleep; `false` when it must not, or had better not.
    pub(super) fn will_sleep(&self) -> bool {
        !self.hot && self.server.will_sleep()
    }

    /// Says that the process is awake; `signalled`: the lane's event was.
    pub(super) fn woke(&self, signalled: bool) -> io::Result<()> {
        self.server.woke(signalled)
    }
}

impl AsFd for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.server.as_fd()
    }
}

impl FunctionProcess {
    /// Serves what is in the lane, and what comes while it looks for more, for a [`SLICE`].
    ///
    /// # Errors
    /// [`RoleError::Lost`] once an access has shown that the device is gone.
    pub(super) fn serve_lane(
        &mut self,
        tube: &Tube,
        hooks: &mut dyn Hooks,
    ) -> Result<(), RoleError> {
        let Some(mut lane) = self.lane.take() else { return Ok(()) };
        let mut goes_on = Ok(());
        let mut began = None;
        loop {
            let Some(taken) = lane.server.take() else {
                lane.hot = lane.hot && lane.server.look();
                if lane.hot {
                    continue;
                }
                break;
            };
            lane.hot = true;
            let began = *began.get_or_insert_with(Instant::now);
            let at = |hooks: &mut dyn Hooks, point| {
                hooks.at(point, Route::Lane(tube, &lane.server, &taken))
            };
            let mut answered = at(hooks, Point::Before);
            let outcome = match taken.access() {
                Some(access) => self.access(&access),
                None => Err(start::invalid("An access in the lane that is none".to_owned())),
            };
            answered |= at(hooks, Point::During);
            if !answered {
                lane.server.answer(&taken, &outcome);
            }
            at(hooks, Point::After);
            goes_on = start::goes_on(&outcome);
            if goes_on.is_err() || began.elapsed() >= SLICE {
                break;
            }
        }
        self.lane = Some(lane);
        goes_on
    }
}
