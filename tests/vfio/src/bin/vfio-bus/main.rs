//! `vfio-bus FIRST SECOND`: a VMM that links the library resets the network controller at FIRST, whose kernel can reset it
//! only with its whole bus, on which SECOND is the other function: alone, while the other one is in use, and alone again.
//! Prints what came of it as one JSON object.

use std::process::ExitCode;
use std::sync::Arc;

use console::{complain, say};
use cordon_vmm::{Container, DmaMode, Function, Host, HostConfig, PassthroughDevice as _};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

/// COMMAND, with memory decoded.
const COMMAND: u32 = 4;
const MEMORY: u16 = 2;
/// A register that keeps what is written, and is 0 after a reset: where receive descriptors are.
const REGISTER: u64 = 0x2800;
const WRITTEN: u32 = 0x1234_5000;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let found = match words.as_slice() {
        [first, second] => check(first, second),
        _ => Err("vfio-bus FIRST SECOND".into()),
    };
    match found.and_then(|found| Ok(say!("{found}")?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vfio-bus: {error}"));
            ExitCode::from(console::exit::FAILED)
        }
    }
}

fn register(function: &Function) -> Result<u32, Failure> {
    let mut bytes = [0; 4];
    function.bar_read(0, REGISTER, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn write(function: &Function) -> Result<u32, Failure> {
    function.bar_write(0, REGISTER, &WRITTEN.to_le_bytes())?;
    register(function)
}

fn check(first: &str, second: &str) -> Result<Value, Failure> {
    let host = Host::new(HostConfig::new("/bin/device-proc", "vfio"));
    let container = Arc::new(Container::new(DmaMode::Direct));
    let one = host.attach(first.parse()?, &container, None)?;
    one.config_write(COMMAND, &MEMORY.to_le_bytes())?;
    let written = write(&one)?;
    one.reset()?;
    let alone = register(&one)?;

    let other = host.attach(second.parse()?, &container, None)?;
    other.config_write(COMMAND, &MEMORY.to_le_bytes())?;
    let kept = (write(&one)?, write(&other)?);
    let refused = one.reset().err().map(|error| (error.errno(), error.to_string()));
    let still = (register(&one)?, register(&other)?);
    host.detach(&other);

    one.reset()?;
    let again = register(&one)?;
    let processes = (one.replacements(), one.returns());
    host.detach(&one);
    Ok(json!({
        "written": written == WRITTEN,
        "after_reset": alone,
        "refused": refused,
        "kept": kept == (WRITTEN, WRITTEN) && still == kept,
        "after_second_reset": again,
        "processes": processes,
    }))
}
