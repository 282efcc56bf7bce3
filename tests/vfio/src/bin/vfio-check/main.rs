//! `vfio-check`: asks the kernel's VFIO by itself, without anything of the product, and prints what it answered as one
//! JSON object. What the product is built on is then known to hold in the machine where its suites run.

mod edu;
mod kernel;
mod nvme;
mod pair;
mod remove;

use std::process::ExitCode;

use console::{complain, say};
use serde_json::Value;

const USAGE: &str = "\
Usage: vfio-check nvme ADDRESS              group, container, regions, interrupts, reset, memory for DMA
       vfio-check edu ADDRESS               DMA through the IOMMU and past it, INTx
       vfio-check pair ADDRESS ADDRESS      two functions of one group
       vfio-check remove ADDRESS TEXT PROGRAM ARGUMENT…
                                            removal once the program has printed a line with the text
";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let found = match words.as_slice() {
        ["nvme", address] => nvme::check(address),
        ["edu", address] => edu::check(address),
        ["pair", first, second] => pair::check(first, second),
        ["remove", address, text, command @ ..] => remove::check(address, text, command),
        _ => Err(USAGE.into()),
    };
    match found.and_then(|found: Value| Ok(say!("{found}")?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vfio-check: {error}"));
            ExitCode::from(console::exit::FAILED)
        }
    }
}

/// The kind of an error, or "ok".
fn outcome<T>(result: &std::io::Result<T>) -> String {
    result.as_ref().map_or_else(|error| format!("{:?}", error.kind()), |_| "ok".to_owned())
}
