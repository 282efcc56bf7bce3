//! `dext-sim`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cordon_dext_sim::main()
}
