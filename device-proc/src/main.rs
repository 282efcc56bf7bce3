//! `device-proc`: one confined process, in the role that the command line says.

use std::process::ExitCode;

use clap::Parser as _;
use device_proc::options::{Options, RoleOptions};
use device_proc::{connection, function, lister, start};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
    let ended = match Options::parse().role {
        RoleOptions::Connection { address, common } => connection::run(address, &common),
        RoleOptions::Function { address, common } => function::run(address, &common),
        RoleOptions::Lister { common } => lister::run(&common),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device-proc: {}", start::chain(&error));
            ExitCode::FAILURE
        }
    }
}
