//! The lines of macOS: what owners of the hardware have met, and what helps.
//!
//! Everything is read from what the system's programs print, so that the lines can be tried, and asked of
//! output that was saved, anywhere. None of it has been seen on a Mac by us: a form that is not understood
//! is *unknown*, never ok.

use std::path::Path;

use super::ioreg::{Node, Tree};
use super::line::Line;
use super::tools::Tools;

/// What the dext's services have as IOUserClass.
const DEXT_CLASS: &str = "VFIOUserPCIDriver";
const ENTITLEMENT: &str = "com.apple.developer.driverkit.userclient-access";
const WHERE_TO_CLICK: &str = "allow it in System Settings > General > Login Items & Extensions > Driver \
    Extensions";
const APPLICATION: &str = "move the application that brings it to /Applications, open it there, and allow \
    the extension in System Settings > General > Login Items & Extensions > Driver Extensions";
const ON_A_MAC: &str = "run it on the Mac";

/// All of them.
pub(super) fn lines(tools: &Tools, program: &Path, bundle_id: Option<&str>) -> Vec<Line> {
    let extensions = tools.run("systemextensionsctl", &["list"]);
    let found = extensions.as_deref().map(|text| Extension::of_dext(text, bundle_id));
    let bundle_id = bundle_id.map(str::to_owned).or_else(|| match &found {
        Ok(extensions) => extensions.first().map(|one| one.bundle_id.clone()),
        Err(_) => None,
    });
    let tree = tools.run("ioreg", &["-l", "-w0"]).map(|text| Tree::parse(&text));
    vec![
        extension(found.map_err(|error| &error[..])),
        signature(tools, program, bundle_id.as_deref()),
        launched(tree.as_ref()),
        bars(tree.as_ref()),
        enclosure(tools),
        stale(tools, tree.as_ref(), bundle_id.as_deref()),
    ]
}

/// A line of `systemextensionsctl list`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extension {
    bundle_id: String,
    /// "activated enabled" and the like.
    state: String,
}

impl Extension {
    /// Those that are the dext, by its identifier or, where nobody says that, by its name.
    fn of_dext(text: &str, bundle_id: Option<&str>) -> Vec<Self> {
        let wanted = |line: &&str| match bundle_id {
            Some(id) => line.split_whitespace().any(|word| word == id),
            None => line.contains(DEXT_CLASS),
        };
        text.lines().filter(wanted).filter_map(Self::parse).collect()
    }

    /// `enabled active team identifier (version) name [state]`, with stars in the first two.
    fn parse(line: &str) -> Option<Self> {
        let (before, state) = line.rsplit_once('[')?;
        let state = state.split(']').next()?.trim().to_owned();
        let words: Vec<&str> = before.split_whitespace().collect();
        let version = words.iter().position(|word| word.starts_with('('))?;
        let bundle_id = (*words.get(version.checked_sub(1)?)?).to_owned();
        Some(Self { bundle_id, state })
    }
}

fn extension(found: Result<Vec<Extension>, &str>) -> Line {
    let check = "the extension is active";
    let found = match found {
        Ok(found) => found,
        Err(why) => return Line::unknown(check, why, ON_A_MAC),
    };
    let Some(first) = found.first() else {
        return Line::missing(check, "systemextensionsctl lists no such extension", APPLICATION);
    };
    if let Some(active) = found.iter().find(|one| one.state == "activated enabled") {
        return Line::ok(check, format!("{} [{}]", active.bundle_id, active.state));
    }
    let said = format!("{} [{}]", first.bundle_id, first.state);
    if first.state.contains("waiting for user") || first.state.contains("disabled") {
        Line::missing(check, said, WHERE_TO_CLICK)
    } else if first.state.contains("reboot") {
        Line::missing(check, said, "restart the Mac, then open the application again")
    } else {
        Line::missing(check, said, APPLICATION)
    }
}

fn signature(tools: &Tools, program: &Path, bundle_id: Option<&str>) -> Line {
    let check = "device-proc may open the dext";
    let shown = program.to_string_lossy();
    let signed = tools.run("codesign", &["-d", "--entitlements", "-", "--xml", &shown]);
    let cure = |id: &str| {
        format!("sign it: packaging/macos/sign.sh --dext-bundle-id {id} (docs/macos.md)")
    };
    let signed = match signed {
        Ok(signed) => signed,
        Err(why) => return Line::unknown(check, why, "sign device-proc, then ask on the Mac"),
    };
    let identifiers = entitled(&signed);
    match (bundle_id, identifiers) {
        (id, None) => Line::missing(
            check,
            format!("its signature has no {ENTITLEMENT}: kIOReturnNotPermitted (0xe00002e2)"),
            cure(id.unwrap_or("<the dext's bundle identifier>")),
        ),
        (None, Some(ids)) => Line::unknown(
            check,
            format!("its signature has {ENTITLEMENT} for {}", ids.join(", ")),
            "compare with the dext's bundle identifier: --dext-bundle-id",
        ),
        (Some(id), Some(ids)) if ids.iter().any(|one| one == id) => {
            Line::ok(check, format!("{ENTITLEMENT} has {id}"))
        }
        (Some(id), Some(ids)) => Line::missing(
            check,
            format!("{ENTITLEMENT} has {}, and the dext is {id}", ids.join(", ")),
            cure(id),
        ),
    }
}

/// The identifiers in the entitlement's array, in the property list that codesign prints.
fn entitled(signed: &str) -> Option<Vec<String>> {
    let (_, after) = signed.split_once(&format!("<key>{ENTITLEMENT}</key>"))?;
    let (_, array) = after.split_once("<array>").filter(|(before, _)| before.trim().is_empty())?;
    let (array, _) = array.split_once("</array>")?;
    let strings = array.split("<string>").skip(1);
    Some(strings.filter_map(|one| one.split("</string>").next()).map(str::to_owned).collect())
}

type Registry<'t> = Result<&'t Tree, &'t String>;

fn is_service(node: &Node) -> bool {
    node.property("IOUserClass") == Some(DEXT_CLASS)
}

fn launched(tree: Registry<'_>) -> Line {
    let check = "the extension runs";
    let tree = match tree {
        Ok(tree) if tree.nodes().next().is_some() => tree,
        Ok(_) => return Line::unknown(check, "ioreg printed no registry", ON_A_MAC),
        Err(why) => return Line::unknown(check, why, ON_A_MAC),
    };
    let services = tree.nodes().filter(|node| is_service(node)).count();
    if services > 0 {
        return Line::ok(check, format!("{services} services of {DEXT_CLASS}"));
    }
    let matched = |node: &&Node| {
        node.property("IODEXTMatchCount")
            .and_then(|count| count.parse().ok())
            .is_some_and(|count: u32| count > 0)
    };
    match tree.nodes().filter(matched).count() {
        0 => Line::missing(
            check,
            "no device has matched it",
            "connect the device, and see which devices the extension's personality is for",
        ),
        count => Line::missing(
            check,
            format!("{count} devices matched (IODEXTMatchCount), and it was never launched"),
            "restart the Mac with the device connected",
        ),
    }
}

fn bars(tree: Registry<'_>) -> Line {
    let check = "BARs have addresses";
    let cure = "start the Mac with the enclosure attached and switched on";
    let tree = match tree {
        Ok(tree) => tree,
        Err(why) => return Line::unknown(check, why, ON_A_MAC),
    };
    let services: Vec<usize> =
        tree.nodes().enumerate().filter(|(_, node)| is_service(node)).map(|(at, _)| at).collect();
    if services.is_empty() {
        return Line::unknown(check, "the extension has no device", "see the line above first");
    }
    let (mut without, mut lost) = (Vec::new(), 0);
    for at in &services {
        match tree.above(*at, "IOPCIDevice") {
            None => lost += 1,
            Some(device) => {
                let assigned = device.property("assigned-addresses");
                if assigned.is_none_or(|bytes| bytes.trim_matches(['<', '>']).trim().is_empty()) {
                    without.push(device.name.clone());
                }
            }
        }
    }
    if !without.is_empty() {
        return Line::missing(
            check,
            format!("assigned-addresses is empty for {}", without.join(", ")),
            cure,
        );
    }
    if lost > 0 {
        let said = format!("{lost} services are beneath no IOPCIDevice");
        return Line::unknown(
            check,
            said,
            "look at assigned-addresses of the device in ioreg -l -w0",
        );
    }
    Line::ok(check, format!("assigned-addresses of {} devices", services.len()))
}

/// The fastest link, in Gb/s, that is still Thunderbolt 4's.
const THUNDERBOLT_4: u32 = 40;

fn enclosure(tools: &Tools) -> Line {
    let check = "the enclosure and its link";
    let text = match tools.run("system_profiler", &["SPThunderboltDataType"]) {
        Ok(text) => text,
        Err(why) => return Line::unknown(check, why, ON_A_MAC),
    };
    let value = |line: &str, key: &str| {
        line.trim().strip_prefix(key).map(|rest| rest.trim_start_matches(':').trim().to_owned())
    };
    let (mut name, mut devices) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(found) = value(line, "Device Name") {
            name = found;
        } else if let Some(found) =
            value(line, "Speed").or_else(|| value(line, "Current Link Speed"))
        {
            // "Up to 40 Gb/s", "40 Gb/s".
            let speed = found.split_whitespace().find_map(|word| word.parse::<u32>().ok());
            // Ports have no device at their other end where they have a speed and a receptacle only.
            if let Some(speed) = speed {
                devices.push((name.clone(), speed));
            }
        }
    }
    // The host's own buses are named after the Mac.
    devices.retain(|(name, _)| {
        !name.starts_with("Mac") && !name.starts_with("iMac") && !name.is_empty()
    });
    let Some((fast, speed)) = devices.iter().max_by_key(|(_, speed)| *speed) else {
        let said = "no Thunderbolt device with a speed is listed";
        return Line::unknown(
            check,
            said,
            "connect the enclosure, and look in System Information > Thunderbolt",
        );
    };
    if *speed > THUNDERBOLT_4 {
        return Line::missing(
            check,
            format!("{fast} has a link of {speed} Gb/s, which is Thunderbolt 5"),
            "Thunderbolt 5 enclosures do not work for others, and panics of SPTM and DART have been seen on \
             them: save what is open before attaching, or use a Thunderbolt 3 or 4 enclosure",
        );
    }
    Line::ok(check, format!("{fast}, {speed} Gb/s"))
}

fn stale(tools: &Tools, tree: Registry<'_>, bundle_id: Option<&str>) -> Line {
    let check = "no stale processes of the extension";
    let tree = match tree {
        Ok(tree) => tree,
        Err(why) => return Line::unknown(check, why, ON_A_MAC),
    };
    let processes = match tools.run("ps", &["-axo", "pid=,comm="]) {
        Ok(processes) => processes,
        Err(why) => return Line::unknown(check, why, ON_A_MAC),
    };
    if processes.trim().is_empty() {
        return Line::unknown(check, "ps lists no process", ON_A_MAC);
    }
    let is_dext =
        |line: &&str| line.contains(DEXT_CLASS) || bundle_id.is_some_and(|id| line.contains(id));
    let running = processes.lines().filter(is_dext).count();
    let services = tree.nodes().filter(|node| is_service(node)).count();
    if running > services {
        return Line::missing(
            check,
            format!(
                "{running} processes for {services} services: some are of devices that are gone"
            ),
            "disconnect the device and end them (sudo kill), or restart; then connect it again",
        );
    }
    Line::ok(check, format!("{running} processes for {services} services"))
}

#[cfg(test)]
mod tests {
    use super::super::line::State;
    use super::*;

    const LIST: &str = "1 extension(s)\n--- com.apple.system_extension.driver_extension\n\
        enabled\tactive\tteamID\tbundleID (version)\tname\t[state]\n\
        *\t*\tABCDE12345\torg.example.VFIOUserPCIDriver (1.0/1)\tVFIOUserPCIDriver\t[activated enabled]\n";

    #[test]
    fn an_extension_is_found_by_its_name_or_identifier() {
        let all = Extension::of_dext(LIST, None);
        assert_eq!(all[0].bundle_id, "org.example.VFIOUserPCIDriver");
        assert_eq!(Extension::of_dext(LIST, Some("org.example.VFIOUserPCIDriver")), all);
        assert!(Extension::of_dext(LIST, Some("org.example.Other")).is_empty());
        assert_eq!(extension(Ok(all.clone())).state, State::Ok);
        for (state, says) in [
            ("activated waiting for user", "System Settings"),
            ("activated disabled", "System Settings"),
            ("terminated waiting to uninstall on reboot", "restart"),
            ("terminating for uninstall", "/Applications"),
        ] {
            let other = Extension { state: state.to_owned(), ..all[0].clone() };
            let line = extension(Ok(vec![other]));
            assert_eq!(line.state, State::Missing);
            assert!(line.cure.unwrap().contains(says), "{state}");
        }
        assert!(extension(Ok(Vec::new())).cure.unwrap().contains("/Applications"));
        assert_eq!(extension(Err("cannot run it")).state, State::Unknown);
    }

    #[test]
    fn identifiers_are_those_of_the_entitlement_and_no_other() {
        let list = |key: &str, ids: &str| {
            format!(
                "<plist><dict><key>other</key><array><string>x</string></array><key>{key}</key><array>{ids}</array></dict></plist>"
            )
        };
        let two = list(ENTITLEMENT, "<string>a.b</string>\n<string>c</string>");
        assert_eq!(entitled(&two).unwrap(), ["a.b", "c"]);
        assert_eq!(entitled(&list("else", "<string>a</string>")), None);
        let truth = format!("<key>{ENTITLEMENT}</key><true/><key>b</key><array></array>");
        assert_eq!(entitled(&truth), None);
    }
}
