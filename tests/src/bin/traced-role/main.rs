//! Stands in for a program that confines itself, under the tracer of `cordon_tests::trace`: puts a filter
//! over itself that shows every system call to the tracer, hands the tracer its end, and becomes the
//! program. What is stood in for is written behind this program's own bytes, so that copies work.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
use elsewhere::run;
#[cfg(target_os = "linux")]
use linux::run;

fn main() {
    panic!("traced-role: {}", run());
}
