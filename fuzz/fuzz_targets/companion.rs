//! A companion's ring in memory that is rewritten, and its batches.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::companion::Input| cordon_fuzz::companion::run(
    &input
));
