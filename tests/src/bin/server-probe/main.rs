//! Tries one thing that `cordon serve` must not be able to do: `server-probe confined|free NAME`. Confined,
//! it is confined as the server is, first. Says what came of it by its exit status: 0 done, 10 refused,
//! 11 there is no such call here, 12 done and should have worked in any case but did not.
//! `server-probe list` prints the names, `server-probe confined works` what must still work.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
use elsewhere::run;
#[cfg(target_os = "linux")]
use linux::run;

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    std::process::ExitCode::from(run(&words))
}
