//! Where the programs are that a rig starts: `cordon`, `device-proc`, `faulty-device-proc`, `dext-sim`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::Error;

/// Names the folder that has the programs.
pub const FOLDER_VARIABLE: &str = "CORDON_BIN_DIR";

/// Where a package has the programs that nobody starts by hand, beside the folder that has `cordon`.
const PACKAGED: &str = "libexec/cordon";

/// Where to look for programs.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: Option<PathBuf>,
    own: Option<PathBuf>,
    search: Option<OsString>,
}

impl Default for Programs {
    /// [`Programs::found`].
    fn default() -> Self {
        Self::found()
    }
}

impl Programs {
    /// In the folder that [`FOLDER_VARIABLE`] names. Without that: beside this program and in the folder above it,
    /// where Cargo has programs when this is a test or an example; then where the `cordon` on the search path is,
    /// or has them as a package.
    #[must_use]
    pub fn found() -> Self {
        match std::env::var_os(FOLDER_VARIABLE) {
            Some(folder) => Self::in_folder(folder),
            None => {
                let (own, search) = (std::env::current_exe().ok(), std::env::var_os("PATH"));
                Self { folder: None, own, search }
            }
        }
    }

    /// In this folder and nowhere else.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()), own: None, search: None }
    }

    /// Where `name` is.
    ///
    /// # Errors
    /// [`Error::NoProgram`] with every place that was looked at.
    pub fn find(&self, name: &str) -> Result<PathBuf, Error> {
        let looked = self.places(name);
        match looked.iter().find(|path| path.is_file()) {
            Some(found) => Ok(found.clone()),
            None => Err(Error::NoProgram { name: name.to_owned(), looked }),
        }
    }

    fn places(&self, name: &str) -> Vec<PathBuf> {
        if let Some(folder) = &self.folder {
            return vec![folder.join(name)];
        }
        let own = self.own.as_deref().and_then(Path::parent);
        let above = own.and_then(Path::parent);
        let mut places: Vec<PathBuf> =
            own.into_iter().chain(above).map(|folder| folder.join(name)).collect();
        let searched = self.search.as_deref().map(std::env::split_paths);
        let cordon = searched.into_iter().flatten().map(|folder| folder.join("cordon"));
        places.extend(cordon.filter(|cordon| cordon.is_file()).map(|own| beside(&own, name)));
        places
    }
}

/// Where the program `name` is for one at `own`: beside it, or where a package has it. Links are followed: a package
/// may have one where the system looks for programs.
#[must_use]
pub fn beside(own: &Path, name: &str) -> PathBuf {
    let own = followed(own);
    let beside = own.with_file_name(name);
    let packaged = own.parent().and_then(Path::parent).map(|root| root.join(PACKAGED).join(name));
    match packaged {
        Some(packaged) if packaged.is_file() && !beside.is_file() => packaged,
        _ => beside,
    }
}

/// What a link to a program leads to.
fn followed(path: &Path) -> PathBuf {
    /// As many as systems follow.
    const MOST: usize = 32;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match path.read_link() {
            Ok(target) => path = path.with_file_name(target),
            Err(_) => break,
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(root: &Path, path: &str) -> PathBuf {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, path.to_str().unwrap()).unwrap();
        path
    }

    #[test]
    fn a_program_is_beside_another_or_where_a_package_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let own = make(root, "bin/cordon");
        let packaged = make(root, "libexec/cordon/device-proc");
        assert_eq!(beside(&own, "device-proc"), packaged);
        std::os::unix::fs::symlink(&own, root.join("link")).unwrap();
        assert_eq!(beside(&root.join("link"), "device-proc"), packaged);
        // As Homebrew links: by a path that begins where the link is.
        std::fs::create_dir(root.join("cellar")).unwrap();
        std::os::unix::fs::symlink("../bin/cordon", root.join("cellar/cordon")).unwrap();
        let found = beside(&root.join("cellar/cordon"), "device-proc");
        assert_eq!(std::fs::read_to_string(found).unwrap(), packaged.to_str().unwrap());
        // One that is built is beside it, and comes first.
        let built = make(root, "bin/device-proc");
        assert_eq!(beside(&own, "device-proc"), built);
        assert_eq!(beside(&own, "dext-sim"), own.with_file_name("dext-sim"));
    }

    #[test]
    fn a_test_finds_what_cargo_built_before_what_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let test = make(root, "target/debug/deps/test-1234");
        let installed = make(root, "usr/libexec/cordon/dext-sim");
        make(root, "usr/bin/cordon");
        let search = std::env::join_paths([root.join("nothing"), root.join("usr/bin")]).unwrap();
        let programs = Programs { folder: None, own: Some(test), search: Some(search) };
        assert_eq!(programs.find("dext-sim").unwrap(), installed);
        let built = make(root, "target/debug/dext-sim");
        assert_eq!(programs.find("dext-sim").unwrap(), built);
    }

    #[test]
    fn what_is_nowhere_is_named_with_where_it_was_looked_for() {
        let error = Programs::in_folder("/nowhere").find("dext-sim").unwrap_err().to_string();
        let says = "The program dext-sim is not at /nowhere/dext-sim (build all programs, or name their folder by \
                    CORDON_BIN_DIR)";
        assert_eq!(error, says);
    }
}
