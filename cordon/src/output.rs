//! What the commands print.

use std::fmt::Write as _;

use ipc::wire::common::BarInfo;
use ipc::wire::sandbox::{LayerState, SandboxReport};
use serde::Serialize;

/// One JSON object on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<(), crate::Failure> {
    Ok(console::line(serde_json::to_string(value)?)?)
}

/// Bytes for people: 64K, 1M, 300.
pub(crate) fn size(bytes: u64) -> String {
    for (unit, shift) in [("G", 30), ("M", 20), ("K", 10)] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A BAR as `cordon` shows it.
#[derive(Serialize)]
pub(crate) struct Bar {
    pub(crate) bar: usize,
    pub(crate) size: u64,
    pub(crate) io: bool,
    pub(crate) wide: bool,
    pub(crate) prefetchable: bool,
    pub(crate) memory_index: u8,
}

/// The BARs that there are.
pub(crate) fn bars(bars: &[Option<BarInfo>; 6]) -> Vec<Bar> {
    let bar = |(bar, info): (usize, &Option<BarInfo>)| {
        info.map(|info| Bar {
            bar,
            size: info.size,
            io: info.kind & BarInfo::IO != 0,
            wide: info.kind & BarInfo::WIDTH_64 != 0,
            prefetchable: info.kind & BarInfo::PREFETCHABLE != 0,
            memory_index: info.memory_index,
        })
    };
    bars.iter().enumerate().filter_map(bar).collect()
}

impl Bar {
    /// "memory 64-bit prefetchable" and the like.
    pub(crate) fn kind(&self) -> String {
        if self.io {
            return "I/O".to_owned();
        }
        let width = if self.wide { "64-bit" } else { "32-bit" };
        let prefetchable = if self.prefetchable { " prefetchable" } else { "" };
        format!("memory {width}{prefetchable}")
    }
}

/// A sandbox report as `cordon` shows it.
#[derive(Serialize)]
pub(crate) struct Sandbox {
    pub(crate) layers: Vec<Layer>,
    pub(crate) syscalls: u32,
}

/// One layer of it.
#[derive(Serialize)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) state: &'static str,
    pub(crate) detail: String,
}

impl From<&SandboxReport> for Sandbox {
    fn from(report: &SandboxReport) -> Self {
        let layer = |layer: &ipc::wire::sandbox::Layer| {
            let (state, detail) = match &layer.state {
                LayerState::Enforced(detail) => ("enforced", detail),
                LayerState::Partial(detail) => ("partial", detail),
                LayerState::Missing(detail) => ("MISSING", detail),
            };
            let printable = cordon_vmm::text::printable;
            Layer { name: layer.kind.to_string(), state, detail: printable(detail) }
        };
        Self { layers: report.layers.iter().map(layer).collect(), syscalls: report.syscalls }
    }
}

impl Sandbox {
    /// One line: how many layers hold, and which do not.
    pub(crate) fn summary(&self) -> String {
        let with = |state| -> Vec<&str> {
            let layers = self.layers.iter().filter(|layer| layer.state == state);
            layers.map(|layer| layer.name.as_str()).collect()
        };
        let (enforced, partial, missing) = (with("enforced"), with("partial"), with("MISSING"));
        let mut line = format!(
            "{} of {} layers enforced, {} system calls allowed",
            enforced.len(),
            self.layers.len(),
            self.syscalls
        );
        if !partial.is_empty() {
            let _ = write!(line, "; partial: {}", partial.join(", "));
        }
        if !missing.is_empty() {
            let _ = write!(line, "; MISSING: {}", missing.join(", "));
        }
        line
    }
}
