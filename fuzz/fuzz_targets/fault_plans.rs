//! Fault plans, of the VMM side and of the simulated dext.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::plans::Input<'_>| cordon_fuzz::plans::run(input));
