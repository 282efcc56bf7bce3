//! `cordon ctl metrics`: the text is read strictly, as Prometheus does, and says what happened.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::process::Command;

use cordon_tests::serve::Serve;
use cordon_tests::{Simulator, eventually, program, signal};
use rustix::process::Signal;

/// Samples by name and labels.
type Samples = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// What was read.
struct Metrics {
    kinds: BTreeMap<String, String>,
    samples: Samples,
}

fn is_name(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Labels from behind the bracket; and what comes behind the other one.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut all = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").unwrap();
        assert!(is_name(name), "{name}");
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    other if other == '\\' || other == '"' => other,
                    other => panic!("\\{other} in {text}"),
                }),
                (_, other) => value.push(other),
            }
        };
        assert!(all.insert(name.to_owned(), value).is_none(), "{name} is there twice");
        match rest[end + 1..].split_at(1) {
            (",", more) => text = more,
            ("}", more) => return (all, more),
            other => panic!("{other:?}"),
        }
    }
}

fn read(text: &str) -> Metrics {
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let (mut kinds, mut samples) = (BTreeMap::new(), Samples::new());
    let mut family = String::new();
    let mut helped = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && help.ends_with('.'), "{line}");
            assert!(helped.insert(name.to_owned()), "{name} is there twice");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family, "help comes first");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(name.starts_with("cordon_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let at = line.find(['{', ' ']).unwrap();
            let name = &line[..at];
            let (labels, rest) = match line[at..].strip_prefix('{') {
                Some(rest) => labels(rest),
                None => (BTreeMap::new(), &line[at..]),
            };
            let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
            let of_family = match kinds[&family].as_str() {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix) == Some(&family)),
                _ => name == family,
            };
            assert!(of_family && is_name(name), "{line} among {family}");
            assert!(value >= 0.0 && value.is_finite(), "{line}");
            let before = samples.insert((name.to_owned(), labels), value);
            assert!(before.is_none(), "{line} is there twice");
        }
    }
    let metrics = Metrics { kinds, samples };
    metrics.check_histograms();
    metrics
}

impl Metrics {
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned()));
        let key = (name.to_owned(), labels.collect());
        *self.samples.get(&key).unwrap_or_else(|| panic!("there is no {key:?}"))
    }

    /// Buckets grow, the last one is all, and each has its sum.
    fn check_histograms(&self) {
        let mut seen = 0;
        for name in self.kinds.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name)
        {
            let mut buckets: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
            for ((one, labels), value) in &self.samples {
                if *one == format!("{name}_bucket") {
                    let mut labels = labels.clone();
                    let bound = labels.remove("le").unwrap();
                    buckets.entry(labels).or_default().push((bound.parse().unwrap(), *value));
                }
            }
            for (labels, mut buckets) in buckets {
                buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
                assert!(buckets.is_sorted_by(|one, other| one.1 <= other.1), "{buckets:?}");
                let (last, all) = *buckets.last().unwrap();
                assert!(last.is_infinite());
                assert_eq!(self.samples[&(format!("{name}_count"), labels.clone())], all);
                assert!(self.samples.contains_key(&(format!("{name}_sum"), labels)));
                seen += 1;
            }
        }
        assert!(seen > 0);
    }
}

fn metrics(serve: &Serve) -> Metrics {
    let mut command = Command::new(program("cordon"));
    let output =
        command.args(["ctl", "metrics", "--control"]).arg(serve.control()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn metrics_say_what_died_what_was_recovered_and_what_clients_caused() {
    let simulator = Simulator::usual();
    let serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
    let now = metrics(&serve);
    let (nvme, probe) = (("device", "01:00.0"), ("device", "01:00.1"));
    assert_eq!(now.get("cordon_function_state", &[probe, ("state", "served")]), 1.0);
    assert_eq!(now.get("cordon_function_state", &[probe, ("state", "detached")]), 0.0);
    let killed = |now: &Metrics, device| {
        let labels = [device, ("process", "function"), ("cause", "killed")];
        now.get("cordon_process_deaths_total", &labels)
    };
    assert_eq!(killed(&now, probe), 0.0);
    let function = || {
        let mut command = Command::new(program("cordon"));
        command.args(["ctl", "--json", "inspect", "01:00.1", "--control"]).arg(serve.control());
        let seen: serde_json::Value =
            serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        (seen["function_process"].as_u64().unwrap(), seen["replacements"].as_u64().unwrap())
    };
    for death in 1..=3 {
        signal(u32::try_from(function().0).unwrap(), Signal::KILL);
        assert!(eventually(|| function().1 == death));
    }
    // A client that comes, is refused something, maps memory, and keeps another one out.
    let mut client = serve.client("01:00.1");
    client.refused(u16::MAX, &[], &[]);
    let ram = cordon_tests::vfio_user::ram(1 << 20);
    let map = cordon_tests::vfio_user::map(3, 0, 0x4000_0000, 1 << 20);
    use std::os::fd::AsFd as _;
    let mapped = client.ask(cordon_vfio_user::protocol::command::DMA_MAP, &map, &[ram.as_fd()]);
    assert_eq!(mapped.error, 0);
    let event = |now: &Metrics, event| {
        let labels = [probe, ("part", "function"), ("event", event)];
        now.get("cordon_client_events_total", &labels)
    };
    assert!(eventually(|| event(&metrics(&serve), "refused") == 1.0));
    // Also each of those that are too many to be told: 20 are, and then 10 a second.
    for _ in 0..300 {
        client.refused(u16::MAX, &[], &[]);
    }
    assert!(eventually(|| event(&metrics(&serve), "refused") == 301.0));
    let now = metrics(&serve);
    assert_eq!((killed(&now, probe), killed(&now, nvme)), (3.0, 0.0));
    assert_eq!(now.get("cordon_recovery_duration_seconds_count", &[probe]), 3.0);
    assert_eq!(now.get("cordon_recovery_duration_seconds_count", &[nvme]), 0.0);
    let sum = now.get("cordon_recovery_duration_seconds_sum", &[probe]);
    assert!(sum > 0.0 && sum < 30.0, "{sum}");
    assert_eq!((event(&now, "attach"), event(&now, "busy")), (1.0, 0.0));
    assert_eq!(now.get("cordon_dma_registrations", &[probe]), 1.0);
    assert_eq!(now.get("cordon_dma_registered_bytes", &[probe]), f64::from(1 << 20));
    // Accesses: all are counted, some are timed, and those that wait are.
    let accesses = |now: &Metrics| {
        let of = |name: &str| now.get(name, &[probe]);
        [
            of("cordon_accesses_total"),
            of("cordon_access_duration_seconds_count"),
            of("cordon_held_access_duration_seconds_count"),
        ]
    };
    client.master_bus();
    let before = accesses(&metrics(&serve));
    for _ in 0..640 {
        client.write(2, 0x100, &7u64.to_le_bytes());
    }
    let now = accesses(&metrics(&serve));
    assert_eq!((now[0] - before[0], now[1] - before[1], now[2]), (640.0, 10.0, before[2]));
    // While the next one starts.
    let (pid, deaths) = function();
    signal(u32::try_from(pid).unwrap(), Signal::STOP);
    client.write(2, 0x100, &8u64.to_le_bytes());
    assert!(eventually(|| function().1 == deaths + 1));
    let now = metrics(&serve);
    assert_eq!(accesses(&now)[2], before[2] + 1.0);
    let held = now.get("cordon_held_access_duration_seconds_sum", &[probe]);
    assert!(held > 0.2 && held < 6.0, "{held}");
    // What a client causes too fast is left out, on both outputs.
    for _ in 0..200 {
        // Another one is there: it is sent away, which is told.
        drop(UnixStream::connect(serve.socket("01:00.1")).unwrap());
    }
    let left_out = |output| {
        let labels = [("output", output), ("why", "too_fast")];
        metrics(&serve).get("cordon_events_left_out_total", &labels)
    };
    assert!(eventually(|| left_out("lines") > 50.0 && left_out("stream") > 50.0));
    let now = metrics(&serve);
    assert_eq!(now.get("cordon_unobserved_total", &[]), 0.0);
    drop(client);
    assert!(eventually(|| metrics(&serve).get("cordon_dma_registrations", &[probe]) == 0.0));
    let now = metrics(&serve);
    assert_eq!(now.get("cordon_dma_registered_peak_bytes", &[probe]), f64::from(1 << 20));
    assert_eq!(event(&now, "refused"), 301.0);
    // Each is in the document, and nothing else is.
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"))
            .unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let names = rows.map(|(name, _)| name.to_owned());
    let listed: BTreeSet<String> = names.filter(|name| name.starts_with("cordon_")).collect();
    assert_eq!(listed, now.kinds.into_keys().collect::<BTreeSet<String>>());
}
