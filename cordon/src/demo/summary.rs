//! What the demo says in its last line.

/// Everything the last line says.
#[derive(Default)]
pub(super) struct Summary {
    pub(super) bytes: u64,
    /// Bytes of them by bus addresses that the platform chose.
    pub(super) on_demand: u64,
    pub(super) interrupts: serde_json::Map<String, serde_json::Value>,
    pub(super) tried: usize,
    pub(super) refused: usize,
    pub(super) syscalls: u32,
}
