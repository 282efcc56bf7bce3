//! What is logged, how it looks, and how much of it.

use super::*;
use std::io::{BufRead as _, BufReader};

/// Logs `count` warnings on a thread of this name.
fn warn(subscriber: &tracing::Dispatch, name: &str, count: usize) {
    let subscriber = subscriber.clone();
    let run = move || {
        tracing::dispatcher::with_default(&subscriber, || {
            for number in 0..count {
                tracing::warn!("number {number}");
                tracing::debug!("not asked for");
            }
        });
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).unwrap().join().unwrap();
}

/// What is written of what `log` logs.
fn written(filter: Filter, format: Format, log: impl FnOnce(&tracing::Dispatch)) -> Vec<String> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let notice = move |left| notice(format, left);
    let spool = Arc::new(Spool::start("test", writer, notice).unwrap());
    let subscriber = tracing::Dispatch::new(subscriber(&spool, filter, format));
    log(&subscriber);
    spool.flush(Duration::from_secs(10)).unwrap();
    drop((subscriber, spool));
    BufReader::new(std::fs::File::from(reader)).lines().map(Result::unwrap).collect()
}

/// Whether a text begins as RFC 3339 has the time of day in UTC, with microseconds.
fn begins_with_a_time(text: &str) -> bool {
    let shape: String =
        text.chars().take(27).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000000Z"
}

#[test]
fn each_thread_logs_as_much_as_it_may_and_the_rest_is_counted() {
    let lines = written(Filter::of(Level::WARN), Format::Text, |subscriber| {
        warn(subscriber, "function 01:00.0", 5000);
        warn(subscriber, "function 01:00.1", 10);
    });
    assert!(lines.iter().all(|line| begins_with_a_time(line)), "{:?}", lines.first());
    let lines = lines.into_iter().map(|line| line[27..].to_owned());
    let (told, counted): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("number"));
    let first = |line: &&String| **line == "  WARN number 0";
    assert_eq!(told.iter().filter(first).count(), 2, "{told:?}");
    let left: usize = counted
        .iter()
        .map(|line| {
            let rest = line.strip_prefix("  WARN ").unwrap();
            assert!(rest.ends_with("log lines were left out of function 01:00.0"), "{line}");
            rest.split(' ').next().unwrap().parse::<usize>().unwrap()
        })
        .sum();
    assert_eq!(told.len() + left, 5010);
    assert!(left > 4000, "{left}");
}

#[test]
fn as_json_every_line_is_an_object_also_what_was_left_out() {
    let lines = written(Filter::of(Level::WARN), Format::Json, |subscriber| {
        warn(subscriber, "one", 100);
    });
    let plain = Format::Json.line("ERROR", "cordon: \"why\"\nin lines", true);
    let mut left_out = 0;
    for line in lines.iter().chain([&plain]) {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(begins_with_a_time(object["timestamp"].as_str().unwrap()), "{line}");
        assert!(["WARN", "ERROR"].contains(&object["level"].as_str().unwrap()), "{line}");
        let text = object["fields"]["message"].as_str().unwrap();
        left_out += usize::from(text.contains("left out"));
    }
    assert!(left_out > 0, "{lines:?}");
}

#[test]
fn a_filter_picks_by_level_and_target_and_one_that_makes_no_sense_is_an_error() {
    let log = |subscriber: &tracing::Dispatch| {
        tracing::dispatcher::with_default(subscriber, || {
            tracing::info!(target: "wanted", "one");
            tracing::info!(target: "other", "two");
            tracing::error!(target: "other", "three");
        });
    };
    let of = |filter: &str| {
        let lines = written(Filter::parse(filter).unwrap(), Format::Text, log);
        lines.into_iter().map(|line| line[28..].trim_start().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("info"), ["INFO one", "INFO two", "ERROR three"]);
    assert_eq!(of("warn, wanted=debug"), ["INFO one", "ERROR three"]);
    assert_eq!(of("OFF"), [""; 0]);
    for (filter, why) in [
        ("warnn", "'warnn' is no level"),
        ("info,verbose", "'verbose' is no level"),
        ("", "'' is no level"),
        ("wanted=loud", "wanted=loud"),
        ("a=b=c", "a=b=c"),
    ] {
        let error = Filter::parse(filter).unwrap_err().to_string();
        assert!(error.contains(why), "{filter}: {error}");
        assert!(error.starts_with(&format!("'{filter}' is no filter")), "{error}");
    }
}
