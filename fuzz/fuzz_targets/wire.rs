//! Every message type, out of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cordon_fuzz::wire::run(input));
