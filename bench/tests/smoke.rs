//! The benches run and say what they are to say; no time is asserted.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::Command;

use serde_json::Value;

#[test]
fn every_row_is_measured_and_printed_and_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let svg = directory.path().join("bench.svg");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["--json", "--time", "60", "--svg"]).arg(&svg);
    bench.env("CORDON_BIN_DIR", cordon_tests::bin_dir());
    let output = bench.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (sum, rows) = lines.split_last().unwrap();
    assert_eq!(sum["rows"].as_u64().unwrap(), rows.len() as u64);
    let reached = rows.iter().filter(|row| row["ok"] == true).count();
    assert_eq!(sum["ok"].as_u64().unwrap(), reached as u64);
    for row in rows {
        for number in ["median_ns", "p99_ns", "baseline_ns"] {
            assert!(row[number].as_u64().unwrap() > 0, "{row}");
        }
        for text in ["name", "baseline", "bar"] {
            assert!(!row[text].as_str().unwrap().is_empty(), "{row}");
        }
    }
    let drawn = std::fs::read_to_string(svg).unwrap();
    for row in rows {
        assert!(drawn.contains(row["name"].as_str().unwrap()), "{row}");
    }
}

#[test]
fn a_theme_that_is_none_is_refused_with_those_that_are() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = bench.args(["--only", "everything"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("access, window, socket, recovery"), "{error}");
}
