//! `cargo xtask`: set-up, demo and every check, in one place.
//!
//! `demo` and `test` work on a fresh Debian 12 machine with a Rust toolchain, as root and as an
//! ordinary user. Nothing is installed by hand. They are made to work on an Apple-silicon Mac with Xcode's
//! command line tools too, which nobody has tried yet: what needs Linux is left out there by name.

mod apt;
mod arm64;
mod deb;
mod firmware;
mod fuzz;
mod guest;
mod guide;
mod iommufd;
mod licences;
mod macho;
mod macos;
mod miri;
mod outcome;
mod package;
mod policy;
mod portable;
mod process;
mod regressions;
mod sanitize;
mod seen;
mod suites;
mod testing;
mod times;
mod trace;
mod units;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use clap::{Parser, Subcommand};
use console::{Interrupted, OutputError, complain, exit, say};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Set-up, demo and every check of the project", after_help = exit::HELP)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the programs and run `cordon demo` on the simulated dext.
    Demo {
        /// Passed on: --image FILE, --json, --sandbox relaxed.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Boot a guest in stock QEMU with an NVMe and a probe function, and a prompt on this terminal.
    Guest {
        /// Only prepare what the guest suites need, and print where it is.
        #[arg(long)]
        prepare: bool,
        /// Run a command in a machine with kernel VFIO and the devices that QEMU emulates instead: options of
        /// vfio-run, the command, what it is given.
        #[arg(long, conflicts_with = "prepare", num_args = 1.., allow_hyphen_values = true)]
        vfio: Option<Vec<OsString>>,
    },
    /// Build a kernel that has iommufd, which Debian's have not, and run the suites of the machine with kernel VFIO on
    /// it. Not a part of `test`: it takes a quarter of an hour at first, and some minutes then. Linux only.
    Iommufd,
    /// Render the user guide, check its links, and run the commands that it marks.
    Guide {
        /// Draw its picture anew, and nothing else.
        #[arg(long)]
        draw: bool,
        /// Measure what its recovery chapter shows anew, by tortures of some minutes, and nothing else.
        #[arg(long, conflicts_with = "draw")]
        measure: bool,
    },
    /// Only what needs no program: licences, the crate graph, packages.
    Policy,
    /// Build the portable flavour, which has macOS's tubes and events, and run the suites that start
    /// programs in it. Linux only.
    Portable,
    /// Lint and link everything for macOS (aarch64-apple-darwin) with a toolchain that is fetched, and
    /// run its suites on Linux.
    Macos,
    /// Build the Debian package with man pages and shell completions, try it in a root of its own, and
    /// write the Homebrew formula.
    Package,
    /// Run the suites whose processes use every row of the system-call policy, with each call of a confined
    /// process traced, and compare: a row that nobody needs fails, and so does a call that no row allows.
    /// Linux only.
    Trace {
        /// Of every suite that starts processes, and not only of those whose processes use every row. It takes
        /// the better part of an hour.
        #[arg(long)]
        all: bool,
    },
    /// Measure what an access, a recovery and a client's command cost, beside baselines in the same run.
    Bench {
        /// Passed on: --json, --quick, --only THEME, --svg FILE.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build the fuzz targets and run them.
    Fuzz {
        /// Only this one.
        target: Option<String>,
        /// How long they are run in all: it is shared out over them.
        #[arg(long, default_value_t = FUZZ_SECONDS, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        seconds: u64,
        /// Add what is found of interest to the committed corpora, minimised.
        #[arg(long)]
        keep: bool,
    },
    /// Run what has no system beneath it under Miri, where a nightly toolchain has that.
    Miri,
    /// Run the suites that run in one process under AddressSanitizer and ThreadSanitizer. Linux only.
    Sanitize {
        /// Under this one only.
        sanitizer: Option<sanitize::Sanitizer>,
    },
    /// Build the firmware of the test VMM, and say where it is.
    Firmware,
    /// Everything CI runs: format, lints, dependency policy, documentation, packages, macOS, demo,
    /// fuzz targets for some seconds, tests.
    Test {
        /// Go on where there is no /dev/kvm: the suite that needs it says so.
        #[arg(long)]
        without_kvm: bool,
    },
}

/// GiB that a run of `test` takes at most in a clean checkout.
const TAKES_GIB: u64 = 30;
/// How long the fuzz targets run in all as a part of `test`.
const FUZZ_SECONDS: u64 = 60;

/// Why a task failed.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T = ()> = std::result::Result<T, Failure>;

fn carry_out(task: Task) -> Result {
    process::catch_signals()?;
    match task {
        Task::Demo { arguments } => demo(&arguments),
        Task::Guest { prepare: true, .. } => Ok(say!("{}", guest::folder()?.display())?),
        Task::Guest { vfio: Some(arguments), .. } => guest::vfio(&arguments),
        Task::Guest { .. } => guest::interactive(),
        Task::Iommufd => iommufd::check(),
        Task::Guide { draw: true, .. } => guide::draw(),
        Task::Guide { measure: true, .. } => {
            run("building the programs", programs())?;
            guide::measure(&target().join("debug"))
        }
        Task::Guide { draw: false, measure: false } => {
            run("building the programs", programs())?;
            Ok(say!("{}", guide::check(&target().join("debug"))?)?)
        }
        Task::Policy => policy().and_then(|()| package::check()),
        Task::Portable => portable::check(),
        Task::Trace { all } => trace::check(all),
        Task::Macos => macos::check(),
        Task::Package => deb::check(),
        Task::Bench { arguments } => bench(&arguments),
        Task::Fuzz { target, seconds, keep } => fuzz::run(target.as_deref(), seconds, keep),
        Task::Miri => miri::check(),
        Task::Sanitize { sanitizer } => sanitize::run(sanitizer),
        Task::Firmware => Ok(say!("{}", firmware::build()?.display())?),
        Task::Test { without_kvm } => test(without_kvm),
    }
}

fn main() -> ExitCode {
    let options = match console::parse::<Options>() {
        Ok(options) => options,
        Err(status) => return status,
    };
    let Err(error) = carry_out(options.task) else { return ExitCode::SUCCESS };
    if error.is::<OutputError>() {
        return ExitCode::from(exit::UNWRITTEN);
    }
    complain(format_args!("xtask: {error}"));
    let interrupted = error.downcast_ref::<Interrupted>();
    ExitCode::from(interrupted.map_or(exit::FAILED, |interrupted| interrupted.0.status()))
}

/// The workspace's root folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Where Cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    once(&mut command);
    command
}

/// What is built here is built once: state for building it again takes as much time and disk as it ever saves.
fn once(command: &mut Command) {
    if std::env::var_os("CARGO_INCREMENTAL").is_none() {
        command.env("CARGO_INCREMENTAL", "0");
    }
}

/// A command that leaves the processors to whatever else runs: what it builds is wanted later only, and what runs
/// beside it has deadlines.
fn yielding(inner: Command) -> Command {
    process::through(&["nice", "-n", "15"], &inner)
}

/// Of the workspace what is for this system: what runs in Linux guests is not for a Mac.
fn for_host(mut command: Command) -> Command {
    if cfg!(target_os = "macos") {
        command.args(macos::NOT_FOR_MACS);
    }
    command
}

/// Runs what says nothing while all is well.
fn run(what: &str, mut command: Command) -> Result {
    times::heading(what)?;
    process::quiet(what, &mut command)
}

/// Runs what tells itself what it does.
fn run_aloud(what: &str, mut command: Command) -> Result {
    times::heading(what)?;
    let status = process::status(what, &mut command)?;
    if status.success() { Ok(()) } else { Err(format!("{what} failed: {status}").into()) }
}

/// The packages whose programs are released.
const RELEASED: [&str; 3] = ["cordon-cli", "cordon-device-proc", "cordon-dext-sim"];

/// The programs as they are released; where they are. Built once, however many ask.
fn released() -> Result<PathBuf> {
    static BUILT: OnceLock<()> = OnceLock::new();
    if BUILT.get().is_none() {
        // Not those of suites: each takes a while to optimise as a whole.
        let mut build = for_host(cargo(&["build", "--release", "--quiet", "--bins"]));
        build.args(RELEASED.iter().flat_map(|package| ["--package", package]));
        run("building the programs as they are released", yielding(build))?;
        BUILT.get_or_init(|| ());
    }
    Ok(target().join("release"))
}

fn demo(arguments: &[String]) -> Result {
    let mut command = Command::new(released()?.join("cordon"));
    command.arg("demo").args(arguments);
    run_aloud("cordon demo", command)
}

/// Prints nothing of its own: with `--json` the output is the benches'.
fn bench(arguments: &[String]) -> Result {
    let mut build = cargo(&["build", "--release", "--quiet", "--workspace", "--bins"]);
    process::quiet("building the programs", &mut build)?;
    let programs = target().join("release");
    let mut command = Command::new(programs.join("bench"));
    command.args(arguments).env("CORDON_BIN_DIR", &programs);
    // Where there is no guest, its rows say so.
    let only = arguments.iter().skip_while(|one| !one.starts_with("--only")).take(2);
    if arguments.iter().all(|one| !one.starts_with("--only"))
        || only.into_iter().any(|one| one == "guest" || one == "--only=guest")
    {
        match guest::folder() {
            Ok(folder) => command.env("CORDON_GUEST_DIR", folder),
            Err(error) => command.env("CORDON_GUEST_MISSING", error.to_string()),
        };
    }
    let status = process::status("bench", &mut command)?;
    if status.success() { Ok(()) } else { Err(format!("bench failed: {status}").into()) }
}

/// Checks the form of the adapter to crosvm: without Cargo, which asks for the crates of a crosvm tree first.
fn adapter_format() -> Command {
    let mut format = Command::new("rustfmt");
    format.args(["--check", "--edition", "2024", "vmm-side/crosvm/src/lib.rs"]);
    format.current_dir(root());
    format
}

/// GiB that are free where everything is built.
fn free_gib() -> Result<u64> {
    std::fs::create_dir_all(target())?;
    let there = rustix::fs::statvfs(target())?;
    Ok((there.f_bavail * there.f_frsize) >> 30)
}

fn test(without_kvm: bool) -> Result {
    let free = free_gib()?;
    say!("disk: {free} GiB free; a run from a clean checkout takes up to {TAKES_GIB}")?;
    run("format", cargo(&["fmt", "--all", "--check"]))?;
    // It builds for long with compilers of its own; what is beside it here needs no time to itself.
    let macos = cfg!(not(target_os = "macos")).then(|| beside("macOS", "macos")).transpose()?;
    let mut lint = for_host(cargo(&["clippy", "--workspace", "--all-targets", "--quiet"]));
    lint.args(["--", "-D", "warnings"]);
    // missing_docs warns while one writes and is an error here.
    lint.args(["-D", "missing_docs"]);
    run("lints", lint)?;
    for workspace in ["fuzz", "tests/macos", "tests/vmm/firmware"] {
        let manifest = format!("{workspace}/Cargo.toml");
        let format = cargo(&["fmt", "--all", "--check", "--manifest-path", &manifest]);
        run(&format!("format of {workspace}"), format)?;
    }
    run("format of vmm-side/crosvm", adapter_format())?;
    // In the folder of the others: most of what it is built on is there by now.
    let mut lint = cargo(&["clippy", "--manifest-path", "fuzz/Cargo.toml"]);
    lint.env("CARGO_TARGET_DIR", target());
    lint.args(["--quiet", "--locked", "--", "-D", "warnings"]);
    run("lints of the fuzz targets", lint)?;
    policy()?;
    let mut docs = for_host(cargo(&["doc", "--workspace", "--no-deps", "--quiet"]));
    docs.env("RUSTDOCFLAGS", "-D warnings");
    run("documentation", docs)?;
    package::check()?;
    let macos = macos.map(process::Beside::check).transpose()?;
    // All that is built for what comes later, while the suites for macOS mostly wait.
    run("building the programs", yielding(programs()))?;
    match macos {
        Some(macos) => {
            portable::build()?;
            let macos = macos.check()?;
            fuzz::build()?;
            released()?;
            times::heading("macOS, which ran beside all this")?;
            macos.finish()?;
            portable::check()?;
        }
        None => say!(
            "\nleft out on a Mac: linking for it from elsewhere, the portable flavour, QEMU and its guests"
        )?,
    }
    demo(&["--json".to_owned()])?;
    let guide = guide::check(&target().join("debug"))?;
    deb::check()?;
    if cfg!(target_os = "linux") {
        fuzz::run(None, FUZZ_SECONDS, false)?;
    }
    suites::print()?;
    times::heading("what was wrong once, and the tests that hold it")?;
    regressions::lines(&root())?.iter().try_for_each(|line| say!("{line}"))?;
    testing::run(without_kvm, &guide)
}

/// Builds the programs that the suites start.
fn programs() -> Command {
    for_host(cargo(&["build", "--workspace", "--bins", "--quiet"]))
}

/// A task of this program's, started beside what is done meanwhile.
fn beside(what: &'static str, task: &str) -> Result<process::Beside> {
    times::heading(&format!("{what}, started beside what follows"))?;
    let mut command = Command::new(std::env::current_exe()?);
    process::Beside::start(what, command.arg(task))
}

fn policy() -> Result {
    times::heading("dependency policy")?;
    policy::check(&root())
}
