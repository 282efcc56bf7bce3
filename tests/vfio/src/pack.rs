//! The initramfs: programs with the libraries that they need, modules, files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::newc::{Builder, trailer};

/// The dynamic loader, which knows best what a program needs.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Why something cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file cannot be read.
    #[error("{} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The loader cannot be asked.
    #[error("{LOADER} cannot be run, to ask what {} needs", .0.display())]
    Loader(PathBuf, #[source] io::Error),
    /// The loader finds not everything that a program needs.
    #[error("{} lacks something: {why}", .program.display())]
    Libraries {
        /// The program.
        program: PathBuf,
        /// What the loader says.
        why: String,
    },
    /// A path that is no text, or does not begin at the root.
    #[error("{} cannot be a name in an initramfs", .0.display())]
    Name(PathBuf),
    /// A file of 4 GiB and more.
    #[error("{} is too large for an initramfs", .0.display())]
    Large(PathBuf),
    /// The archive cannot be written.
    #[error("The initramfs cannot be written")]
    Write(#[from] io::Error),
}

/// What is in a file, and how it may be used.
#[derive(Clone, Debug)]
enum Content {
    /// A file of this machine, read when it is packed.
    Copied(PathBuf),
    /// Bytes.
    Given(Vec<u8>),
}

/// What an initramfs will hold, by the path in it.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    files: BTreeMap<PathBuf, (u32, Content)>,
}

impl Initramfs {
    /// Adds a program, by the path `to`, with its libraries where its loader looks for them.
    ///
    /// # Errors
    /// When a library is missing or `to` cannot be a name.
    pub fn program(&mut self, program: &Path, to: &str) -> Result<(), PackError> {
        for library in libraries(program)? {
            self.add(library.clone(), PROGRAM, Content::Copied(library))?;
        }
        self.add(to.into(), PROGRAM, Content::Copied(program.to_owned()))
    }

    /// Adds a file of this machine.
    ///
    /// # Errors
    /// When `to` cannot be a name.
    pub fn copy(&mut self, file: &Path, to: &str) -> Result<(), PackError> {
        self.add(to.into(), FILE, Content::Copied(file.to_owned()))
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When `to` cannot be a name.
    pub fn file(&mut self, to: &str, content: Vec<u8>) -> Result<(), PackError> {
        self.add(to.into(), FILE, Content::Given(content))
    }

    fn add(&mut self, to: PathBuf, mode: u32, content: Content) -> Result<(), PackError> {
        if !to.is_absolute() || to.to_str().is_none() {
            return Err(PackError::Name(to));
        }
        self.files.insert(to, (mode, content));
        Ok(())
    }

    /// Writes it, in the form that the kernel unpacks.
    ///
    /// # Errors
    /// When a file cannot be read, or the archive not written.
    pub fn write(&self, mut into: impl Write) -> Result<(), PackError> {
        // A folder comes before what is in it: shorter paths first, as the order of paths has it.
        let parents = self.files.keys().flat_map(|path| path.ancestors().skip(1));
        let folders: BTreeSet<&Path> = parents.filter(|path| path.parent().is_some()).collect();
        let mut number = 0;
        for folder in folders {
            number += 1;
            into = entry(into, number, folder, FOLDER, &[])?;
        }
        for (path, (mode, content)) in &self.files {
            number += 1;
            into = match content {
                Content::Given(bytes) => entry(into, number, path, *mode, bytes)?,
                Content::Copied(from) => {
                    let bytes = std::fs::read(from);
                    let bytes = bytes.map_err(|error| PackError::Read(from.clone(), error))?;
                    entry(into, number, path, *mode, &bytes)?
                }
            };
        }
        trailer(into)?.flush()?;
        Ok(())
    }
}

fn entry<W: Write>(
    into: W,
    number: u32,
    path: &Path,
    mode: u32,
    content: &[u8],
) -> Result<W, PackError> {
    let name = path.to_str().and_then(|path| path.strip_prefix('/'));
    let name = name.ok_or_else(|| PackError::Name(path.to_owned()))?;
    let length = u32::try_from(content.len()).map_err(|_| PackError::Large(path.to_owned()))?;
    let mut writer = Builder::new(name).ino(number).mode(mode).write(into, length);
    writer.write_all(content)?;
    Ok(writer.finish()?)
}

/// The loader and the libraries that a program needs, where they are on this machine; none of one that is
/// linked statically.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, PackError> {
    let asked = Command::new(LOADER).arg("--list").arg(program).output();
    let asked = asked.map_err(|error| PackError::Loader(program.to_owned(), error))?;
    let said = String::from_utf8_lossy(&asked.stdout);
    if !asked.status.success() {
        let errors = String::from_utf8_lossy(&asked.stderr).trim().to_owned();
        return Err(PackError::Libraries { program: program.to_owned(), why: errors });
    }
    if said.trim() == "statically linked" {
        return Ok(Vec::new());
    }
    if let Some(missing) = said.lines().find(|line| line.ends_with("not found")) {
        let why = missing.trim().to_owned();
        return Err(PackError::Libraries { program: program.to_owned(), why });
    }
    // "name => /path (0x1234)", or the path of the loader by itself.
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(said.lines().filter_map(path).chain([PathBuf::from(LOADER)]).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Names, modes and contents, as another reader of such archives finds them.
    fn unpack(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((name, mode, content));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_files_are_whole() {
        let mut initramfs = Initramfs::default();
        initramfs.file("/etc/deep/one", b"12345".to_vec()).unwrap();
        initramfs.file("/zero", Vec::new()).unwrap();
        let mut archive = Vec::new();
        initramfs.write(&mut archive).unwrap();
        let found = unpack(&archive);
        let expected = [
            ("etc", FOLDER, &b""[..]),
            ("etc/deep", FOLDER, b""),
            ("etc/deep/one", FILE, b"12345"),
            ("zero", FILE, b""),
        ];
        let expected =
            expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_program_comes_with_its_libraries_and_the_loader() {
        let mut initramfs = Initramfs::default();
        initramfs.program(&std::env::current_exe().unwrap(), "/bin/this").unwrap();
        let names: Vec<_> = initramfs.files.keys().map(|path| path.to_str().unwrap()).collect();
        assert!(names.contains(&"/bin/this") && names.contains(&LOADER), "{names:?}");
        assert!(names.iter().any(|name| name.ends_with("/libc.so.6")), "{names:?}");
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        let mut initramfs = Initramfs::default();
        let relative = initramfs.file("etc/x", Vec::new()).unwrap_err();
        assert_eq!(relative.to_string(), "etc/x cannot be a name in an initramfs");
        let missing = initramfs.program(Path::new("/no/such"), "/bin/such").unwrap_err();
        assert!(missing.to_string().starts_with("/no/such lacks something: "), "{missing}");
        initramfs.copy(Path::new("/no/such"), "/such").unwrap();
        let unread = initramfs.write(Vec::new()).unwrap_err();
        assert_eq!(unread.to_string(), "/no/such cannot be read");
    }
}
