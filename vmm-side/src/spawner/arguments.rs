//! A request as the command line that it stands for: the server writes one, as it does where it starts
//! its children itself, and asks for what it says; the spawner writes its own from the request and its
//! grant.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use ipc::wire::function::Known;
use ipc::wire::spawn::{Grant, Request, Role};

use crate::child::{ConnectionProtocol, FunctionProtocol, ListerProtocol, Protocol as _};

/// Options that are in the grant and the same for all, or the spawner's own to say.
const GRANTED: [&str; 4] = ["dext", "sandbox", "windows", "network"];

/// Whether a command line is a lister's.
pub(super) fn is_lister(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|command| command == ListerProtocol::COMMAND)
}

/// What a command line asks for, of a program by its number.
///
/// # Errors
/// Says what a spawner does not start.
pub(super) fn read(arguments: &[OsString], program: u32) -> Result<Request, String> {
    let mut words = arguments.iter().map(|word| word.to_string_lossy());
    let command = words.next().unwrap_or_default();
    let (mut address, mut known) = (None, None);
    let (mut guest_memory, mut max_read_request, mut standby) = (true, None, false);
    let (mut adopt, mut handed) = (false, false);
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        let wrong = |why: &dyn std::fmt::Display| format!("{name}: {why}");
        match name.strip_prefix("--").unwrap_or_default() {
            "address" => address = Some(value.parse().map_err(|error| wrong(&error))?),
            "guest-memory" if value == "0" => guest_memory = false,
            "known" => known = Some(Known::from_hex(value).map_err(|error| wrong(&error))?),
            "max-read-request" => {
                max_read_request = Some(value.parse().map_err(|error| wrong(&error))?);
            }
            "standby" => standby = true,
            "adopt" => adopt = true,
            "handed" => handed = true,
            name if GRANTED.contains(&name) => {}
            _ => return Err(format!("a spawner starts nothing with the option {name}")),
        }
    }
    let address = address.ok_or("a spawner starts nothing without an address")?;
    let role = if command == ConnectionProtocol::COMMAND {
        match (adopt, handed) {
            (true, true) => Role::HandedAdopter,
            (true, false) => Role::Adopter,
            (false, true) => Role::Handed,
            (false, false) => Role::Connection,
        }
    } else if command == ListerProtocol::COMMAND {
        Role::Lister
    } else if command == FunctionProtocol::COMMAND {
        Role::Function { guest_memory, known, max_read_request, standby }
    } else {
        return Err(format!("a spawner starts no {command} process"));
    };
    Ok(Request::Start { address, role, program })
}

/// The command line of a request, without the program's name.
///
/// # Errors
/// Says what is not in the grant, or no value.
pub(super) fn write(
    grant: &Grant,
    address: ipc::PciAddress,
    role: &Role,
    network_is_left: bool,
) -> Result<Vec<OsString>, String> {
    if !grant.devices.contains(&address) {
        return Err(format!("{address} is none of the functions that were named at the start"));
    }
    let mode = if grant.strict { "strict" } else { "relaxed" };
    let mut dext = OsString::from("--dext=");
    dext.push(OsStr::from_bytes(&grant.dext));
    let mut arguments = vec![dext, format!("--sandbox={mode}").into()];
    arguments.push(format!("--address={address}").into());
    let command = match role {
        Role::Connection | Role::Adopter | Role::Handed | Role::HandedAdopter => {
            arguments.push(format!("--windows={}", grant.windows).into());
            match role {
                Role::Adopter => arguments.push("--adopt".into()),
                Role::Handed => arguments.push("--handed".into()),
                Role::HandedAdopter => arguments.extend(["--adopt", "--handed"].map(Into::into)),
                _ => {}
            }
            ConnectionProtocol::COMMAND
        }
        // Of that function alone.
        Role::Lister => ListerProtocol::COMMAND,
        Role::Function { guest_memory, known, max_read_request, standby } => {
            if !guest_memory {
                arguments.push("--guest-memory=0".into());
            }
            if let Some(known) = known {
                arguments.push(format!("--known={}", known.to_hex()).into());
            }
            match max_read_request {
                None => {}
                Some(size @ 0..=7) => {
                    arguments.push(format!("--max-read-request={size}").into());
                }
                Some(size) => return Err(format!("{size} is no maximum read request size")),
            }
            if *standby {
                arguments.push("--standby".into());
            }
            FunctionProtocol::COMMAND
        }
    };
    if network_is_left {
        arguments.push("--network=inherited".into());
    }
    arguments.insert(0, command.into());
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            program: b"/opt/device-proc".to_vec(),
            dext: b"sim:/run/\xffdext".to_vec(),
            strict: true,
            windows: "handed".to_owned(),
            devices: vec!["01:00.0".parse().unwrap(), "02:00.1".parse().unwrap()],
            sockets: Vec::new(),
            socket_mode: 0o600,
            socket_group: None,
            user: None,
            programs: false,
        }
    }

    /// A request, and the spawner's command line for it.
    fn there_and_back(words: &[&str]) -> Result<Vec<OsString>, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let Request::Start { address, role, program: 3 } = read(&words, 3)? else { unreachable!() };
        write(&grant(), address, &role, true)
    }

    #[test]
    fn what_a_server_would_have_run_is_what_the_spawner_runs() {
        let known = Known { config: vec![(4, 7)], ..Known::default() }.to_hex();
        let known = format!("--known={known}");
        let sent = [
            "function",
            "--dext=sim:/elsewhere",
            "--sandbox=relaxed",
            "--address=02:00.1",
            "--guest-memory=0",
            &known,
            "--max-read-request=2",
            "--standby",
        ];
        let mut dext = OsString::from("--dext=sim:/run/");
        dext.push(OsStr::from_bytes(b"\xffdext"));
        let mut run: Vec<OsString> = sent.iter().map(OsString::from).collect();
        // What is the grant's is the grant's, whatever the server says.
        (run[1], run[2]) = (dext.clone(), "--sandbox=strict".into());
        run.push("--network=inherited".into());
        assert_eq!(there_and_back(&sent).unwrap(), run);
        let run = there_and_back(&["lister", "--dext=sim:/run", "--address=01:00.0"]).unwrap();
        assert_eq!(
            (run.len(), &run[0], &run[3]),
            (5, &"lister".into(), &"--address=01:00.0".into())
        );
        let sent = ["connection", "--address=01:00.0", "--windows=described"];
        let run = there_and_back(&sent).unwrap();
        let expected: [OsString; 6] = [
            "connection".into(),
            dext,
            "--sandbox=strict".into(),
            "--address=01:00.0".into(),
            "--windows=handed".into(),
            "--network=inherited".into(),
        ];
        assert_eq!(run, expected);
        let run = there_and_back(&["connection", "--address=01:00.0", "--adopt"]).unwrap();
        assert_eq!((run.len(), &run[5]), (7, &"--adopt".into()));
        let run = there_and_back(&["connection", "--address=01:00.0", "--handed"]).unwrap();
        assert_eq!((run.len(), &run[5]), (7, &"--handed".into()));
        let both = ["connection", "--address=01:00.0", "--adopt", "--handed"];
        let run = there_and_back(&both).unwrap();
        assert_eq!(run[5..7], ["--adopt", "--handed"]);
    }

    #[test]
    fn what_is_not_granted_has_no_command_line() {
        for (words, why) in [
            (&["function", "--address=01:00.1"][..], "none of the functions"),
            (&["function"], "without an address"),
            (&["lister"], "without an address"),
            (&["lister", "--address=01:00.1"], "none of the functions"),
            (&["doctor", "--address=01:00.0"], "no doctor process"),
            (&["/bin/sh", "--address=01:00.0"], "no /bin/sh process"),
            (&["function", "--address=01:00.0", "--tube-fd=9"], "the option --tube-fd"),
            (&["function", "--address=01:00.0", "-c", "true"], "the option "),
            (&["function", "--address=01:00.0", "--known=zz"], "--known"),
            (&["function", "--address=01:00.0", "--max-read-request=8"], "8 is no maximum"),
            (&["function", "--address=01:00.0", "--guest-memory=1"], "the option --guest-memory"),
        ] {
            let refused = there_and_back(words).unwrap_err();
            assert!(refused.contains(why), "{words:?}: {refused}");
        }
    }
}
