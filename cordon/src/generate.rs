//! `cordon generate`: man pages and shell completions, made from the definitions of the command line, so
//! that they say what `--help` says.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{Failure, Options};

/// Shells, and what each wants its file to be called.
const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "cordon.bash"), (Shell::Zsh, "_cordon"), (Shell::Fish, "cordon.fish")];

/// Writes all of them to `folder`, which is made: `cordon.1`, one `cordon-COMMAND.1` for each command, and
/// a file for each shell. The same bytes each time.
pub(crate) fn run(folder: &Path) -> Result<(), Failure> {
    let failed = |error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Options::command(), folder).map_err(failed)?;
    for (shell, name) in SHELLS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Options::command(), "cordon", &mut script);
        std::fs::write(folder.join(name), script).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn generated() -> BTreeMap<String, String> {
        let folder = tempfile::tempdir().unwrap();
        run(&folder.path().join("new")).unwrap();
        let entries = std::fs::read_dir(folder.path().join("new")).unwrap();
        let file = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        };
        entries.map(file).collect()
    }

    #[test]
    fn there_is_a_page_for_each_command_and_each_says_its_options() {
        let files = generated();
        let program = Options::command();
        let commands: Vec<&str> = program
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(clap::Command::get_name)
            .collect();
        assert!(commands.len() >= 6, "{commands:?}");
        for command in &commands {
            let page = &files[&format!("cordon-{command}.1")];
            assert!(page.contains(&format!("cordon\\-{command}")), "{page}");
            assert!(page.contains("Exit status"), "{command} says no exit status");
            assert!(files["cordon.1"].contains(&format!("cordon\\-{command}")), "{command}");
            for (_, name) in SHELLS {
                assert!(files[name].contains(command), "{name} does not know {command}");
            }
        }
        // Commands of a command have pages of their own.
        let visible = |command: &&clap::Command| !command.is_hide_set();
        let below: usize = program
            .get_subcommands()
            .filter(visible)
            .map(|command| command.get_subcommands().filter(visible).count())
            .sum();
        assert_eq!(files.len(), commands.len() + below + 1 + SHELLS.len(), "{:?}", files.keys());
        assert!(files["cordon-serve.1"].contains("companion\\-socket"));
        assert!(!files["cordon.1"].contains("generate"), "it is for packagers");
        // When and where this is built is not in them.
        assert_eq!(files, generated());
    }
}
