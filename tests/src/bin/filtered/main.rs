//! Runs a program under a seccomp filter, as a container's runtime does: `filtered CALL… -- PROGRAM
//! ARGUMENT…`. Each named call is answered with EPERM.
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
    let mut arguments = std::env::args().skip(1);
    let calls: Vec<String> = arguments.by_ref().take_while(|one| one != "--").collect();
    let program = arguments.next().unwrap();
    let arguments: Vec<String> = arguments.collect();
    panic!("{program}: {}", run(&calls, &program, &arguments));
}
