//! What a connection process says of windows is not believed.

use std::sync::Arc;

use cordon_backend::{Backend as _, Source};
use cordon_tests::{Vmm, eventually};
use cordon_vmm::child::{Launch, LaunchError, Process, Start};
use cordon_vmm::{AttachError, DmaMode, HostConfig};
use device_proc::in_process::fake::{Fake, FakeFunction};

use crate::at;
use crate::launch::InProcess;

/// Runs connection processes over one host and function processes over another: what the one sees of
/// a function is not what the other does.
#[derive(Debug)]
struct TwoHosts {
    connection: InProcess,
    function: InProcess,
}

impl Launch for TwoHosts {
    fn launch(&self, start: &Start<'_>) -> Result<Box<dyn Process>, LaunchError> {
        let role = start.arguments.first().and_then(|role| role.to_str());
        match role {
            Some("connection") => self.connection.launch(start),
            _ => self.function.launch(start),
        }
    }
}

/// Attaches a function that the connection process sees changed by `lie`.
fn attach(lie: impl FnOnce(&mut FakeFunction)) -> (Result<(), AttachError>, Fake) {
    let (honest, mut lying) = (FakeFunction::at(at()), FakeFunction::at(at()));
    lie(&mut lying);
    let [honest, lying] = [honest, lying].map(|function| Fake::new([function]).unwrap());
    // A function process needs somebody who holds the claim.
    let holder = honest.process();
    let mut group = holder.open_group(at(), Source::Own).unwrap();
    group.functions[0].claim().unwrap();
    let [connection, function] = [&lying, &honest].map(|fake| InProcess::over(fake.clone()));
    let launch: Arc<dyn Launch> = Arc::new(TwoHosts { connection, function });
    let config = HostConfig::new("/nonexistent/device-proc", "sim:/nonexistent/dext")
        .with_strict(false)
        .with_launch(launch);
    let vmm = Vmm::new(config, DmaMode::Direct);
    let attached = vmm.host.attach(at(), &vmm.container, None);
    (attached.map(|function| vmm.host.detach(&function)), lying)
}

#[test]
fn windows_that_both_processes_agree_on_are_the_guests() {
    attach(|_| {}).0.unwrap();
}

#[test]
fn windows_over_the_msix_structures_of_the_function_process_are_refused_and_the_claim_is_undone() {
    // It sees no MSI-X capability, and so offers all of BAR 0.
    let (attached, fake) = attach(|function| function.vectors = 0);
    let said = attached.unwrap_err().to_string();
    assert!(said.contains("01:00.0") && said.contains("BAR 0"), "{said}");
    assert!(said.contains("Window 0 covers MSI-X structures"), "{said}");
    assert!(eventually(|| !fake.is_claimed(at())));
}

#[test]
fn windows_past_what_the_function_process_sees_of_a_bar_are_refused() {
    let (attached, fake) = attach(|function| {
        if let Some(bar) = &mut function.bars[2] {
            bar.size *= 2;
        }
    });
    let said = attached.unwrap_err().to_string();
    assert!(said.contains("01:00.0") && said.contains("found"), "{said}");
    assert!(eventually(|| !fake.is_claimed(at())));
}

#[test]
fn windows_that_are_no_pages_of_the_host_are_refused() {
    let (attached, fake) = attach(|function| function.window_granule = 512);
    let said = attached.unwrap_err().to_string();
    assert!(said.contains("01:00.0") && said.contains("whole granules"), "{said}");
    assert!(eventually(|| !fake.is_claimed(at())));
}
