//! The picture of the guide: processes as boxes, what travels between them as lines. `cargo xtask guide --draw` writes it.

use std::fmt::Write as _;

/// Its file.
pub(super) const NAME: &str = "processes.svg";

/// A process: where it is, its size, its name, and what it has.
const BOXES: [(u32, u32, u32, &str, &str); 5] = [
    (20, 20, 600, "guest", "loads and stores of BARs cross no process"),
    (20, 110, 600, "VMM, or cordon serve", "guest memory, windows, events, the journal"),
    (20, 230, 290, "connection process", "claim, DMA, BAR mappings"),
    (330, 230, 290, "function process", "config, traps, interrupts, reset"),
    (20, 350, 600, "dext, or dext-sim", "the hardware, or simulated devices"),
];
/// What travels: from, to, and what.
const LINES: [(u32, u32, u32, &str); 5] = [
    (320, 75, 110, "traps"),
    (165, 165, 230, "tube"),
    (475, 165, 230, "tube, lane, events"),
    (165, 285, 350, "opener connections"),
    (475, 285, 350, "one unclaimed connection"),
];
/// Height of a box.
const HEIGHT: u32 = 55;

/// The picture.
pub(super) fn svg() -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 425\" font-family=\"sans-serif\" \
         text-anchor=\"middle\">\n<rect width=\"640\" height=\"425\" fill=\"#fff\"/>\n",
    );
    for (x, from, to, what) in LINES {
        let (middle, beside) = ((from + to) / 2 + 4, x + 8);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"{from}\" x2=\"{x}\" y2=\"{to}\" stroke=\"#555\" stroke-width=\"2\"/>"
        );
        let _ = writeln!(
            svg,
            "<text x=\"{beside}\" y=\"{middle}\" font-size=\"12\" text-anchor=\"start\" fill=\"#555\">{what}</text>"
        );
    }
    for (x, y, width, name, has) in BOXES {
        let confined = name.ends_with(" process");
        let (fill, middle) = (if confined { "#e3f0e3" } else { "#eef1f6" }, x + width / 2);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"{fill}\" stroke=\"#345\"/>"
        );
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" font-size=\"16\" fill=\"#123\">{name}</text>",
            y + 23
        );
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" font-size=\"12\" fill=\"#345\">{has}</text>",
            y + 42
        );
    }
    svg.push_str("</svg>\n");
    svg
}
