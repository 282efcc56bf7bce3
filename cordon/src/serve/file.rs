//! `cordon serve --config FILE`: the same that the command line says, in TOML, for many devices.
//! docs/config.md has every key.
//!
//! An unknown key, a value that cannot be and a key that is missing are errors with file, line, key and
//! reason.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use ipc::PciAddress;
use serde::de::{Deserialize, Deserializer, Error as _};
use toml::Spanned;

use super::options::{CompanionLayout, Dma, Windows};
use crate::Failure;
use crate::limits::MAX_CONFIG;
use crate::target::Named;

/// A value that is written as on the command line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// One of the values that an option has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<T>(pub(super) T);

impl<'de, T: ValueEnum> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        T::from_str(&text, false).map(Self).map_err(|_| {
            let possible = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let names: Vec<String> =
                possible.map(|value| format!("'{}'", value.get_name())).collect();
            D::Error::custom(format!("'{text}' is none of {}", names.join(", ")))
        })
    }
}

/// Permission bits in octal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode(pub(super) u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        super::options::mode(text).map(Self)
    }
}

/// All of it.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct File {
    pub(super) dext: Option<PathBuf>,
    pub(super) device_proc: Option<PathBuf>,
    pub(super) windows: Option<Choice<Windows>>,
    pub(super) dma: Option<Choice<Dma>>,
    pub(super) sealed_memory: bool,
    pub(super) standby: bool,
    pub(super) json: bool,
    pub(super) exit_when_given_up: bool,
    pub(super) control: Option<PathBuf>,
    pub(super) socket_dir: Option<PathBuf>,
    pub(super) socket_mode: Option<Text<Mode>>,
    pub(super) socket_group: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    #[serde(rename = "device")]
    pub(super) devices: Vec<Spanned<Device>>,
}

/// A function, or every function of a device.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Device {
    pub(super) address: Text<Named>,
    pub(super) socket: Option<PathBuf>,
    pub(super) fd_name: Option<String>,
    pub(super) dma: Option<Choice<Dma>>,
    pub(super) companion: Option<Companion>,
}

/// The companion of a function.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Companion {
    pub(super) guest: Text<PciAddress>,
    pub(super) socket: Option<PathBuf>,
    pub(super) fd_name: Option<String>,
    pub(super) layout: Option<Choice<CompanionLayout>>,
    #[serde(default)]
    pub(super) entries: u32,
}

/// A file that was read, and where what is in it.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) file: File,
    path: PathBuf,
    text: String,
}

impl Read {
    /// Reads a file of at most [`MAX_CONFIG`] bytes.
    pub(super) fn of(path: &Path) -> Result<Self, Failure> {
        let text = bounded(path).map_err(|why| format!("cannot read {}: {why}", path.display()))?;
        let parsed = toml::from_str::<File>(&text);
        let mut read = Self { file: File::default(), path: path.to_owned(), text };
        match parsed {
            Ok(file) => {
                read.file = file;
                Ok(read)
            }
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                let key = read.key(at).map_or_else(String::new, |key| format!("{key}: "));
                Err(read.error(at, &format!("{key}{}", error.message().replace('\n', " "))))
            }
        }
    }

    /// An error at this byte of the file.
    pub(super) fn error(&self, at: usize, why: &str) -> Failure {
        let before = self.text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        format!("{}:{}: {why}", self.path.display(), before + 1).into()
    }

    /// The key of the line that this byte is in, if it has one.
    fn key(&self, at: usize) -> Option<&str> {
        let start = self.text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
        let line = self.text[start..].lines().next()?;
        let key = line.split_once('=')?.0.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (!key.is_empty() && key.chars().all(plain)).then_some(key)
    }
}

fn bounded(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let taken = file.take(MAX_CONFIG + 1).read_to_string(&mut text);
    match taken.map_err(|error| error.to_string())? {
        length if length as u64 > MAX_CONFIG => Err(format!("it has more than {MAX_CONFIG} bytes")),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Read, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let here = format!("{}/", folder.path().display());
        Read::of(&path).map_err(|error| error.to_string().replace(&here, ""))
    }

    #[test]
    fn what_is_wrong_is_told_with_file_line_key_and_reason() {
        let device = "dext = 'iokit'\n[[device]]\n";
        for (text, says) in [
            (
                "dext = 'iokit'\nsocketdir = '/x'\n",
                "c.toml:2: socketdir: unknown field `socketdir`",
            ),
            ("standby = 'yes'\n", "c.toml:1: standby: invalid type: string \"yes\""),
            ("dma = 'indirect'\n", "c.toml:1: dma: 'indirect' is none of 'direct', 'companion'"),
            ("socket-mode = '999'\n", "c.toml:1: socket-mode: "),
            ("socket-mode = '1777'\n", "000 to 777 is expected"),
            ("uid = -1\n", "c.toml:1: uid: invalid value"),
            ("dext = \n", "c.toml:1: dext: "),
            (&format!("{device}address = 'banana'\n"), "c.toml:3: address: 'banana' is neither"),
            (&format!("{device}socket = '/x'\n"), "c.toml:2: missing field `address`"),
            (
                &format!("{device}address = '01:00.0'\nbus = 1\n"),
                "c.toml:4: bus: unknown field `bus`, expected one of `address`",
            ),
            (
                &format!("{device}address = '01:00.0'\n[device.companion]\nguest = '5'\n"),
                "c.toml:5: guest: '5' is not a PCI address",
            ),
            ("[device]\naddress = '01:00.0'\n", "invalid type: map, expected a sequence"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text:?} is not told as {says:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let error = Read::of(Path::new("/no/such.toml")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /no/such.toml: No such file"), "{error}");
        let long = format!("# {}", "x".repeat(usize::try_from(MAX_CONFIG).unwrap()));
        assert!(read(&long).unwrap_err().contains("has more than 1048576 bytes"));
    }

    #[test]
    fn every_key_is_read() {
        let read = read(include_str!("../../../packaging/serve.toml")).unwrap();
        let File { dext, device_proc, windows, dma, control, socket_dir, .. } = &read.file;
        assert!([dext, device_proc, control, socket_dir].iter().all(|path| path.is_some()));
        assert!(windows.is_some() && dma.is_some());
        let File { socket_mode, socket_group, uid, gid, devices, .. } = &read.file;
        assert_eq!(socket_mode.unwrap().0.0, 0o660);
        assert!([socket_group, uid, gid].iter().all(|number| number.is_some()));
        assert!(read.file.standby && read.file.json && read.file.sealed_memory);
        assert!(read.file.exit_when_given_up);
        let addresses: Vec<String> =
            devices.iter().map(|one| one.as_ref().address.0.to_string()).collect();
        assert_eq!(addresses, ["01:00.0", "02:00", "03:00.0", "04:00.0"]);
        let companion = devices[2].as_ref().companion.as_ref().unwrap();
        assert_eq!(companion.entries, 4096);
        assert!(companion.layout.is_some() && companion.socket.is_some());
        assert!(devices[0].as_ref().socket.is_some() && devices[3].as_ref().fd_name.is_some());
    }
}
