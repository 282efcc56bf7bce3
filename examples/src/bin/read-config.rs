//! Learns what a function is, attaches it, and reads its ids from config space.
#![expect(clippy::print_stdout, reason = "an example for a terminal")]

use std::error::Error;
use std::sync::Arc;

use cordon_vmm::{Container, DmaMode, Host, PassthroughDevice as _};

fn main() -> Result<(), Box<dyn Error>> {
    let host = Host::new(cordon_examples::config()?);
    let address = cordon_examples::address()?;

    // Describing starts nothing that stays: a VMM that forks does this before it forks.
    let description = host.describe(address)?;
    println!("{address}: class {:06x}", description.identity.class);

    // The container has the guest's memory; a guest with a companion uses DmaMode::Companion.
    let container = Arc::new(Container::new(DmaMode::Direct));
    let function = host.attach(address, &container, None)?;
    let mut ids = [0; 4];
    function.config_read(0, &mut ids)?;
    let [vendor, device] = [[ids[0], ids[1]], [ids[2], ids[3]]].map(u16::from_le_bytes);
    println!("{}: {vendor:04x}:{device:04x}, process {}", function.info().name, function.pid());

    host.detach(&function);
    Ok(())
}
