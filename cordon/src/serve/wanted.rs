//! The functions that the command line and the config file name, and where each is to be served: checked
//! as far as that goes without a dext, then made functions of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use cordon_vmm::companion::Layout;
use cordon_vmm::{CompanionConfig, DmaMode};
use ipc::PciAddress;

use super::file::{Companion, Device, Read};
use super::inherited::Inherited;
use super::options::{CompanionLayout, Dma, ServeOptions};
use super::passed::{self, Passed};
use super::settings::{FunctionSettings, Place, missing};
use crate::host::Host;
use crate::offered::offered;
use crate::target::{Named, Target};
use crate::vfio_fds::{self, Files, VfioFds};
use crate::{Common, Failure, sys};

/// Where a target is to be served, as it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Path(PathBuf),
    Folder(PathBuf),
    Descriptor(RawFd),
    /// By a socket that a service manager made, of this name, or as [`passed`] finds it.
    Passed(Option<String>),
}

/// A target, before it is known which functions it is.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    target: Target,
    /// Whether it says that it is of Linux's VFIO.
    is_vfio: bool,
    at: At,
    dma: DmaMode,
    companion: Option<(CompanionConfig, At)>,
}

/// What goes for every device that does not say its own.
#[derive(Debug)]
struct Defaults {
    dma: Dma,
    at: At,
}

/// All targets, those of the file first.
pub(super) fn wanted(options: &ServeOptions, file: Option<&Read>) -> Result<Vec<Wanted>, Failure> {
    let of_file = file.map(|read| &read.file);
    let folder = of_file.and_then(|file| file.socket_dir.clone());
    let folder = options.socket_dir.clone().or(folder);
    let dma = of_file.and_then(|file| file.dma).map(|choice| choice.0);
    let defaults = Defaults {
        dma: options.dma.or(dma).unwrap_or(Dma::Direct),
        at: folder.map_or(At::Passed(None), At::Folder),
    };
    let mut wanted = Vec::new();
    for device in file.iter().flat_map(|read| &read.file.devices) {
        let one = of_table(device.as_ref(), &defaults);
        let one = one.and_then(|one| one.check().map(|()| one));
        wanted.push(one.map_err(|why| match file {
            Some(read) => read.error(device.span().start, &why),
            None => why.into(),
        })?);
    }
    let of_flags = of_flags(options, &defaults)?;
    of_flags.iter().try_for_each(Wanted::check)?;
    wanted.extend(of_flags);
    let mut named = BTreeSet::new();
    let functions = wanted.iter().filter_map(|one| match one.target {
        Target::Function(address) => Some(address),
        Target::Device(_) => None,
    });
    for address in functions {
        if !named.insert(address) {
            return Err(twice(address));
        }
    }
    if wanted.is_empty() {
        return Err(missing(
            "a function to serve: --device <BB:DD[.F]>, or [[device]] in the file,",
        ));
    }
    Ok(wanted)
}

fn twice(address: PciAddress) -> Failure {
    format!("duplicate owner for host PCI {address}: it is named twice").into()
}

fn mode(dma: Dma) -> DmaMode {
    match dma {
        Dma::Direct => DmaMode::Direct,
        Dma::Companion => DmaMode::Companion,
    }
}

fn layout(layout: Option<CompanionLayout>) -> Layout {
    match layout.unwrap_or(CompanionLayout::Packed32) {
        CompanionLayout::Packed32 => Layout::Packed32,
        CompanionLayout::Packed64 => Layout::Packed64,
    }
}

/// One `[[device]]` of the file.
fn of_table(device: &Device, defaults: &Defaults) -> Result<Wanted, String> {
    let place = |socket: &Option<PathBuf>, name: &Option<String>| match (socket, name) {
        (Some(_), Some(_)) => Err("socket and fd-name exclude each other".to_owned()),
        (Some(path), None) => Ok(At::Path(path.clone())),
        (None, Some(name)) => Ok(At::Passed(Some(name.clone()))),
        (None, None) => Ok(defaults.at.clone()),
    };
    let at = place(&device.socket, &device.fd_name)?;
    let companion = |one: &Companion| {
        let (guest, max_entries) = (one.guest.0, one.entries);
        let layout = layout(one.layout.map(|choice| choice.0));
        let config = CompanionConfig { guest, layout, max_entries };
        Ok::<_, String>((config, place(&one.socket, &one.fd_name)?))
    };
    let companion = device.companion.as_ref().map(companion).transpose()?;
    let dma = mode(device.dma.map_or(defaults.dma, |choice| choice.0));
    let Named { target, is_vfio } = device.address.0;
    Ok(Wanted { target, is_vfio, at, dma, companion })
}

/// What the command line names: one of each that belongs to a device.
fn of_flags(options: &ServeOptions, defaults: &Defaults) -> Result<Vec<Wanted>, String> {
    let devices = options.devices.len();
    let (sockets, fds) = (&options.sockets, &options.fds);
    let places: Vec<At> = match (sockets.is_empty(), fds.is_empty()) {
        (true, true) => vec![defaults.at.clone(); devices],
        (_, true) => sockets.iter().cloned().map(At::Path).collect(),
        (_, false) => fds.iter().copied().map(At::Descriptor).collect(),
    };
    if devices != places.len() {
        let of = if fds.is_empty() { "--socket" } else { "--fd" };
        return Err(format!("{devices} --device but {} {of}: one each", places.len()));
    }
    let (companions, guests) = (options.companions.len(), options.guests.len());
    // By themselves they have no place unless there is a rule for one.
    let named = companions > 0 || !sockets.is_empty() || !fds.is_empty();
    if (companions > 0 || guests > 0) && (guests != devices || (named && companions != devices)) {
        return Err(format!(
            "{devices} --device, {companions} --companion-socket, {guests} --companion-guest: \
             one each"
        ));
    }
    let layout = layout(options.companion_layout);
    let max_entries = options.companion_entries;
    let companion = |number: usize, at: &At| {
        let guest = *options.guests.get(number)?;
        let beside = options.companions.get(number).cloned().map(At::Path);
        let at = beside.unwrap_or_else(|| at.clone());
        Some((CompanionConfig { guest, layout, max_entries }, at))
    };
    let one = |(number, (&named, at)): (usize, (&Named, At))| {
        let companion = companion(number, &at);
        let Named { target, is_vfio } = named;
        Wanted { target, is_vfio, at, dma: mode(defaults.dma), companion }
    };
    Ok(options.devices.iter().zip(places).enumerate().map(one).collect())
}

impl Wanted {
    /// Whether it says that it is of Linux's VFIO.
    pub(super) fn is_vfio(&self) -> bool {
        self.is_vfio
    }

    /// Whether it makes sense in itself.
    fn check(&self) -> Result<(), String> {
        let Self { target, at, dma, companion, .. } = self;
        if companion.is_some() && *dma == DmaMode::Direct {
            return Err(format!(
                "{target}: its companion (--companion-socket) needs --dma companion"
            ));
        }
        if let Target::Function(_) = target {
            return Ok(());
        }
        if !matches!(at, At::Folder(_) | At::Passed(None)) {
            return Err(format!(
                "{target} is a whole device, each of whose functions has a socket of its own: \
                 --socket-dir says in which folder"
            ));
        }
        if companion.is_some() {
            return Err(format!(
                "{target} is a whole device: a companion belongs to a function, BB:DD.F"
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Wanted {
    /// Where it is served, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.target, self.at)?;
        if let Some((config, at)) = &self.companion {
            write!(f, ", its companion for {} {at}", config.guest)?;
        }
        Ok(())
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "at {}", path.display()),
            Self::Folder(folder) => write!(f, "in {}", folder.display()),
            Self::Descriptor(number) => write!(f, "by descriptor {number}"),
            Self::Passed(Some(name)) => write!(f, "by the socket '{name}' of a service manager"),
            Self::Passed(None) => f.write_str("by a socket of a service manager"),
        }
    }
}

/// Makes functions of targets, and takes the sockets that were made before, and files of VFIO's.
pub(super) fn resolve(
    wanted: &[Wanted],
    common: &Common,
    (vfio_fds, iommufds): (&[VfioFds], &[RawFd]),
) -> Result<(Vec<FunctionSettings>, Vec<Files>), Failure> {
    // Before anything is opened here: see `Inherited`.
    let mut passed = Passed::take()?;
    let mut taken = passed.numbers();
    let mut files = passed.files()?;
    files.extend(vfio_fds::take(vfio_fds, iommufds, &mut taken)?);
    let mut inherited = Vec::new();
    for one in wanted {
        let At::Descriptor(number) = one.at else {
            inherited.push(None);
            continue;
        };
        if !taken.insert(number) {
            let twice = format!("descriptor {number} is named twice: one socket for each function");
            return Err(twice.into());
        }
        inherited.push(Some(Place::Inherited(Inherited::take(number)?)));
    }
    let whole = wanted.iter().any(|one| matches!(one.target, Target::Device(_)));
    let offered = if whole { offered(common)? } else { Vec::new() };
    // Without a place so far: those that have what is left of the sockets that were passed on.
    let (mut functions, mut known, mut without) = (Vec::new(), BTreeSet::new(), Vec::new());
    for (one, mut its) in wanted.iter().zip(inherited) {
        let of_it = one.target.functions(&offered);
        for address in of_it.map_err(|why| format!("{why}, of {}", common.dext()))? {
            if !known.insert(address) {
                return Err(twice(address));
            }
            let place = match its.take() {
                Some(place) => Some(place),
                None => place(&one.at, address, "", &mut passed)?,
            };
            let companion = match &one.companion {
                None => None,
                Some((config, at)) => {
                    let beside = place_of_companion(at, address, &mut passed)?;
                    Some((*config, beside))
                }
            };
            if place.is_none() {
                without.push(functions.len());
            }
            functions.push((address, place, one.dma, companion));
        }
    }
    if !without.is_empty() && passed.is_empty() {
        return Err(missing(
            "where to serve: --socket <PATH>, --fd <NUMBER> or --socket-dir <DIR>",
        ));
    }
    for (at, socket) in without.iter().zip(passed.rest(without.len())?) {
        functions[*at].1 = Some(Place::Inherited(socket));
    }
    let groups = if common.is_vfio() { groups(sys::pci_functions()) } else { BTreeMap::new() };
    let whole = |(address, place, dma, companion): (_, Option<Place>, _, _)| {
        let group = groups.get(&address).copied();
        Some(FunctionSettings { address, place: place?, dma, group, companion })
    };
    let functions: Vec<_> = functions.into_iter().filter_map(whole).collect();
    one_way(&functions)?;
    Ok((functions, files))
}

/// The IOMMU group of each function that has one, as far as that is known.
fn groups(host: Host) -> BTreeMap<PciAddress, u32> {
    let functions = host.unwrap_or_default().into_iter();
    functions.filter_map(|one| Some((one.address.parse().ok()?, one.iommu_group?))).collect()
}

/// Checks that guest memory is mapped in one way for all functions of an IOMMU group, which reach the same.
fn one_way(functions: &[FunctionSettings]) -> Result<(), Failure> {
    let mut ways = BTreeMap::new();
    for one in functions {
        let Some(group) = one.group else { continue };
        let (first, dma) = *ways.entry(group).or_insert((one.address, one.dma));
        if dma != one.dma {
            let (address, why) = (one.address, "and reach the same memory: they have one --dma");
            return Err(format!("{first} and {address} are of IOMMU group {group}, {why}").into());
        }
    }
    Ok(())
}

/// Where it is to be; `None` when that is by a socket which is not called as it is.
fn place(
    at: &At,
    address: PciAddress,
    part: &str,
    passed: &mut Passed,
) -> Result<Option<Place>, Failure> {
    Ok(match at {
        At::Path(path) => Some(Place::Path(path.clone())),
        At::Folder(folder) => Some(Place::Path(folder.join(format!("{address}{part}.sock")))),
        At::Passed(Some(name)) => {
            let socket = passed.named(name);
            let none =
                || format!("no socket '{name}' was passed on, which is to be that of {address}");
            Some(Place::Inherited(socket.ok_or_else(none)?))
        }
        At::Passed(None) | At::Descriptor(_) => {
            let socket = passed.named(&format!("{}{part}", passed::name(address)));
            socket.map(Place::Inherited)
        }
    })
}

/// The same for its companion, which is given no socket but by its name.
fn place_of_companion(at: &At, address: PciAddress, passed: &mut Passed) -> Result<Place, Failure> {
    let part = "-companion";
    let none = || {
        let name = passed::name(address);
        format!("{address}: its companion has no socket, and none was passed on as '{name}{part}'")
    };
    Ok(place(at, address, part, passed)?.ok_or_else(none)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostFunction;

    fn function(address: &str, dma: DmaMode, group: Option<u32>) -> FunctionSettings {
        let address = address.parse().unwrap();
        let place = Place::Path(PathBuf::from("/tmp/x"));
        FunctionSettings { address, place, dma, group, companion: None }
    }

    #[test]
    fn functions_of_a_group_have_one_way_to_their_memory() {
        use DmaMode::{Companion, Direct};
        let first = function("01:00.0", Direct, Some(3));
        let others =
            [function("01:00.1", Direct, Some(3)), function("02:00.0", Companion, Some(4))];
        let [beside, apart] = others;
        let none = function("03:00.0", Companion, None);
        one_way(&[first, beside, apart, none]).unwrap();
        let both = [function("01:00.0", Direct, Some(3)), function("01:00.1", Companion, Some(3))];
        let refused = one_way(&both).unwrap_err().to_string();
        for part in ["01:00.0", "01:00.1", "IOMMU group 3", "--dma"] {
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn groups_are_those_of_the_host() {
        let function = |address: &str, iommu_group| HostFunction {
            address: address.to_owned(),
            vendor: 1,
            device: 1,
            class: 0,
            driver: None,
            iommu_group,
        };
        let found = groups(Ok(vec![
            function("0000:01:00.0", Some(7)),
            function("0000:02:00.0", None),
            function("banana", Some(8)),
        ]));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("01:00.0".parse().unwrap(), 7)]);
        assert!(groups(Err("no such folder".to_owned())).is_empty());
    }
}
