//! Has the function process killed at the third BAR write, and shows that whoever writes does not
//! notice: what a test of a VMM does with a fault plan.
#![expect(clippy::print_stdout, reason = "an example for a terminal")]

use std::error::Error;
use std::sync::Arc;

use cordon_vmm::faults::{FaultPlan, Faults};
use cordon_vmm::{Container, DmaMode, Host, PassthroughDevice as _};

fn main() -> Result<(), Box<dyn Error>> {
    let address = cordon_examples::address()?;
    let kill = "function,request=BarWrite,nth=3,when=during,kill".parse()?;
    let faults = Faults::new(FaultPlan { faults: vec![kill] })?;
    let host = Host::new(cordon_examples::config()?.with_faults(Some(Arc::clone(&faults))));
    let container = Arc::new(Container::new(DmaMode::Direct));
    let function = host.attach(address, &container, None)?;
    let before = function.pid();

    // Scratch registers of the probe device.
    for number in 0..6u32 {
        let at = 0x10 + 4 * u64::from(number);
        function.bar_write(0, at, &number.to_le_bytes())?;
        let mut back = [0; 4];
        function.bar_read(0, at, &mut back)?;
        if u32::from_le_bytes(back) != number {
            return Err(format!("register {at:#x} was lost").into());
        }
    }
    for report in faults.report() {
        let pid = report.fired.ok_or("the fault did not fire")?;
        println!("{}: struck process {pid}", report.fault);
    }
    let [took] = function.recoveries()[..] else {
        return Err("the process was not replaced once".into());
    };
    println!("process {before} was replaced by {} in {took:?}; nothing was lost", function.pid());

    host.detach(&function);
    Ok(())
}
