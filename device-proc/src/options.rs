//! The command line of `device-proc`, written by the VMM side and by nobody else.

use std::ffi::OsString;

pub use dext_client::Endpoint;
use ipc::PciAddress;
use ipc::wire::function::Known;
use lexopt::ValueExt as _;
use sandbox_profiles::Network;

use crate::start::Confinement;

/// What is printed for `--help`.
pub const USAGE: &str = "\
One confined process of Cordon. Started by the VMM side, of no use by hand.

Usage: device-proc ROLE OPTIONS

  connection  Hold claim, DMA registrations and BAR windows of one device
  function    Serve one function
  lister      Report what the backend offers
  doctor      Say how this program would be confined, and exit

Options of connection, function and lister:
  --dext=sim:PATH|iokit          Where the dext is; sim@NAME:PATH or iokit@NAME:
                                 beneath a root bridge
  --sandbox=strict|relaxed       Refuse to start without a layer of the sandbox,
                                 or report it [strict]
  --network=shared|inherited     Whose network namespace it is started in
                                 [shared]
  --guest-memory=BYTES           What one function will be handed at most [twice
                                 the machine's memory]
  --tube-fd=NUMBER               The inherited descriptor of the tube [3]
  --address=BB:DD.F              connection, function: the function; any one of
                                 the device. lister: report no other function
  --windows=handed|described|trapped
                                 connection: what becomes of the BARs [handed]
  --adopt                        connection: take over what a dead one left,
                                 which comes first over the tube; open nothing
  --handed                       connection: use the files of its group that a
                                 manager opened, which come first over the tube
  --standby                      function: leave the interrupts to the process
                                 that serves now
  --known=HEX                    function: what its first process found, as that
                                 said it
  --max-read-request=0..7        function: DevCtl's maximum read request size as
                                 the host had set it

Options of doctor:
  --confine=ROLE                 Confine this very process as a role, say so,
                                 and wait for the end of standard input
  --ask=PID                      macOS: ask the system what that process,
                                 confined as a role, may
  --report=ROLE                  Confine this very process as a role as far as
                                 can be, send what came of it over the tube, and
                                 then make a call that is forbidden

  -h, --help                     Print this
  -V, --version                  Print the version
";

/// A command line that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// An option that is unknown, has no value, or whose value makes no sense.
    #[error("{0}")]
    Option(#[from] lexopt::Error),
    /// No role, or none that there is.
    #[error("'{0}' is no role: connection, function, lister or doctor")]
    Role(String),
    /// An option that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// What the program is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Hold the claim, the DMA registrations and the BAR windows of one device.
    Connection {
        /// Any function of the device.
        address: PciAddress,
        /// How it is held.
        holding: Holding,
        /// What all roles share.
        common: Common,
    },
    /// Serve one function.
    Function {
        /// The function.
        address: PciAddress,
        /// How it is served.
        serving: Serving,
        /// What all roles share.
        common: Common,
    },
    /// Report what the backend offers.
    Lister {
        /// The one function to report; all of them without.
        address: Option<PciAddress>,
        /// What all roles share.
        common: Common,
    },
    /// Say how this program would be confined, and exit.
    Doctor {
        /// Confine this very process as a role, say so, and wait for the end of standard input.
        confine: Option<String>,
        /// Ask the system what this process, which is confined, would be allowed.
        ask: Option<u32>,
        /// Confine this very process as a role, report over the tube, and make a forbidden call.
        report: Option<String>,
    },
    /// Print [`USAGE`].
    Help,
    /// Print the version.
    Version,
}

/// How a device is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// What becomes of the BARs.
    pub windows: Windows,
    /// How the group comes to it.
    pub opening: Opening,
}

/// How a connection process comes by its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opening {
    /// It opens it.
    #[default]
    Own,
    /// It is handed the files that a manager opened.
    Handed,
    /// It takes it over from a process that is dead, as it is.
    Adopt,
    /// It takes it over, and is handed the files of its functions that a manager opened.
    AdoptHanded,
}

impl From<Windows> for Holding {
    fn from(windows: Windows) -> Self {
        Self { windows, opening: Opening::Own }
    }
}

/// How a function is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Leave the interrupts to the process that serves the function now, and take over later.
    pub standby: bool,
    /// Bits 14:12 of DevCtl as the first process of the function found them: a guest, which stays
    /// within them (P6.4), may have lowered them since.
    pub max_read_request: Option<u8>,
    /// What the first process of the function found, while the claim of then holds.
    pub known: Option<Known>,
}

/// What all roles share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// Where the dext is: see [`Endpoint`].
    pub dext: Endpoint,
    /// Refuse to start without a layer of the sandbox, or report it.
    pub sandbox: Sandbox,
    /// The inherited descriptor of the tube.
    pub tube_fd: i32,
    /// Bytes of guest memory that one function will be handed, at most: counted into the process's
    /// budget of addresses. Twice the machine's memory when it is not said.
    pub guest_memory: Option<u64>,
    /// The network namespace that it was started in.
    pub network: Network,
}

/// What becomes of the BARs that a guest may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Windows {
    /// Their memory is handed to the VMM.
    #[default]
    Handed,
    /// They are described, and the VMM maps them by a connection of its own.
    Described,
    /// None is a window: every access is trapped.
    Trapped,
}

/// What to do about a missing layer of the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Refuse to start.
    #[default]
    Strict,
    /// Report it and go on.
    Relaxed,
}

impl From<Sandbox> for sandbox_profiles::Mode {
    fn from(sandbox: Sandbox) -> Self {
        match sandbox {
            Sandbox::Strict => Self::Strict,
            Sandbox::Relaxed => Self::Relaxed,
        }
    }
}

impl Common {
    /// How a process with these options is confined.
    #[must_use]
    pub fn confinement(&self) -> Confinement {
        let Self { guest_memory, network, .. } = *self;
        Confinement::Process { mode: self.sandbox.into(), guest_memory, network }
    }
}

/// The options of [`Common`] as they come.
#[derive(Debug, Default)]
pub struct CommonOptions {
    dext: Option<Endpoint>,
    sandbox: Sandbox,
    tube_fd: Option<i32>,
    guest_memory: Option<u64>,
    network: Network,
}

impl CommonOptions {
    /// Takes the value of the option `name`; `false` if it is none of these.
    ///
    /// # Errors
    /// [`UsageError::Option`] when the value makes no sense.
    pub fn take(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<bool, UsageError> {
        match name {
            // Any path, not only one that is text.
            "dext" => {
                let endpoint = Endpoint::try_from(parser.value()?.as_os_str());
                self.dext = Some(endpoint.map_err(|error| lexopt::Error::Custom(error.into()))?);
            }
            "guest-memory" => self.guest_memory = Some(parser.value()?.parse()?),
            "network" => {
                let known = [("shared", Network::Shared), ("inherited", Network::Inherited)];
                self.network = one_of(parser, known)?;
            }
            "tube-fd" => self.tube_fd = Some(parser.value()?.parse()?),
            "sandbox" => {
                let known = [("strict", Sandbox::Strict), ("relaxed", Sandbox::Relaxed)];
                self.sandbox = one_of(parser, known)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// All of them.
    ///
    /// # Errors
    /// [`UsageError::Missing`].
    pub fn finish(self) -> Result<Common, UsageError> {
        let Self { dext, sandbox, tube_fd, guest_memory, network } = self;
        let dext = dext.ok_or(UsageError::Missing("--dext"))?;
        Ok(Common { dext, sandbox, tube_fd: tube_fd.unwrap_or(3), guest_memory, network })
    }
}

/// The value of an option that has a few.
fn one_of<T, const N: usize>(
    parser: &mut lexopt::Parser,
    known: [(&'static str, T); N],
) -> Result<T, UsageError> {
    let names = known.each_ref().map(|(name, _)| *name);
    let value = parser.value()?;
    let found = known.into_iter().find(|(name, _)| value == *name);
    found.map(|(_, value)| value).ok_or_else(|| {
        let why = format!("one of {} is expected", names.join(", "));
        lexopt::Error::ParsingFailed {
            value: value.to_string_lossy().into_owned(),
            error: why.into(),
        }
        .into()
    })
}

impl Command {
    /// Of the arguments after the program's name.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut arguments = arguments.into_iter();
        let role = arguments.next().unwrap_or_default().to_string_lossy().into_owned();
        match role.as_str() {
            "connection" | "function" | "lister" | "doctor" => {}
            "-h" | "--help" => return Ok(Self::Help),
            "-V" | "--version" => return Ok(Self::Version),
            _ => return Err(UsageError::Role(role)),
        }
        let mut common = CommonOptions::default();
        let (mut address, mut serving) = (None, Serving::default());
        let (mut confine, mut ask, mut report) = (None, None, None);
        let mut holding = Holding::default();
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next()? {
            let lexopt::Arg::Long(name) = argument else {
                return Err(argument.unexpected().into());
            };
            let name = name.to_owned();
            match (role.as_str(), name.as_str()) {
                (_, "help") => return Ok(Self::Help),
                ("doctor", "confine") => confine = Some(parser.value()?.string()?),
                ("doctor", "ask") => ask = Some(parser.value()?.parse()?),
                ("doctor", "report") => report = Some(parser.value()?.string()?),
                ("connection" | "function" | "lister", "address") => {
                    address = Some(parser.value()?.parse()?);
                }
                ("connection", "windows") => {
                    let known = [
                        ("handed", Windows::Handed),
                        ("described", Windows::Described),
                        ("trapped", Windows::Trapped),
                    ];
                    holding.windows = one_of(&mut parser, known)?;
                }
                ("connection", word @ ("adopt" | "handed")) => {
                    holding.opening = match (holding.opening, word) {
                        (Opening::Handed | Opening::AdoptHanded, "adopt") => Opening::AdoptHanded,
                        (Opening::Adopt | Opening::AdoptHanded, "handed") => Opening::AdoptHanded,
                        (_, "adopt") => Opening::Adopt,
                        _ => Opening::Handed,
                    };
                }
                ("function", "standby") => serving.standby = true,
                ("function", "known") => {
                    let text = parser.value()?.string()?;
                    let known = Known::from_hex(&text).map_err(lexopt::Error::Custom)?;
                    serving.known = Some(known);
                }
                ("function", "max-read-request") => {
                    let mut sizes = 0u8..;
                    let known = ["0", "1", "2", "3", "4", "5", "6", "7"];
                    let known = known.map(|name| (name, sizes.next()));
                    serving.max_read_request = one_of(&mut parser, known)?;
                }
                ("connection" | "function" | "lister", name)
                    if common.take(name, &mut parser)? => {}
                _ => return Err(lexopt::Arg::Long(&name).unexpected().into()),
            }
        }
        if role == "doctor" {
            return Ok(Self::Doctor { confine, ask, report });
        }
        if role == "lister" {
            return Ok(Self::Lister { address, common: common.finish()? });
        }
        let address = address.ok_or(UsageError::Missing("--address"))?;
        let common = common.finish()?;
        Ok(if role == "connection" {
            Self::Connection { address, holding, common }
        } else {
            Self::Function { address, serving, common }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        let words = line.split_whitespace().map(OsString::from);
        Command::parse(words).map_err(|error| error.to_string())
    }

    #[test]
    fn a_role_is_what_its_command_line_says() {
        let dext: Endpoint = "sim:/run/dext".parse().unwrap();
        let (sandbox, network) = (Sandbox::Strict, Network::Shared);
        let common = Common { dext, sandbox, tube_fd: 3, guest_memory: None, network };
        let address = "01:00.1".parse().unwrap();
        assert_eq!(
            parse("function --dext=sim:/run/dext --address=01:00.1 --standby"),
            Ok(Command::Function {
                address,
                serving: Serving { standby: true, ..Serving::default() },
                common: common.clone()
            })
        );
        assert_eq!(
            parse("function --dext=sim:/run/dext --address=01:00.1 --max-read-request=2"),
            Ok(Command::Function {
                address,
                serving: Serving { max_read_request: Some(2), ..Serving::default() },
                common: common.clone()
            })
        );
        let relaxed = Common { sandbox: Sandbox::Relaxed, tube_fd: 7, ..common.clone() };
        assert_eq!(
            parse(
                "connection --address 01:00.1 --dext sim:/run/dext --sandbox=relaxed --tube-fd=7 \
                 --windows=trapped"
            ),
            Ok(Command::Connection { address, holding: Windows::Trapped.into(), common: relaxed })
        );
        for (word, opening) in [
            ("adopt", Opening::Adopt),
            ("handed", Opening::Handed),
            ("adopt --handed", Opening::AdoptHanded),
            ("handed --adopt", Opening::AdoptHanded),
        ] {
            let holding = Holding { windows: Windows::Handed, opening };
            assert_eq!(
                parse(&format!("connection --address 01:00.1 --dext sim:/run/dext --{word}")),
                Ok(Command::Connection { address, holding, common: common.clone() })
            );
        }
        let some = Common { guest_memory: Some(4096), ..common.clone() };
        assert_eq!(
            parse("lister --dext=sim:/run/dext --guest-memory=4096"),
            Ok(Command::Lister { address: None, common: some })
        );
        assert_eq!(
            parse("lister --dext=sim:/run/dext"),
            Ok(Command::Lister { address: None, common })
        );
        let confine = Some("function".to_owned());
        let doctor = |confine, ask, report| Ok(Command::Doctor { confine, ask, report });
        assert_eq!(parse("doctor --confine=function"), doctor(confine, None, None));
        assert_eq!(parse("doctor --ask=7"), doctor(None, Some(7), None));
        assert_eq!(parse("doctor --report=lister"), doctor(None, None, Some("lister".to_owned())));
        assert_eq!(parse("--help"), Ok(Command::Help));
        assert_eq!(parse("-V"), Ok(Command::Version));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (line, named) in [
            ("", "'' is no role"),
            ("servant", "'servant' is no role"),
            ("function", "--address"),
            ("function --address=01:00.0", "--dext"),
            ("function --dext=sim:/x --address=banana", "banana"),
            ("lister --dext=usb:7", "usb:7"),
            ("lister --dext", "--dext"),
            ("lister --dext=sim:/x --address=banana", "banana"),
            ("connection --dext=sim:/x --address=01:00.0 --standby", "--standby"),
            ("function --dext=sim:/x --address=01:00.0 --standby=yes", "--standby"),
            ("function --dext=sim:/x --address=01:00.0 --adopt", "--adopt"),
            ("function --dext=sim:/x --address=01:00.0 --handed", "--handed"),
            ("function --dext=sim:/x --address=01:00.0 --max-read-request=8", "6, 7"),
            ("function --dext=sim:/x --address=01:00.0 --misbehave", "--misbehave"),
            ("function --dext=sim:/x --address=01:00.0 --sandbox=loose", "strict, relaxed"),
            ("function --dext=sim:/x --address=01:00.0 more", "more"),
            ("function --dext=sim:/x --address=01:00.0 -x", "-x"),
            ("doctor --dext=sim:/x", "--dext"),
        ] {
            let refused = parse(line).unwrap_err();
            assert!(refused.contains(named), "{line}: {refused}");
        }
    }
}
