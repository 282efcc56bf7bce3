//! Maps a BAR window of the probe device, has it fire an interrupt through the window, and takes the
//! interrupt from an event: neither passes through this program's side of any call.
#![expect(clippy::print_stdout, reason = "an example for a terminal")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{
    Container, Deadline, DmaMode, Event, Host, InterruptIndex, PassthroughDevice as _,
};

fn main() -> Result<(), Box<dyn Error>> {
    let host = Host::new(cordon_examples::config()?);
    let container = Arc::new(Container::new(DmaMode::Direct));
    let function = host.attach(cordon_examples::address()?, &container, None)?;

    // A window keeps its address while the device goes and comes back: give it to a hypervisor.
    let windows = function.map_windows()?;
    let window = windows.iter().find(|one| (one.bar, one.offset) == (0, 0));
    let registers = window.ok_or("BAR 0 has no window")?.window();
    println!("BAR 0: {} bytes at {:#x}", registers.length(), registers.address());

    // The process that serves the function signals the event itself.
    let event = Event::new()?;
    let signallers = vec![Some(event.signaller()?)];
    let assign = InterruptSetup::Assign { start: 0, signallers };
    function.set_interrupts(InterruptIndex::Msix, assign)?;

    // The probe's registers: which vector, how often, and a sequence number that starts it.
    registers.write(0x64, 0u32)?;
    registers.write(0x68, 1u32)?;
    registers.store_u32(0x6c, 1)?;
    if !event.wait(Deadline::after(Duration::from_secs(5)))? {
        return Err("no interrupt came".into());
    }
    println!("vector 0 was signalled");

    host.detach(&function);
    Ok(())
}
