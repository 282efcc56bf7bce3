//! A tube against a peer that sends anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::tube::Input| cordon_fuzz::tube::run(input));
