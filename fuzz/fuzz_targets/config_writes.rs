//! Config writes of any guest against the permission table.
#![no_main]

libfuzzer_sys::fuzz_target!(
    |input: cordon_fuzz::pci::writes::Input| cordon_fuzz::pci::writes::run(&input)
);
