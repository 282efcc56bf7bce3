//! The language of Seatbelt profiles.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::seatbelt::Input<'_>| cordon_fuzz::seatbelt::run(
    input
));
