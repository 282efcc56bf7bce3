//! Another `device-proc` for functions that are attached, while guests run.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipc::PciAddress;

use super::attachments::Entry;
use super::{Host, HostConfig};
use crate::child::Death;
use crate::connection::{Connection, ConnectionProgram};
use crate::function::{Function, Program, UpgradeError, Upgraded, told};
use crate::listing::Lister;

/// How often a device that is to come back is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// What an order may take beyond the time of the steps that it has.
const MARGIN: Duration = Duration::from_secs(2);

/// How long a function's thread may take until it begins with a take-over: it may be replacing a process that
/// died.
fn to_begin(config: &HostConfig) -> Duration {
    config.recovery.timeout + MARGIN
}

/// How long a take-over may take once it has begun, and what undoes it: both processes end, two more are set up.
fn to_end(config: &HostConfig) -> Duration {
    (config.deadlines.stop + config.recovery.timeout) * 2 + MARGIN
}

/// Why everything goes on with the program it had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostUpgradeError {
    /// A function could not be served by the other program.
    #[error("Function {address} cannot be served by the other program: {error}")]
    Function {
        /// The function.
        address: PciAddress,
        /// Why.
        error: UpgradeError,
    },
    /// No function is attached, and the program does not even list devices.
    #[error("{0}")]
    NotStarted(Arc<Death>),
}

impl Host {
    /// Has every function that is attached served by another `device-proc`, and uses it for whatever is
    /// started from here on. A path that is the same means the file that is there now.
    ///
    /// A process of it is prepared for each function first; only when all are ready do they take over,
    /// one function after the other. A guest notices as much as of a death with a standby: its next
    /// request waits for a take-over. Whatever cannot be done undoes what was, so that a program is used
    /// for all or for none; a roll-back is the same call with the former path.
    ///
    /// Connection processes go on with the program they were started with, until the last function of
    /// their device is detached or they die; [`Host::upgrade_connections`] does not wait for that.
    ///
    /// # Errors
    /// [`HostUpgradeError`]; everything goes on with the program it had.
    pub fn upgrade(&self, device_proc: &Path) -> Result<Vec<Upgraded>, HostUpgradeError> {
        let _program = self.program.write();
        let now = self.config();
        let next = HostConfig { device_proc: device_proc.to_owned(), ..(*now).clone() };
        let functions = self.functions();
        if functions.is_empty() {
            Lister::start(&next).map(drop).map_err(HostUpgradeError::NotStarted)?;
        }
        prepare(&functions, &next)?;
        let mut done = Vec::new();
        for (at, function) in functions.iter().enumerate() {
            match function.take_upgrade(to_begin(&next), to_end(&next)) {
                Ok(upgraded) => done.push(upgraded),
                Err(error) => {
                    functions[at + 1..].iter().for_each(|one| one.call_upgrade_off());
                    undo(&functions[..at], &now);
                    return Err(HostUpgradeError::Function { address: function.address(), error });
                }
            }
        }
        for function in &functions {
            let spec = next.connection_spec(function.address());
            let program = ConnectionProgram { program: spec.program, before: spec.before };
            function.connection_handle().succeed_by(program);
        }
        *self.config.write() = Arc::new(next);
        Ok(done)
    }

    /// Has connection processes replaced whose program is not the one of the last [`Host::upgrade`]. To
    /// their functions that is a surprise removal and a return: guests lose what was in flight. (Over Linux's VFIO
    /// the other one adopts them, and they notice nothing.) Waits until
    /// the devices are back, for at most as long as they may be away; where the other program does not start
    /// the former one serves again.
    ///
    /// How many gave way. Which program serves is told by
    /// [`Connection::programs`](crate::connection::Connection::programs).
    pub fn upgrade_connections(&self) -> usize {
        let _program = self.program.write();
        let functions = self.functions();
        let done = |function: &Function| (function.returns(), function.connection().adoptions());
        let before: Vec<_> = functions.iter().map(|function| done(function)).collect();
        let (mut asked, mut ended): (Vec<&Arc<Connection>>, Vec<_>) = Default::default();
        for function in &functions {
            let connection = function.connection_handle();
            if !asked.iter().any(|one| Arc::ptr_eq(one, connection)) {
                asked.push(connection);
                if connection.give_way() {
                    ended.push(connection);
                }
            }
        }
        let count = ended.len();
        let config = self.config();
        let limit = ipc::Deadline::after(config.recovery.away + config.recovery.timeout);
        for (function, before) in functions.iter().zip(before) {
            let connection = function.connection_handle();
            let is_away = ended.iter().any(|one| Arc::ptr_eq(one, connection));
            while is_away && done(function) == before && function.death().is_none() {
                if limit.passed() {
                    break;
                }
                std::thread::sleep(LOOK);
            }
        }
        count
    }

    /// Every function that is attached.
    fn functions(&self) -> Vec<Arc<Function>> {
        let attachments = self.attachments.lock();
        let attached = attachments.iter().filter_map(|(_, entry)| match entry {
            Entry::Attached(holders) => Some(Arc::clone(&holders.function)),
            Entry::Attaching(_) => None,
        });
        attached.collect()
    }
}

/// Prepares a process for each, all at once, or for none.
fn prepare(functions: &[Arc<Function>], config: &HostConfig) -> Result<(), HostUpgradeError> {
    let orders: Vec<_> = functions
        .iter()
        .map(|function| (function.address(), function.prepare_upgrade(program(function, config))))
        .collect();
    let limit = config.deadlines.start + MARGIN;
    let mut prepared = Ok(());
    for (address, order) in orders {
        if let Err(error) = told(&order, limit)
            && prepared.is_ok()
        {
            prepared = Err(HostUpgradeError::Function { address, error });
        }
    }
    if prepared.is_err() {
        functions.iter().for_each(|function| function.call_upgrade_off());
    }
    prepared
}

/// Has those that were upgraded already served as before.
fn undo(functions: &[Arc<Function>], before: &HostConfig) {
    for function in functions {
        let back = prepare(std::slice::from_ref(function), before).and_then(|()| {
            function
                .take_upgrade(to_begin(before), to_end(before))
                .map(drop)
                .map_err(|error| HostUpgradeError::Function { address: function.address(), error })
        });
        if let Err(error) = back {
            tracing::warn!("undoing an upgrade: {error}");
        }
    }
}

fn program(function: &Function, config: &HostConfig) -> Program {
    let spec = config.spec(Some(function.address()));
    Program { program: spec.program, before: spec.before }
}
