//! Has `sandbox-probe` confine itself as each role does and make one system call at a time, in the order of the policy's
//! rows: what a row allows, and some of what lies beside each. Prints a line for each that came out as it should, and for
//! each that did not. The suite `policy` tries all of them, on the machine that it runs on.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use console::{complain, say};
use cordon_vmm::HostConfig;
use cordon_vmm::child::{ConnectionProtocol, Death, ExitStatus, FunctionProtocol, ListerProtocol};
use cordon_vmm::supervisor::Supervisor;

const PROBE: &str = "/bin/sandbox-probe";
const ROLES: [&str; 3] = ["connection", "function", "lister"];
/// Of the calls that are to be refused, how many of each role are tried: a slow machine does a few in a second.
const REFUSED: usize = 12;
/// Exit status of a try that worked.
const SUCCEEDED: i32 = 99;
/// The signal of a call that the filter refuses, SIGSYS.
const SIGSYS: i32 = 31;
/// Processes that try at once.
const WORKERS: usize = 4;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match ROLES.iter().map(|role| try_role(role)).collect::<Result<Vec<bool>, Failure>>() {
        Ok(held) if held.iter().all(|held| *held) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(console::exit::FAILED),
        Err(error) => {
            complain(format_args!("sandbox-tries: {error}"));
            ExitCode::from(console::exit::FAILED)
        }
    }
}

/// Tries what there is of a role; whether all came out as it should.
fn try_role(role: &str) -> Result<bool, Failure> {
    let output = std::process::Command::new(PROBE).args([role, "--tries"]).output()?;
    let listed = String::from_utf8(output.stdout)?;
    let of_kind = |kind: &'static str| {
        let all = listed.lines().enumerate();
        all.filter(move |(_, tried)| tried.starts_with(kind)).collect::<Vec<_>>()
    };
    let (works, refused) = (of_kind("works: "), of_kind("refused: "));
    let each = refused.len().div_ceil(REFUSED).max(1);
    let tries: Vec<_> = works.into_iter().chain(refused.into_iter().step_by(each)).collect();
    if tries.is_empty() {
        return Err(format!("{PROBE} tries nothing as {role}").into());
    }
    let (next, lines) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((number, tried)) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let line = try_one(role, *number, tried);
                    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
        }
    });
    let lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (held, what) in &lines {
        say!("{} {role} {what}", if *held { "held" } else { "HOLE" })?;
    }
    Ok(lines.iter().all(|(held, _)| *held))
}

/// Whether it came out as it should, and what it was.
fn try_one(role: &str, number: usize, tried: &str) -> (bool, String) {
    let config = HostConfig::new(PROBE, "sim:/nowhere");
    let mut spec = config.spec("01:00.0".parse().ok());
    spec.expendable = true;
    spec.arguments.push(format!("--try={number}").into());
    // It never says that it is ready: its end is all that there is of it.
    let death = match role {
        "connection" => Supervisor::<ConnectionProtocol>::start(&spec).err(),
        "function" => Supervisor::<FunctionProtocol>::start(&spec).err(),
        _ => Supervisor::<ListerProtocol>::start(&spec).err(),
    };
    let expected = if tried.starts_with("works: ") {
        ExitStatus::Code(SUCCEEDED)
    } else {
        ExitStatus::Signal(SIGSYS)
    };
    // What it says last is said once it is confined: what came before was not the try's.
    let confined = |death: &Death| death.last_words == format!("confined, and tries: {tried}");
    match death.as_deref() {
        Some(death) if death.exit == expected && confined(death) => (true, tried.to_owned()),
        Some(death) => (false, format!("{tried}: {death}")),
        None => (false, format!("{tried}: it serves")),
    }
}
