//! Both ends of a lane against a peer that rewrites every word of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::lane::Input| cordon_fuzz::lane::run(input));
