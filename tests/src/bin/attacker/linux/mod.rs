//! See the program.

mod connection;
mod exhaust;
mod frames;
mod function;
mod peer;
mod steps;

use std::io::Write as _;
use std::process::ExitCode;

use device_proc::hooks::{Hooks, NoHooks, Route};
use device_proc::options::{Command, Common, Serving, Windows};
use device_proc::{panics, program};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::{Misbehaviour, Point};
use ipc::{PciAddress, Tube};

/// What this process is started as.
pub(crate) enum Started {
    Function { address: PciAddress, serving: Serving, common: Common },
    Connection { address: PciAddress, windows: Windows, common: Common },
}

impl Started {
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Function { common, .. } | Self::Connection { common, .. } => common,
        }
    }
}

/// The role itself, with something that it does at a point of every request from the first on.
pub(crate) struct AtRequests {
    point: Point,
    strike: fn(&Tube),
}

impl Hooks for AtRequests {
    fn arm(&mut self, _: Misbehaviour) -> Result<(), Failure> {
        let message = "It attacks as it likes".to_owned();
        Err(Failure { kind: FailureKind::NotSupported, code: None, message })
    }

    fn at(&mut self, point: Point, route: Route<'_>) -> bool {
        if point == self.point {
            (self.strike)(route.tube());
        }
        false
    }
}

/// What the file beside this program says, if it is about `address` in `role`. Enters the control groups that it
/// names: what comes now confines itself, and cannot.
fn attack(address: PciAddress, role: &str) -> Option<String> {
    let program = std::env::args_os().next()?;
    let file = std::path::Path::new(&program).with_file_name("attack");
    let text = std::fs::read_to_string(file).ok()?;
    let mut words = text.split_whitespace();
    let is_it = words.next()?.parse() == Ok(address) && words.next()? == role;
    let name = words.next().filter(|_| is_it)?.to_owned();
    for group in words {
        let mut file = std::fs::OpenOptions::new().write(true).open(group).unwrap();
        file.write_all(b"0").unwrap();
    }
    Some(name)
}

/// See the program.
pub(crate) fn run() -> ExitCode {
    panics::exit_on_panic();
    let started = match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Function { address, serving, common }) => {
            attack(address, "function").map(|name| {
                let started = Started::Function { address, serving, common };
                (name, started)
            })
        }
        Ok(Command::Connection { address, holding, common }) => {
            attack(address, "connection").map(|name| {
                let started = Started::Connection { address, windows: holding.windows, common };
                (name, started)
            })
        }

        _ => None,
    };
    let Some((name, started)) = started else { return program::run(&mut NoHooks) };
    let is_step = steps::run(&name, &started);
    let known = is_step
        || match &started {
            Started::Function { .. } => function::run(&name, &started),
            Started::Connection { .. } => connection::run(&name, &started),
        };
    if known {
        return ExitCode::SUCCESS;
    }
    let at = |point, strike| {
        let mut hooks = AtRequests { point, strike };
        program::run(&mut hooks)
    };
    let found = frames::STRIKES.iter().chain(exhaust::STRIKES).find(|(known, ..)| *known == name);
    let Some((_, point, strike)) = found else { panic!("there is no attack {name}") };
    at(*point, *strike)
}
