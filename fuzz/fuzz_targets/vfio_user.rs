//! A vfio-user session against a model of maps and regions.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::vfio_user::Input| cordon_fuzz::vfio_user::run(
    &input
));
