//! The simulated dext against clients that ask for anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::dext_sim::Input| cordon_fuzz::dext_sim::run(
    &input
));
