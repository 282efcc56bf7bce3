//! What a server counts, in Prometheus' text format; every name is in `docs/metrics.md`.
//!
//! Read from what is counted anyhow. Only DMA registrations are asked of a
//! process, which may not answer: these are left out then.

use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::time::Duration;

use cordon_cli::event::Part;
use cordon_cli::protocol::State;
use cordon_vmm::tally::{ACCESS_BOUNDS, Accesses, BOUNDS, Deaths, Histogram};
use cordon_vmm::{DmaStatistics, PassthroughDevice as _, PciAddress};

use super::commands;
use crate::serve::{Fleet, Slot, Watched};

/// A function that is attached, and what was asked of it.
struct Seen<'f> {
    slot: &'f Slot,
    watched: Arc<Watched>,
    dma: Option<DmaStatistics>,
}

/// Everything.
pub(super) fn text(fleet: &Fleet) -> String {
    let mut page = Page(String::new());
    page.family("cordon_build_info", "gauge", "Version of the server; always 1.");
    page.sample("cordon_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    page.family("cordon_function_state", "gauge", "1 for the state that the function is in.");
    for slot in fleet.slots() {
        let now = slot.watched().map_or(State::Detached, |watched| commands::state(&watched));
        for state in [State::Served, State::Away, State::GivenUp, State::Failed, State::Detached] {
            let labels: &[(&str, &dyn Display)] = &[("device", &slot.address()), ("state", &state)];
            page.sample("cordon_function_state", labels, u64::from(now == state));
        }
    }
    let all: Vec<Seen<'_>> = fleet.slots().iter().filter_map(seen).collect();
    processes(&mut page, &all);
    accesses(&mut page, &all);
    dma(&mut page, &all);
    clients(&mut page, fleet, &all);
    left_out(&mut page, fleet);
    page.0
}

fn seen(slot: &Slot) -> Option<Seen<'_>> {
    let watched = slot.watched()?;
    let is_there = commands::state(&watched) == State::Served;
    let function = &watched.function;
    let asked = is_there.then(|| function.connection().statistics(function.address()));
    let dma = asked.and_then(Result::ok);
    Some(Seen { slot, watched, dma })
}

fn processes(page: &mut Page, all: &[Seen<'_>]) {
    const DEATHS: &str = "cordon_process_deaths_total";
    let of_all = "Processes that died while they served the function or were set up to, by cause; a connection process \
                  counts for each function of its device.";
    page.family(DEATHS, "counter", of_all);
    for one in all {
        let function = &one.watched.function;
        let both: [(&str, Deaths); 2] =
            [("function", function.deaths()), ("connection", function.connection().deaths())];
        for (process, deaths) in both {
            for (kind, count) in deaths.iter() {
                let (device, cause) = (one.slot.address(), kind.name());
                let labels: &[(&str, &dyn Display)] =
                    &[("device", &device), ("process", &process), ("cause", &cause)];
                page.sample(DEATHS, labels, count);
            }
        }
    }
    const TOOK: &str = "cordon_recovery_duration_seconds";
    page.family(TOOK, "histogram", "Time without a function process, from its death to the next.");
    for one in all {
        page.histogram(TOOK, &one.slot.address(), &one.watched.function.recovery_times());
    }
    type Read = fn(&Watched) -> u64;
    let each: [(&str, &str, &str, Read); 5] = [
        (
            "cordon_upgrades_total",
            "counter",
            "Function processes that gave way to one of another program.",
            |one| one.function.upgrades(),
        ),
        (
            "cordon_returns_total",
            "counter",
            "Times that the device went away and came back.",
            |one| one.function.returns(),
        ),
        (
            "cordon_adoptions_total",
            "counter",
            "Connection processes that took over what one that died had left; counted for each function.",
            |one| one.function.connection().adoptions(),
        ),
        (
            "cordon_windows_generation",
            "gauge",
            "Generation of the memory under the windows.",
            |one| one.function.windows_generation(),
        ),
        (
            "cordon_standby_ready",
            "gauge",
            "1 while a standby waits for the process to die.",
            |one| u64::from(one.function.has_standby()),
        ),
    ];
    for (name, kind, help, read) in each {
        page.family(name, kind, help);
        for one in all {
            page.sample(name, &[("device", &one.slot.address())], read(&one.watched));
        }
    }
}

fn accesses(page: &mut Page, all: &[Seen<'_>]) {
    let all: Vec<(PciAddress, Accesses)> =
        all.iter().map(|one| (one.slot.address(), one.watched.function.accesses())).collect();
    const COUNT: &str = "cordon_accesses_total";
    page.family(COUNT, "counter", "Accesses that a function process was asked for.");
    for (device, accesses) in &all {
        page.sample(COUNT, &[("device", device)], accesses.count);
    }
    const TOOK: &str = "cordon_access_duration_seconds";
    page.family(TOOK, "histogram", "How long one access in 64 took.");
    for (device, accesses) in &all {
        page.histogram_within(&ACCESS_BOUNDS, TOOK, device, &accesses.sampled);
    }
    const HELD: &str = "cordon_held_access_duration_seconds";
    page.family(HELD, "histogram", "How long each access took that waited for another process.");
    for (device, accesses) in &all {
        page.histogram(HELD, device, &accesses.held);
    }
}

fn dma(page: &mut Page, all: &[Seen<'_>]) {
    type Read = fn(&DmaStatistics) -> u64;
    let each: [(&str, &str, Read); 4] = [
        ("cordon_dma_registrations", "DMA registrations that there are.", |dma| dma.regions),
        ("cordon_dma_registered_bytes", "Bytes of these registrations.", |dma| dma.bytes),
        ("cordon_dma_registrations_peak", "Most registrations at once.", |dma| dma.peak_regions),
        ("cordon_dma_registered_peak_bytes", "Most registered bytes at once.", |dma| {
            dma.peak_bytes
        }),
    ];
    let answered = || all.iter().filter_map(|one| Some((one.slot.address(), one.dma.as_ref()?)));
    for (name, help, read) in each {
        page.family(name, "gauge", help);
        for (device, dma) in answered() {
            page.sample(name, &[("device", &device)], read(dma));
        }
    }
    const FAILED: &str = "cordon_dma_limit_failures_total";
    page.family(FAILED, "counter", "Registrations that failed at a limit of the platform's.");
    for (device, dma) in answered() {
        for (limit, count) in [
            ("bytes", dma.failed_bytes),
            ("mappings", dma.failed_mappings),
            ("segments", dma.failed_segments),
        ] {
            page.sample(FAILED, &[("device", &device), ("limit", &limit)], count);
        }
    }
}

fn clients(page: &mut Page, fleet: &Fleet, all: &[Seen<'_>]) {
    const EVENTS: &str = "cordon_client_events_total";
    let help = "What clients of the function's sockets caused: came, were refused something (also at a budget \
                of theirs), were sent away or held up; those that are not told each among them.";
    page.family(EVENTS, "counter", help);
    for one in all {
        let companion = fleet.has_companion(one.slot).then_some((Part::Companion, "companion"));
        for (part, name) in [(Part::Function, "function")].into_iter().chain(companion) {
            for (event, count) in one.watched.caused(part) {
                let device = one.slot.address();
                let labels: &[(&str, &dyn Display)] =
                    &[("device", &device), ("part", &name), ("event", &event)];
                page.sample(EVENTS, labels, count);
            }
        }
    }
}

/// Events that were left out: the server's, not a function's.
fn left_out(page: &mut Page, fleet: &Fleet) {
    const LEFT_OUT: &str = "cordon_events_left_out_total";
    page.family(LEFT_OUT, "counter", "Events that were left out where events are written to.");
    for (output, totals) in fleet.sink().left_out() {
        for (why, count) in [("too_fast", totals.too_fast), ("unread", totals.unread)] {
            page.sample(LEFT_OUT, &[("output", &output), ("why", &why)], count);
        }
    }
    const UNOBSERVED: &str = "cordon_unobserved_total";
    page.family(UNOBSERVED, "counter", "Deaths and replacements that came too fast to be told.");
    page.sample(UNOBSERVED, &[], fleet.sink().unobserved());
}

/// The text so far.
struct Page(String);

impl Page {
    /// Begins a family, all of whose samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = escaped(&text.to_string());
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn histogram(&mut self, name: &str, device: &dyn Display, all: &Histogram) {
        self.histogram_within(&BOUNDS, name, device, all);
    }

    fn histogram_within(
        &mut self,
        bounds: &[Duration; BOUNDS.len()],
        name: &str,
        device: &dyn Display,
        all: &Histogram,
    ) {
        let bucket = format!("{name}_bucket");
        let bounds = bounds.iter().map(|bound| bound.as_secs_f64().to_string());
        let mut count = 0;
        for (bound, more) in bounds.chain(["+Inf".to_owned()]).zip(all.counts) {
            count += more;
            self.sample(&bucket, &[("device", device), ("le", &bound)], count);
        }
        self.sample(&format!("{name}_sum"), &[("device", device)], all.sum.as_secs_f64());
        self.sample(&format!("{name}_count"), &[("device", device)], count);
    }
}

/// A label's value as the format has it.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written_as_the_format_has_them() {
        let mut page = Page(String::new());
        page.family("a_total", "counter", "Help.");
        page.sample("a_total", &[("x", &"q\"\\\n"), ("y", &7)], 3);
        page.sample("b", &[], 0.5);
        let lines = [
            "# HELP a_total Help.",
            "# TYPE a_total counter",
            r#"a_total{x="q\"\\\n",y="7"} 3"#,
            "b 0.5",
        ];
        assert_eq!(page.0, lines.join("\n") + "\n");
    }

    #[test]
    fn buckets_are_cumulative_up_to_all() {
        let mut all = Histogram { sum: Duration::from_millis(1500), ..Histogram::default() };
        (all.counts[0], all.counts[3], all.counts[BOUNDS.len()]) = (2, 1, 1);
        let mut page = Page(String::new());
        page.histogram("h", &"d", &all);
        assert!(page.0.contains("h_bucket{device=\"d\",le=\"0.0005\"} 2\n"), "{}", page.0);
        assert!(page.0.contains("h_bucket{device=\"d\",le=\"0.005\"} 3\n"));
        assert!(page.0.contains("h_bucket{device=\"d\",le=\"2.5\"} 3\n"));
        let end = "le=\"+Inf\"} 4\nh_sum{device=\"d\"} 1.5\nh_count{device=\"d\"} 4\n";
        assert!(page.0.ends_with(end), "{}", page.0);
    }
}
