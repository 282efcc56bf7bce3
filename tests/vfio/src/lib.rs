//! A Linux host with kernel VFIO, inside of QEMU: what passes real kernel devices on runs there as it would on a
//! machine of its own.
//!
//! The machine is a PC with an emulated IOMMU (`intel-iommu`), under TCG, with Debian's cloud kernel and its VFIO
//! modules, which `cargo xtask guest --prepare` fetches. Its devices sit behind root ports of their own, in IOMMU groups,
//! and are bound to `vfio-pci`. It has no other file than what is packed for it, and everything in it runs as root unless
//! a step says otherwise. A boot takes 5 to 10 s on an idle processor, so checks share one.
//!
//! # How to run a command in it
//!
//! By hand, with the programs of a debug build, and the command's exit status as its own:
//!
//! ```text
//! cargo xtask guest --vfio cordon doctor
//! cargo xtask guest --vfio --emulate=nvme,edu,igb --with=sandbox-probe cordon demo --json
//! ```
//!
//! That builds every program first. What is built already is run by `target/debug/vfio-run --prepared=target/guest`, with
//! the same options: see its `--help`. `--emulate` names the devices, `nvme` unless said. The first is 0000:01:00.0, what
//! follows has the next bus; `nvme-pair` and `e1000-pair` are two functions of one IOMMU
//! group, `igb` two of a group each. Programs of ours
//! are found by their names; another one is given by its path. What the first one starts is packed by `--with`;
//! `cordon`, `device-proc`, `dext-sim` and `sandbox-probe` always are, as `/bin/NAME`.
//!
//! From a suite, several steps in one boot:
//!
//! ```text
//! let mut machine = Machine::new(machine::prepared());
//! let nvme = machine.add(&Emulated::Nvme { bytes: 64 << 20 });
//! machine.program(&program("cordon"))?;
//! machine.program(&program("device-proc"))?;
//! machine.step(Step::new("demo", "/bin/cordon").arguments(["demo", "--vfio", &nvme[0]]));
//! let ran = machine.run(&program("vfio-init"), Duration::from_secs(120), |report| …)?;
//! assert!(ran.step("demo").unwrap().succeeded(), "{ran}");
//! ```
//!
//! # Inside
//!
//! [`script`] is what the init program (`vfio-init`) is told and what it reports; [`pack`] makes the initramfs;
//! [`machine`] is QEMU. The init moves its root before anything runs, since a process can only give itself an empty root
//! if its own is not the kernel's first one.

#![cfg(target_os = "linux")]

pub mod binding;
pub mod checks;
pub mod machine;
pub mod pack;
pub mod script;

pub use machine::{Emulated, Machine, Ran};
pub use script::{Descriptor, Report, Step};
