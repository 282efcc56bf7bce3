//! Capabilities, BARs and windows of any device.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: cordon_fuzz::pci::capabilities::Input| {
    cordon_fuzz::pci::capabilities::run(&input)
});
