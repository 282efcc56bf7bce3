//! The adapter to crosvm, as far as it is without crosvm: what its command line takes and refuses, whose child ended, and
//! whether its README names what is there. A crosvm tree builds the rest.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cordon_tests::announce;

#[path = "../../vmm-side/crosvm/src/children.rs"]
mod children;
#[path = "../../vmm-side/crosvm/src/options.rs"]
#[expect(unreachable_pub, reason = "it is public where it belongs")]
mod options;

use options::{CompanionOption, DeviceOption, OptionError, Refused, VmFeatures};

fn adapter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm-side/crosvm")
}

fn read(path: &str) -> String {
    let path = adapter().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_device_is_an_address_with_what_the_guest_sees() {
    announce("a_device_is_an_address_with_what_the_guest_sees");
    let address = |text: &str| text.parse().unwrap();
    let plain = DeviceOption { host: address("01:00.0"), guest: None, companion: None };
    assert_eq!("01:00.0".parse(), Ok(plain.clone()));
    let placed = DeviceOption { guest: Some(address("00:05.0")), ..plain.clone() };
    assert_eq!("01:00.0,guest=00:05.0".parse(), Ok(placed.clone()));
    let companion = Some(CompanionOption { guest: None });
    assert_eq!("01:00.0,companion".parse(), Ok(DeviceOption { companion, ..plain }));
    let companion = Some(CompanionOption { guest: Some(address("00:06.0")) });
    let both = DeviceOption { companion, ..placed };
    assert_eq!("01:00.0,companion=00:06.0,guest=00:05.0".parse(), Ok(both));
    for text in ["01:00.0", "01:00.0,companion", "0001:01:00.0,guest=00:05.0,companion=00:06.0"] {
        let option: DeviceOption = text.parse().unwrap();
        assert_eq!(serde_json::to_value(&option).unwrap(), text);
        assert_eq!(serde_json::from_value::<DeviceOption>(text.into()).unwrap(), option);
    }
    assert!(serde_json::from_value::<DeviceOption>("nvme".into()).is_err());
}

#[test]
fn a_device_that_makes_no_sense_is_refused() {
    announce("a_device_that_makes_no_sense_is_refused");
    let refused = |text: &str| text.parse::<DeviceOption>().unwrap_err();
    for (text, what) in [
        ("", "function of the host"),
        ("nvme", "function of the host"),
        ("01:00.0,guest=", "guest"),
        ("01:00.0,companion=5", "companion"),
    ] {
        assert!(
            matches!(refused(text), OptionError::Address { what: found, .. } if found == what),
            "{text:?}: {:?}",
            refused(text)
        );
    }
    let segment = "0001:00:05.0";
    for key in ["guest", "companion"] {
        let found = refused(&format!("01:00.0,{key}={segment}"));
        assert_eq!(found, OptionError::Segment(segment.parse().unwrap()));
    }
    for key in ["iommu", "", "guest", "iommu=on"] {
        let text = format!("01:00.0,{key}");
        let key = key.split('=').next().unwrap().to_owned();
        assert_eq!(refused(&text), OptionError::Key(key));
    }
    assert_eq!(refused("01:00.0,guest=00:05.0,guest=00:05.0"), OptionError::Twice("guest"));
    assert_eq!(refused("01:00.0,companion,companion=00:05.0"), OptionError::Twice("companion"));
}

#[test]
fn what_frees_or_hides_guest_memory_is_refused() {
    announce("what_frees_or_hides_guest_memory_is_refused");
    let none = VmFeatures::default();
    assert_eq!(none.check(), Ok(()));
    for (features, refused, word) in [
        (VmFeatures { balloon: true, ..none }, Refused::Balloon, "--no-balloon"),
        (VmFeatures { swap: true, ..none }, Refused::Swap, "--swap"),
        (VmFeatures { pmem: true, ..none }, Refused::Pmem, "--pmem"),
        (VmFeatures { restore: true, ..none }, Refused::Restore, "--restore"),
    ] {
        assert_eq!(features.check(), Err(refused));
        let text = refused.to_string();
        assert!(text.starts_with("--cordon-device with ") && text.contains(word), "{text}");
    }
}

#[test]
fn a_child_whose_end_hid_behind_another_is_found_and_left_to_be_reaped() {
    announce("a_child_whose_end_hid_behind_another_is_found_and_left_to_be_reaped");
    let child = |program: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    // Lives until its standard input is closed.
    let mut lives = child("read line");
    let mut ended = child("exit 7");
    let (of_living, of_ended) = (lives.id(), ended.id());
    assert_eq!(children::first_ended([of_living].into_iter()), None);
    // It holds its output until it has ended.
    std::io::copy(ended.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
    let found = || children::first_ended([of_living, of_ended].into_iter());
    while found().is_none() {
        std::thread::yield_now();
    }
    assert_eq!(found(), Some(of_ended));
    assert_eq!(ended.wait().unwrap().code(), Some(7));
    // Reaped it is no child any more, and neither is init.
    assert_eq!(children::first_ended([of_living, of_ended, 1, 0].into_iter()), None);
    drop(lives.stdin.take());
    lives.wait().unwrap();
}

/// The adapter's source files, one after the other.
fn sources() -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(adapter().join("src")).unwrap() {
        all.push_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    all
}

/// What the README's lines call `cordon_crosvm::…` and `cordon.…`.
#[test]
fn the_readme_names_functions_and_types_that_are_there() {
    announce("the_readme_names_functions_and_types_that_are_there");
    let (readme, sources) = (read("README.md"), sources());
    let mut named = BTreeSet::new();
    for part in readme.split("cordon_crosvm::").skip(1) {
        let path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
        let path = part.split(|letter| !path(letter)).next().unwrap();
        named.extend(path.split("::").filter(|word| !word.is_empty()).map(str::to_owned));
    }
    for part in readme.split("cordon.").skip(1) {
        let name = part.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
        named.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
    }
    assert!(named.len() >= 8, "{named:?}");
    for name in ["Cordon", "DeviceOption", "VmFeatures", "create", "attach", "excuses", "check"] {
        assert!(readme.contains(name), "{name} is not in the README");
    }
    for name in named {
        let is_there = ["fn", "struct", "enum", "mod", "type"]
            .iter()
            .any(|kind| sources.contains(&format!("pub {kind} {name}")))
            || sources.split("pub use ").skip(1).any(|line| {
                let line = line.split(';').next().unwrap_or_default();
                line.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == name)
            });
        assert!(is_there, "the README names {name}, which the adapter does not have");
    }
}

/// Each method of `PciDevice` of the crosvm that it was tried on is implemented or argued.
#[test]
fn every_method_of_a_pci_device_is_implemented_or_argued() {
    announce("every_method_of_a_pci_device_is_implemented_or_argued");
    const METHODS: &[&str] = &[
        "debug_label",
        "preferred_address",
        "allocate_address",
        "keep_rds",
        "preferred_irq",
        "assign_irq",
        "allocate_io_bars",
        "allocate_device_bars",
        "get_bar_configuration",
        "register_device_capabilities",
        "get_vm_memory_client",
        "read_config_register",
        "write_config_register",
        "setup_pci_config_mapping",
        "read_virtual_config_register",
        "write_virtual_config_register",
        "read_bar",
        "write_bar",
        "on_device_sandboxed",
        "generate_acpi",
        "generate_acpi_methods",
        "set_gpe",
        "destroy_device",
        "get_removed_children_devices",
        "get_new_pci_bus",
        "configure_bridge_window",
        "set_subordinate_bus",
        "supports_iommu",
        "set_iommu",
        "as_virtio_pci_device",
    ];
    let (argued, function) = (read("src/lib.rs"), read("src/function.rs"));
    for method in METHODS {
        let is_implemented = function.contains(&format!("    fn {method}("));
        let mut rows =
            argued.lines().filter_map(|line| line.strip_prefix("//! | ")?.split('|').next());
        let is_argued = rows.any(|methods| methods.contains(&format!("`{method}`")));
        assert!(
            is_implemented != is_argued,
            "{method}: implemented {is_implemented}, argued {is_argued}"
        );
    }
    for method in ["snapshot", "restore", "sleep", "wake"] {
        assert!(function.contains(&format!("    fn {method}(")), "{method}");
    }
}
