//! The command line: which devices exist and what goes wrong with them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use ipc::{PciAddress, RootBridge};

use crate::faults::Fault;

/// A simulated VFIOUserPCIDriver with simulated PCI devices behind it.
#[derive(Debug, Parser)]
#[command(name = "dext-sim", version, about, after_help = console::exit::HELP)]
pub(crate) struct Options {
    /// Socket that clients connect to.
    #[arg(long)]
    pub(crate) socket: PathBuf,

    /// Socket for tests: one JSON command a line, one JSON answer a line.
    ///
    /// "state" | {"fault": FAULT} | {"raise": {"address": BB:DD.F, "vector": N}} |
    /// {"end": {"address": BB:DD.F, "as": HOW}} | {"return": {"address": BB:DD.F}}
    #[arg(long)]
    pub(crate) control: Option<PathBuf>,

    /// A function and what sits there: BB:DD.F=nvme with the options size=256M, queues=8 and
    /// image=FILE, or BB:DD.F=probe with vectors=32 (0: MSI only), as in 01:00.0=nvme,size=1G,queues=4.
    /// Repeatable; several functions of one BB:DD are one device. With root=NAME it is beneath that root
    /// bridge, and beneath another there may be one at the same address; the control socket then means
    /// the first.
    #[arg(long = "device", required = true, value_name = "BB:DD.F=KIND", value_parser = device())]
    pub(crate) devices: Vec<DeviceSpec>,

    /// How bus addresses come about.
    #[arg(long, value_enum, default_value_t = DartMode::Identity)]
    pub(crate) dart: DartMode,

    /// Something that goes wrong. Repeatable.
    ///
    /// fail:selector=N,nth=K,code=0x…: the K-th call of a selector fails with this code.
    ///
    /// delay:selector=N,nth=K[,calls=M],ms=T: it takes this long, and so do the calls after it, M in all.
    ///
    /// die:selector=N,nth=K: this program dies of it.
    ///
    /// end:selector=N,nth=K,as=HOW[,back=T]: the function that gets it ends for all its clients:
    /// connections stay, every call on them answers one code, what they held is released, and the
    /// service is gone from the registry, for T ms or until the control socket's "return". HOW is
    /// offline (0xe00002d7), no-device (0xe00002c0), not-ready (0xe00002d8), ipc-error (0xe00002bf)
    /// or port-dead (0x10000003).
    ///
    /// drop-notification:nth=K: the K-th completion of WaitInterrupt is lost.
    ///
    /// fragment:nth=K: the K-th DMA registration comes back in pieces.
    ///
    /// cleanup-delay:ms=T: cleaning up after any connection takes this long.
    ///
    /// no-msix: MSI-X cannot be configured.
    #[arg(long = "fault", value_name = "FAULT")]
    pub(crate) faults: Vec<Fault>,

    /// Exit when standard input ends: with a pipe there, this program does not outlive whoever
    /// started it.
    #[arg(long)]
    pub(crate) exit_with_stdin: bool,
}

/// How the DART chooses bus addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DartMode {
    /// Bus address == key, no platform limits: for stock guests.
    Identity,
    /// Arbitrary, unaligned bus addresses, 1.5 GiB and 65,536 mappings: as on hardware.
    Strict,
}

/// One function on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceSpec {
    pub(crate) address: PciAddress,
    pub(crate) root_bridge: Option<RootBridge>,
    pub(crate) kind: DeviceKind,
}

/// What sits at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// An NVMe controller with one namespace.
    Nvme {
        /// Bytes, when there is no image.
        size: u64,
        /// I/O queue pairs; one MSI-X vector each, and one for the admin queue.
        queues: u16,
        /// The disk image.
        image: Option<PathBuf>,
    },
    /// The probe device.
    Probe {
        /// MSI-X vectors; 0 for a device that has MSI only.
        vectors: u16,
    },
}

/// A device description that makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("'{0}' is not of the form BB:DD.F=KIND[,OPTION=VALUE…]")]
    Form(String),
    #[error(transparent)]
    Address(#[from] ipc::address::AddressError),
    #[error(transparent)]
    RootBridge(#[from] ipc::root_bridge::RootBridgeError),
    #[error("unknown device kind '{0}': nvme or probe")]
    Kind(String),
    #[error("device kind {kind} has no option '{option}'")]
    Option { kind: &'static str, option: String },
    #[error("'{value}' is no value for {option}: {want}")]
    Value { option: &'static str, value: String, want: &'static str },
}

/// An image may be at any path, not only at one that is text.
fn device() -> impl TypedValueParser<Value = DeviceSpec> {
    OsStringValueParser::new().try_map(|text| DeviceSpec::try_from(text.as_os_str()))
}

/// What is before and after the first `byte`.
fn split_once(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|one| *one == byte)?;
    Some((&text[..at], &text[at + 1..]))
}

impl TryFrom<&OsStr> for DeviceSpec {
    type Error = SpecError;

    fn try_from(text: &OsStr) -> Result<Self, SpecError> {
        let form = || SpecError::Form(text.to_string_lossy().into_owned());
        let (address, rest) = split_once(text.as_bytes(), b'=').ok_or_else(form)?;
        let address = String::from_utf8_lossy(address).parse()?;
        let mut parts = rest.split(|byte| *byte == b',');
        let kind = String::from_utf8_lossy(parts.next().unwrap_or_default());
        let mut options = Vec::new();
        for part in parts {
            let (option, value) = split_once(part, b'=').ok_or_else(form)?;
            options.push((String::from_utf8_lossy(option), OsStr::from_bytes(value)));
        }
        let root = options.iter().rfind(|(option, _)| option == "root");
        let root = root.map(|(_, value)| value.to_string_lossy().parse()).transpose()?;
        options.retain(|(option, _)| option != "root");
        let options: Vec<_> =
            options.iter().map(|(option, value)| (option.as_ref(), *value)).collect();
        let kind = match kind.as_ref() {
            "nvme" => nvme(&options)?,
            "probe" => probe(&options)?,
            other => return Err(SpecError::Kind(other.to_owned())),
        };
        Ok(Self { address, root_bridge: root, kind })
    }
}

fn nvme(options: &[(&str, &OsStr)]) -> Result<DeviceKind, SpecError> {
    let (mut size, mut queues, mut image) = (256 << 20, 8, None);
    for &(option, value) in options {
        let number = value.to_string_lossy();
        match option {
            "size" => size = parse_size(&number)?,
            "queues" => queues = parse_count("queues", &number, 64, "1 to 64")?,
            "image" => image = Some(PathBuf::from(value)),
            other => {
                return Err(SpecError::Option { kind: "nvme", option: other.to_owned() });
            }
        }
    }
    Ok(DeviceKind::Nvme { size, queues, image })
}

fn probe(options: &[(&str, &OsStr)]) -> Result<DeviceKind, SpecError> {
    let mut vectors = 32;
    for &(option, value) in options {
        match option {
            "vectors" if value == "0" => vectors = 0,
            "vectors" => {
                vectors = parse_count("vectors", &value.to_string_lossy(), 256, "0 to 256")?;
            }
            other => {
                return Err(SpecError::Option { kind: "probe", option: other.to_owned() });
            }
        }
    }
    Ok(DeviceKind::Probe { vectors })
}

fn parse_count(
    option: &'static str,
    value: &str,
    most: u16,
    want: &'static str,
) -> Result<u16, SpecError> {
    let bad = || SpecError::Value { option, value: value.to_owned(), want };
    value.parse().ok().filter(|count| (1..=most).contains(count)).ok_or_else(bad)
}

/// Bytes with an optional K, M or G.
fn parse_size(value: &str) -> Result<u64, SpecError> {
    let want = "bytes, a multiple of 512 of at least 1M, with K, M or G, at most 64G";
    let bad = || SpecError::Value { option: "size", value: value.to_owned(), want };
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K') => (&value[..value.len() - 1], 10),
        Some(b'M') => (&value[..value.len() - 1], 20),
        Some(b'G') => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let count: u64 = digits.parse().map_err(|_| bad())?;
    let size = count.checked_mul(1 << shift).ok_or_else(bad)?;
    let fits = (1 << 20..=64 << 30).contains(&size) && size.is_multiple_of(512);
    if fits { Ok(size) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &(impl AsRef<OsStr> + ?Sized)) -> Result<DeviceSpec, SpecError> {
        text.as_ref().try_into()
    }

    #[test]
    fn descriptions_are_read() {
        let spec = read("01:00.0=nvme,size=64M,queues=4,image=/x").unwrap();
        let kind = DeviceKind::Nvme { size: 64 << 20, queues: 4, image: Some("/x".into()) };
        let address = "01:00.0".parse().unwrap();
        assert_eq!(spec, DeviceSpec { address, root_bridge: None, kind });
        let spec = read("01:00.0=probe,root=apciec1,vectors=4").unwrap();
        assert_eq!(spec.root_bridge, Some("apciec1".parse().unwrap()));
        assert_eq!(spec.kind, DeviceKind::Probe { vectors: 4 });
        let path = OsStr::from_bytes(b"/\xff=\xfe");
        let mut text = std::ffi::OsString::from("01:00.0=nvme,image=");
        text.push(path);
        let DeviceKind::Nvme { image, .. } = read(&text).unwrap().kind else { panic!("no NVMe") };
        assert_eq!(image.as_deref(), Some(std::path::Path::new(path)));
        let spec = read("02:00.1=probe").unwrap();
        assert_eq!(spec.kind, DeviceKind::Probe { vectors: 32 });
    }

    #[test]
    fn descriptions_that_make_no_sense_are_named() {
        for (text, says) in [
            ("01:00.0", "form"),
            ("1=nvme", "PCI address"),
            ("01:00.0=gpu", "unknown device kind 'gpu'"),
            ("01:00.0=nvme,size=7", "size"),
            ("01:00.0=nvme,size=99999999999G", "size"),
            ("01:00.0=nvme,queues=0", "queues"),
            ("01:00.0=probe,root=", "root bridge"),
            ("01:00.0=probe,queues=1", "no option 'queues'"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
