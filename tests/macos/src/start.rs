//! From the command line to the image's `main`.

use std::convert::Infallible;
use std::ffi::{CString, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::image::{Image, Loaded, Section, fixups, map};
use crate::imports;
use crate::libsystem::{arguments, exit, runner};

/// How it is called.
const USAGE: &str = "usage: macho-runner [--argv0 NAME] PROGRAM [ARGUMENT]…
       macho-runner --imports PROGRAM…";

/// Loads and runs what the command line names.
pub(crate) fn run() -> Result<Infallible, String> {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.next_if(|word| word == "--imports").is_some() {
        return inventory(words);
    }
    let argv0 = words.next_if(|word| word == "--argv0").map(|_| words.next().ok_or(USAGE));
    let program = PathBuf::from(words.next().ok_or(USAGE)?);
    let argv0 = argv0.transpose()?.unwrap_or_else(|| program.clone().into());
    let arguments = std::iter::once(argv0).chain(words).collect();
    let loaded = load(&program).map_err(|error| format!("{}: {error}", program.display()))?;
    start(loaded, arguments)
}

/// Maps a program and binds its imports.
fn load(program: &Path) -> Result<&'static Loaded, String> {
    let path = program.canonicalize().map_err(|error| error.to_string())?;
    let file = std::fs::read(&path).map_err(|error| error.to_string())?;
    let image = Image::parse(&file)?;
    let wanted = fixups::imports(&image, &file)?;
    let targets = imports::bind(&wanted)?;
    let slide = map::place(&image, &file)?;
    fixups::apply(&image, &file, slide, &wanted, &targets)?;
    map::protect(&image, slide)?;
    let path = CString::new(path.into_os_string().into_vec()).map_err(|error| error.to_string())?;
    Ok(Loaded { image, slide, path }.publish())
}

type Main = unsafe extern "C" fn(
    c_int,
    *const *mut c_char,
    *const *mut c_char,
    *const *mut c_char,
) -> c_int;

/// Runs initialisers and `main`.
fn start(loaded: &'static Loaded, words: Vec<OsString>) -> Result<Infallible, String> {
    darwin_abi::descriptors::inherit();
    let inherited = runner::take_inherited();
    name(loaded);
    runner::hide_descriptors();
    mach_kernel::start(inherited.as_deref());
    let (argc, argv, environ, apple) = arguments::publish(loaded, words)?;
    for initialiser in initialisers(loaded) {
        // SAFETY: the image says that a function of this type is there; it is bound and protected.
        unsafe {
            let initialiser: Main = std::mem::transmute(initialiser);
            initialiser(argc, argv, environ, apple);
        }
    }
    // SAFETY: as above, of LC_MAIN. Whatever it returns is the status of the process.
    let status = unsafe {
        let main: Main = std::mem::transmute(loaded.base() + loaded.image.main);
        main(argc, argv, environ, apple)
    };
    exit::exit(status)
}

/// A process is called after its program, as far as 16 bytes go (MAXCOMLEN of sys/param.h), and not after an emulator.
fn name(loaded: &Loaded) {
    let path = loaded.path.to_bytes();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    if let Ok(name) = CString::new(name) {
        // SAFETY: a string that ends in NUL, of which the kernel takes 15 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Addresses of what runs before `main`.
fn initialisers(loaded: &Loaded) -> Vec<usize> {
    let mut all = Vec::new();
    for section in loaded.image.of_kind(Section::INITIALISERS) {
        let at = (section.address.wrapping_add(loaded.slide)) as *const usize;
        // SAFETY: a section of pointers of the image, which is mapped and fixed up.
        all.extend((0..section.size / 8).map(|index| unsafe { at.add(index).read() }));
    }
    for section in loaded.image.of_kind(Section::INITIALISER_OFFSETS) {
        let at = (section.address.wrapping_add(loaded.slide)) as *const u32;
        // SAFETY: a section of offsets of the image, which is mapped.
        let offsets = (0..section.size / 4).map(|index| unsafe { at.add(index).read() });
        all.extend(offsets.map(|offset| loaded.base() + offset as usize));
    }
    all
}

/// Prints how many symbols the programs import together and how many of them are implemented; fails
/// if the numbers differ.
fn inventory(programs: impl Iterator<Item = OsString>) -> Result<Infallible, String> {
    let (mut asked, mut missing) = (std::collections::BTreeSet::new(), Vec::new());
    for program in programs {
        let named = |error: String| format!("{}: {error}", Path::new(&program).display());
        let file = std::fs::read(&program).map_err(|error| named(error.to_string()))?;
        let image = Image::parse(&file).map_err(named)?;
        for import in fixups::imports(&image, &file).map_err(named)? {
            asked.insert(import.name);
        }
    }
    missing.extend(asked.iter().filter(|name| imports::find(name).is_none()).cloned());
    let implemented = asked.len() - missing.len();
    let line = format!("imports: {} asked, {implemented} implemented", asked.len());
    if missing.is_empty() {
        println!("{line}");
        std::process::exit(0)
    }
    Err(format!("{line}; not implemented: {}", missing.join(", ")))
}
