//! What a confined process finds when it opens every function: it has a deadline, so that a dext that
//! hangs is a line and not the end of doctor.

use std::collections::BTreeMap;

use cordon_vmm::HostConfig;
use cordon_vmm::listing::Lister;
use ipc::wire::listing::Function;

use super::line::Line;
use crate::output::Sandbox;

/// How the dext was looked at.
pub(super) enum Listing {
    /// Nobody said where it is.
    NotAsked,
    /// There is no program to ask it by.
    NoProgram,
    /// A lister did not become ready, for this reason.
    Failed(String),
    /// It offers these.
    Found(Found),
}

/// What was found.
pub(super) struct Found {
    functions: Vec<Function>,
    /// The first four bytes of each one's config space; `None` where they cannot be read.
    ids: Vec<Option<[u8; 4]>>,
    confined_by: String,
}

/// Starts a lister.
pub(super) fn list(config: &HostConfig) -> Listing {
    let listed = Lister::start(config).map_err(|death| death.to_string()).and_then(|lister| {
        let functions = lister.functions().map_err(|error| error.to_string())?;
        let ids = (0..functions.len()).map(|number| {
            let config = lister.config(number).ok()?;
            config.first_chunk().copied()
        });
        let ids = ids.collect();
        let confined_by = Sandbox::from(lister.sandbox()).summary();
        Ok(Found { functions, ids, confined_by })
    });
    match listed {
        Ok(found) => Listing::Found(found),
        Err(why) => Listing::Failed(why),
    }
}

const NAME_IT: &str = "name it by --dext (iokit on a Mac, vfio for Linux's VFIO)";
const FIRST: &str = "see the line above about the list of functions first";

/// The lines that need an open dext.
pub(super) fn lines(listing: &Listing, is_vfio: bool) -> Vec<Line> {
    vec![answers(listing, is_vfio), ids(listing), addresses(listing)]
}

fn answers(listing: &Listing, is_vfio: bool) -> Line {
    let check = if is_vfio { "functions are listed" } else { "the dext answers" };
    match listing {
        Listing::NotAsked => Line::unknown(check, "no dext was named: nothing was opened", NAME_IT),
        Listing::NoProgram => {
            Line::unknown(check, "nothing was opened", "see the line about the program first")
        }
        Listing::Failed(why) if is_vfio => {
            Line::missing(check, why, "see the lines about VFIO and about the sandbox first")
        }
        Listing::Failed(why) => Line::missing(check, why, cure(why)),
        Listing::Found(found) if found.functions.is_empty() && is_vfio => {
            Line::missing(check, "VFIO has no function", "see the line about VFIO's functions")
        }
        Listing::Found(found) if found.functions.is_empty() => Line::missing(
            check,
            "it offers no function",
            "connect the device, and see which devices the extension is for",
        ),
        Listing::Found(found) => {
            let (count, by) = (found.functions.len(), &found.confined_by);
            Line::ok(
                check,
                format!("a confined process lists {count} functions; it is confined by: {by}"),
            )
        }
    }
}

/// What helps against a refusal, by the code in it.
fn cure(why: &str) -> &'static str {
    if why.contains("0xe00002e2") {
        "sign device-proc with com.apple.developer.driverkit.userclient-access for the dext's bundle \
         identifier (packaging/macos/sign.sh --dext-bundle-id)"
    } else if why.contains("0xe00002bc") {
        "the kernel refused before the dext was asked, which is not the dext's doing: restart the Mac, and \
         look for 'userclient-access' in the kernel's log"
    } else if why.contains("time") || why.contains("overdue") || why.contains("did not") {
        "the dext hangs: disconnect the device, end the dext's process, connect it again; if that does not \
         help, restart"
    } else {
        "is the extension active, and the device connected?"
    }
}

/// A device that a reset lost answers with these in place of its ids, and one that is gone with ones.
fn ids(listing: &Listing) -> Line {
    let check = "devices answer";
    let Listing::Found(found) = listing else {
        return Line::unknown(check, "no config space was read", FIRST);
    };
    let (mut lost, mut unread) = (Vec::new(), Vec::new());
    for (function, ids) in found.functions.iter().zip(&found.ids) {
        let address = function.identity.address.to_string();
        match ids {
            Some([0x01, 0x00, 0xff, 0xff] | [0xff, 0xff, 0xff, 0xff]) => lost.push(address),
            Some(_) => {}
            None => unread.push(address),
        }
    }
    if !lost.is_empty() {
        return Line::missing(
            check,
            format!("{} read 0xffff0001 or all ones in place of ids", lost.join(", ")),
            "cycle the power of the device or its enclosure: it did not survive a reset, or lost its link",
        );
    }
    if !unread.is_empty() || found.ids.is_empty() {
        let found = format!("config space of {} of them could not be read", unread.len());
        return Line::unknown(check, found, FIRST);
    }
    Line::ok(check, format!("{} have their ids", found.ids.len()))
}

fn addresses(listing: &Listing) -> Line {
    let check = "addresses are unique";
    let Listing::Found(found) = listing else {
        return Line::unknown(check, "no addresses are known", FIRST);
    };
    let mut by_address: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for function in &found.functions {
        let root = function.root_bridge.as_ref().map_or("?".to_owned(), ToString::to_string);
        by_address.entry(function.identity.address).or_default().push(root);
    }
    let several: Vec<_> = by_address.iter().filter(|(_, roots)| roots.len() > 1).collect();
    let Some((_, roots)) = several.first() else {
        return match by_address.len() {
            0 => Line::unknown(check, "there is no function", FIRST),
            count => Line::ok(check, format!("{count} addresses, a function each")),
        };
    };
    let said: Vec<String> = several
        .iter()
        .map(|(address, roots)| format!("{address} is beneath {}", roots.join(" and ")))
        .collect();
    let cure = format!("name the root bridge with the dext, as in --dext=iokit@{}", roots[0]);
    Line::missing(check, said.join("; "), cure)
}

#[cfg(test)]
mod tests {
    use ipc::wire::common::Identity;

    use super::super::line::State;
    use super::*;

    fn found(ids: Option<[u8; 4]>) -> Listing {
        let address = "01:00.0".parse().unwrap();
        let function = Function {
            identity: Identity { address, vendor: 0x10de, device: 0x2b85, class: 0x30000 },
            root_bridge: None,
            bars: [None; 6],
            msi_vectors: 0,
            msix: None,
            claimed: false,
            clients: Vec::new(),
        };
        let (functions, ids) = (vec![function], vec![ids]);
        Listing::Found(Found { functions, ids, confined_by: String::new() })
    }

    #[test]
    fn a_device_that_a_reset_lost_needs_its_power_cycled() {
        for lost in [[0x01, 0x00, 0xff, 0xff], [0xff; 4]] {
            let line = ids(&found(Some(lost)));
            assert_eq!(line.state, State::Missing);
            assert!(
                line.found.contains("01:00.0") && line.cure.unwrap().contains("cycle the power")
            );
        }
        assert_eq!(ids(&found(Some([0xde, 0x10, 0x85, 0x2b]))).state, State::Ok);
        assert_eq!(ids(&found(None)).state, State::Unknown);
        assert_eq!(ids(&Listing::NotAsked).state, State::Unknown);
        assert_eq!(ids(&Listing::Failed("gone".to_owned())).state, State::Unknown);
    }
}
