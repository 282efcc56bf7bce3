//! A function that is taken out of the machine while a program uses it, and put back: what removal has to wait for.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Failure;

/// How long the function may take to be there again after the bus was looked at.
const LONGEST: Duration = Duration::from_secs(10);

/// Runs a program; once it prints a line with `text`, has the kernel remove the function at `address`, which comes back
/// when that is done, whatever the program does. Then waits for its end.
pub(crate) fn check(address: &str, text: &str, command: &[&str]) -> Result<Value, Failure> {
    let (program, arguments) = command.split_first().ok_or("no program")?;
    let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    loop {
        let line = output.next().ok_or_else(|| format!("{program} never says {text}"))??;
        if line.contains(text) {
            break;
        }
    }
    let function = Path::new("/sys/bus/pci/devices").join(address);
    let began = Instant::now();
    std::fs::write(function.join("remove"), "1")?;
    let took = began.elapsed();
    let (gone, ran_on) = (!function.exists(), child.try_wait()?.is_none());
    std::fs::write("/sys/bus/pci/rescan", "1")?;
    let began = Instant::now();
    while !function.exists() && began.elapsed() < LONGEST {
        // Nothing else tells of it.
        std::thread::sleep(Duration::from_millis(10));
    }
    // What it prints has to go somewhere until it ends.
    let rest = output.collect::<Result<Vec<String>, _>>()?;
    let status = child.wait()?;
    Ok(json!({
        "removal_took_ms": u64::try_from(took.as_millis())?,
        "gone": gone,
        "program_ran_on": ran_on,
        "returned": function.exists(),
        "status": status.code(),
        "printed_after": rest.len(),
    }))
}
