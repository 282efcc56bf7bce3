//! The fuzz targets: built with instrumentation, and run by libFuzzer for some seconds each.
//!
//! `fuzz/` is a package in cargo-fuzz's layout, and works with it. Here it is built with the toolchain of the
//! project and nothing that must be installed but a C++ compiler, which libFuzzer needs. Each target
//! begins with its committed corpus; what it finds of interest goes to `target/fuzz/corpus`, and an
//! input that fails to `target/fuzz/artifacts`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use console::say;

use crate::apt::make;
use crate::{Result, cargo, process, root, run as run_command, target, times, yielding};

/// What has LLVM count edges and compares, for libFuzzer, and check addresses. That the last is unstable
/// says nothing of the runtime, which every toolchain brings.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Zsanitizer=address";

/// Most files of a committed corpus.
const MOST_KEPT: usize = 40;

/// A run of one target.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    runs: u64,
    /// Inputs that failed.
    findings: Vec<PathBuf>,
}

/// Every target that there is, in the order of their names.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let files = entries.flatten().map(|entry| entry.path());
    let name = |path: PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = files.filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// Runs one target, or every one, for `seconds` in all, which are shared out.
///
/// With `keep`, what they found of interest goes into the committed corpora.
pub(crate) fn run(only: Option<&str>, seconds: u64, keep: bool) -> Result {
    let mut targets = targets()?;
    if let Some(only) = only {
        if !targets.iter().any(|name| name == only) {
            let all = targets.join(", ");
            return Err(format!("there is no fuzz target {only}, only {all}").into());
        }
        targets.retain(|name| name == only);
    }
    let programs = build()?;
    let each = share(seconds, targets.len());
    times::heading(&format!("fuzzing {} targets for {each} s each", targets.len()))?;
    let mut all = Outcome::default();
    for name in &targets {
        let one = fuzz(&programs.join(name), name, each)?;
        say!("fuzz target {name}: {} runs, {} findings", one.runs, one.findings.len())?;
        all.runs += one.runs;
        all.findings.extend(one.findings);
        if keep {
            say!("corpus of {name}: {} files", kept(&programs.join(name), name)?)?;
        }
    }
    for finding in &all.findings {
        say!("finding: {}", finding.display())?;
    }
    say!("fuzz: {} runs, {} findings", all.runs, all.findings.len())?;
    if all.findings.is_empty() { Ok(()) } else { Err("an input failed: see above".into()) }
}

/// The seconds of each of so many targets: what is left over is nobody's, and each has one at least.
fn share(seconds: u64, targets: usize) -> u64 {
    (seconds / u64::try_from(targets).unwrap_or(u64::MAX).max(1)).max(1)
}

/// Builds the targets; where they are.
pub(crate) fn build() -> Result<PathBuf> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let there = Command::new(&compiler).arg("--version").stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        let name = compiler.to_string_lossy();
        return Err(format!("libFuzzer needs a C++ compiler, and there is no {name} (g++)").into());
    }
    // With a target named, build scripts and macros are built without the flags.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = target().join("fuzz");
    let mut build = cargo(&["build", "--release", "--quiet", "--locked", "--bins"]);
    build.arg("--manifest-path").arg(root().join("fuzz/Cargo.toml"));
    build.args(["--target", &triple]).arg("--target-dir").arg(&folder);
    build.env("RUSTFLAGS", FLAGS).env("RUSTC_BOOTSTRAP", "1");
    run_command("building the fuzz targets", yielding(build))?;
    Ok(folder.join(triple).join("release"))
}

/// Runs a target for some seconds, or until an input fails.
fn fuzz(program: &Path, name: &str, seconds: u64) -> Result<Outcome> {
    let folder = target().join("fuzz");
    let (corpus, artifacts) =
        (folder.join("corpus").join(name), folder.join("artifacts").join(name));
    make(&corpus)?;
    make(&artifacts)?;
    let mut command = Command::new(program);
    // New inputs go to the first of the two.
    command.arg(&corpus).arg(root().join("fuzz/corpus").join(name));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={seconds}"));
    // From the beginning as long as they may become: what takes several steps needs some bytes for each.
    command.args(["-max_len=1024", "-len_control=0", "-timeout=10", "-rss_limit_mb=1024"]);
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    let output = process::output(name, &mut command)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let outcome = read(&text);
    if output.status.success() && outcome.findings.is_empty() {
        return if outcome.runs > 0 { Ok(outcome) } else { Err(format!("{name}: {text}").into()) };
    }
    say!("{}", text.trim_end())?;
    match outcome.findings.len() {
        // It did not get as far as an input.
        0 => Err(format!("{name}: {}", output.status).into()),
        _ => Ok(outcome),
    }
}

/// Makes the committed corpus of a target anew: the fewest inputs that reach all that is reached, and of these
/// not more than are worth it, small and large ones. How many that are.
fn kept(program: &Path, name: &str) -> Result<usize> {
    let folder = target().join("fuzz");
    let (merged, committed) =
        (folder.join("merged").join(name), root().join("fuzz/corpus").join(name));
    let _ = std::fs::remove_dir_all(&merged);
    make(&merged)?;
    make(&committed)?;
    let mut command = Command::new(program);
    command.arg("-set_cover_merge=1").arg(&merged);
    command.arg(folder.join("corpus").join(name)).arg(&committed);
    let output = process::output(name, &mut command)?;
    if !output.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&merged)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.file_name()));
    }
    files.sort();
    std::fs::remove_dir_all(&committed)?;
    make(&committed)?;
    let chosen = spread(files.len(), MOST_KEPT);
    for (_, file) in chosen.iter().filter_map(|at| files.get(*at)) {
        std::fs::copy(merged.join(file), committed.join(file))?;
    }
    Ok(chosen.len())
}

/// At most `most` of so many, from the first to the last.
fn spread(all: usize, most: usize) -> Vec<usize> {
    if all <= most {
        return (0..all).collect();
    }
    (0..most).map(|number| number * all / most).collect()
}

/// What libFuzzer says at its end.
fn read(text: &str) -> Outcome {
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let written = text.lines().filter_map(|line| line.split_once("Test unit written to "));
    Outcome {
        runs: runs.and_then(|runs| runs.trim().parse().ok()).unwrap_or(0),
        findings: written.map(|(_, path)| PathBuf::from(path.trim())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_of_many_are_spread_over_all() {
        assert_eq!(spread(3, 4), [0, 1, 2]);
        assert_eq!(spread(9, 3), [0, 3, 6]);
    }

    #[test]
    fn the_time_is_shared_out() {
        assert_eq!((share(60, 10), share(60, 1), share(5, 10), share(0, 0)), (6, 60, 1, 1));
    }

    #[test]
    fn runs_and_findings_are_read() {
        let quiet = "Done 5 runs in 1 second(s)\nstat::number_of_executed_units: 5\n";
        assert_eq!(read(quiet), Outcome { runs: 5, findings: Vec::new() });
        let loud = "thread panicked\nartifact_prefix='x/'; Test unit written to x/crash-1\nBase64: \n\
                    stat::number_of_executed_units: 7\n";
        assert_eq!(read(loud), Outcome { runs: 7, findings: vec!["x/crash-1".into()] });
    }

    #[test]
    fn every_target_is_a_program_of_the_package_with_a_corpus() {
        let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let programs = manifest["bin"].as_array().unwrap();
        let mut names: Vec<&str> =
            programs.iter().map(|program| program["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, targets().unwrap());
        for name in names {
            let corpus = root().join("fuzz/corpus").join(name);
            assert!(std::fs::read_dir(&corpus).unwrap().count() > 0, "{name}");
        }
    }
}
