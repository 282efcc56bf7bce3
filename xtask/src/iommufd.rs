//! The machine with kernel VFIO on a kernel that has iommufd and devices' own files. Debian's kernels are built without
//! them, so its source of a newer one is built here, with what `tests/vfio/iommufd.config` says and no modules. That
//! takes some minutes, so it is not a part of `cargo xtask test`; what was built stays in `target/guest-iommufd`.

use std::path::{Path, PathBuf};
use std::process::Command;

use console::{complain, say};

use crate::apt::{self, Apt, Bundle, make, write};
use crate::{Result, cargo, guest, outcome, process, root, target};

/// Debian 13's backports have the newest source.
const SOURCE: Bundle = Bundle {
    name: "linux-source",
    suites: &["trixie", "trixie-backports"],
    prefer: "trixie-backports",
    foreign: None,
};
/// What a kernel is built with beside a compiler, make and perl, of the oldest Debian that this runs on.
const TOOLS: Bundle =
    Bundle { name: "kernel-tools", suites: &["bookworm"], prefer: "bookworm", foreign: None };
const TOOL_PACKAGES: [&str; 9] = [
    "flex",
    "bison",
    "m4",
    "bc",
    "libreadline8",
    "libtinfo6",
    "libelf-dev",
    "libelf1",
    "zlib1g-dev",
];
/// GiB that the source takes, unpacked and built.
const TAKES: &str = "4 GiB";
/// Where libraries are in Debian's packages.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Runs the suites of the machine with kernel VFIO on such a kernel.
pub(crate) fn check() -> Result {
    let folder = prepare()?;
    let mut build = cargo(&["build", "--quiet", "--workspace", "--bins"]);
    process::quiet("building the programs", &mut build)?;
    let suites = ["--features", "iommufd", "--test", "iommufd", "--test", "vfio_guest"];
    let settled = outcome::run(
        "the suites on a kernel with iommufd",
        |names| {
            let mut tests = cargo(&["test", "--no-fail-fast", "--package", "vfio-guest"]);
            tests
                .args(suites)
                .env("CORDON_GUEST_DIR", &folder)
                .env("CORDON_BIN_DIR", target().join("debug"));
            Ok(outcome::only(tests, names))
        },
        |_| {},
    )?;
    settled.tell()?;
    let version = std::fs::read_to_string(folder.join("stamp")).unwrap_or_default();
    let version = version.lines().next().unwrap_or_default();
    let (passed, failed, again) = (settled.passed, settled.failed, settled.unsteady());
    say!("iommufd ({version}): {passed} passed, {failed} failed{again}")?;
    if settled.holds { Ok(()) } else { Err("the suites on a kernel with iommufd failed".into()) }
}

/// A folder as the one of the guest suites, with this kernel.
fn prepare() -> Result<PathBuf> {
    let of_guest = guest::folder()?;
    let folder = target().join("guest-iommufd");
    make(&folder)?;
    let fragment = root().join("tests/vfio/iommufd.config");
    let config = std::fs::read_to_string(&fragment)?;
    let kernel = folder.join("vmlinuz");
    let stamp = folder.join("stamp");
    let made = std::fs::read_to_string(&stamp).unwrap_or_default();
    let of_it = made.split_once('\n').map(|(_, config)| config);
    if !kernel.is_file() || of_it != Some(&config) {
        complain(format_args!(
            "building a kernel with iommufd in {} (once; some minutes, and {TAKES} meanwhile)",
            folder.display()
        ));
        let version = build(&folder, &fragment, &kernel)?;
        write(&stamp, &format!("{version}\n{config}"))?;
    }
    // VFIO is built in.
    make(&folder.join("modules"))?;
    for entry in std::fs::read_dir(&of_guest)?.flatten() {
        let (name, at) = (entry.file_name(), folder.join(entry.file_name()));
        let own = ["vmlinuz", "modules", "stamp"].iter().any(|own| *own == name);
        if !own && !at.exists() {
            std::os::unix::fs::symlink(entry.path(), at)?;
        }
    }
    Ok(folder)
}

/// Builds the kernel; what it is called.
fn build(folder: &Path, fragment: &Path, into: &Path) -> Result<String> {
    let mirror = apt::mirror("")?;
    let work = folder.join("build");
    let _ = std::fs::remove_dir_all(&work);
    let (tools, packages) = (work.join("tools"), work.join("packages"));
    make(&tools)?;
    let apt = Apt::new(&work, &TOOLS, &TOOLS.sources(&mirror), None)?;
    let download: Vec<&str> = ["-q", "download"].into_iter().chain(TOOL_PACKAGES).collect();
    apt.run("apt-get", &download)?;
    apt.unpack(&tools)?;
    let apt = Apt::new(&work, &SOURCE, &SOURCE.sources(&mirror), None)?;
    let depends = apt.run("apt-cache", &["depends", "linux-source"])?;
    let source = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let source = source.ok_or("linux-source depends on no source")?.to_owned();
    apt.run("apt-get", &["-q", "download", &source])?;
    apt.unpack(&packages)?;
    let archive = packages.join("usr/src").join(format!("{source}.tar.xz"));
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&archive).arg("-C").arg(&work);
    process::quiet("unpacking the kernel's source", &mut unpack)?;
    let tree = work.join(&source);
    let run = |what: &str, program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&tree);
        with_tools(&mut command, &tools);
        process::quiet(what, &mut command)
    };
    let fragment = format!("KCONFIG_ALLCONFIG={}", fragment.display());
    run("configuring the kernel", "make", &["-s", &fragment, "allnoconfig"])?;
    let found = std::fs::read_to_string(tree.join(".config"))?;
    for needed in ["CONFIG_IOMMUFD=y", "CONFIG_VFIO_DEVICE_CDEV=y", "CONFIG_VFIO_PCI=y"] {
        if !found.lines().any(|line| line == needed) {
            return Err(format!("{source} cannot be built with {needed}").into());
        }
    }
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let libraries = format!("-L{}", tools.join(LIBRARIES).display());
    let elf = format!("LIBELF_LIBS={libraries} -l:libelf.a -l:libz.a");
    let headers = format!("LIBELF_FLAGS=-I{}", tools.join("usr/include").display());
    let arguments = ["-s", &format!("-j{jobs}"), &elf, &headers, "bzImage"];
    run("building the kernel", "make", &arguments)?;
    std::fs::copy(tree.join("arch/x86/boot/bzImage"), into)?;
    std::fs::remove_dir_all(&work)?;
    Ok(source)
}

/// Has a command find the tools that were unpacked, and their data.
fn with_tools(command: &mut Command, tools: &Path) {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let mut path = vec![tools.join("usr/bin")];
    path.extend(std::env::split_paths(&own));
    let path = std::env::join_paths(path).unwrap_or(own);
    let libraries = [tools.join(LIBRARIES), tools.join("lib/x86_64-linux-gnu")];
    let libraries = std::env::join_paths(libraries).unwrap_or_default();
    command
        .env("PATH", path)
        .env("LD_LIBRARY_PATH", libraries)
        .env("M4", tools.join("usr/bin/m4"))
        .env("BISON_PKGDATADIR", tools.join("usr/share/bison"))
        .env_remove("MAKEFLAGS");
}
