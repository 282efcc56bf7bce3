//! docs/config-table.md says of ours what the permission table says (P6.4): every bit of every structure has one row
//! there, and the row is true.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;

use cordon_pci::permission::{
    Field, Shown, Structure, StructureId, Treatment, extended_capability, standard_capability,
    structures,
};
use cordon_tests::announce;

/// Bytes that are looked at of a structure whose length its device says.
const OF_ANY_LENGTH: u16 = 96;

/// A row: which structures, which bits, and what it says of ours.
struct Row<'t> {
    structure: &'t str,
    field: &'t str,
    first: u16,
    last: u16,
    bits: u32,
    ours: (Treatment, Shown),
}

fn hex(text: &str) -> u32 {
    let digits = text.strip_prefix("0x").unwrap_or_else(|| panic!("{text} is not hexadecimal"));
    u32::from_str_radix(digits, 16).unwrap()
}

fn ours(text: &str) -> (Treatment, Shown) {
    match text {
        "forwarded" => (Treatment::Forwarded, Shown::Device),
        "forwarded, modelled" => (Treatment::Forwarded, Shown::Model),
        "read-only" => (Treatment::ReadOnly, Shown::Device),
        "model" => (Treatment::Virtual, Shown::Model),
        "kept" => (Treatment::Virtual, Shown::Guest),
        "zero" => (Treatment::Virtual, Shown::Zero),
        "action" => (Treatment::Ours, Shown::Device),
        other => panic!("'{other}' is nothing that becomes of a write"),
    }
}

fn row(line: &str) -> Row<'_> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [structure, field, bytes, bits, becomes, vfio, why] = cells[..] else { panic!("{line}") };
    assert!([field, vfio, why].iter().all(|cell| !cell.is_empty()), "{line}");
    let (first, last) = bytes.split_once('-').unwrap();
    let last = if last == "end" { u16::MAX } else { u16::try_from(hex(last)).unwrap() };
    let bits = if bits == "all" { u32::MAX } else { hex(bits) };
    let first = u16::try_from(hex(first)).unwrap();
    assert!(first <= last && bits != 0, "{line}");
    Row { structure, field, first, last, bits, ours: ours(becomes) }
}

fn rows(text: &str) -> Vec<Row<'_>> {
    let (_, table) = text.split_once("| structure | field |").unwrap();
    table.lines().skip(2).take_while(|line| line.starts_with('|')).map(row).collect()
}

impl Row<'_> {
    /// Whether the row is about this structure.
    fn is_of(&self, id: StructureId) -> bool {
        let number = |prefix: &str| self.structure.strip_prefix(prefix)?.parse_hex();
        match id {
            StructureId::Header => self.structure == "header",
            StructureId::Unclaimed => self.structure == "unclaimed",
            StructureId::UnclaimedExtended => self.structure == "ext unclaimed",
            StructureId::UnknownStandard => matches!(self.structure, "each" | "other"),
            StructureId::UnknownExtended => matches!(self.structure, "ext each" | "ext other"),
            StructureId::Standard(id) => {
                self.structure == "each" || number("0x") == Some(id.into())
            }
            StructureId::Extended(id) => {
                self.structure == "ext each" || number("ext 0x") == Some(id.into())
            }
        }
    }

    /// Its bits of the byte at `at`.
    fn mask(&self, at: u16) -> u8 {
        if !(self.first..=self.last).contains(&at) {
            return 0;
        }
        match self.bits {
            u32::MAX => 0xff,
            bits => bits.to_le_bytes().get(usize::from(at - self.first)).copied().unwrap_or(0),
        }
    }
}

/// The number behind a prefix.
trait ParseHex {
    fn parse_hex(self) -> Option<u32>;
}

impl ParseHex for &str {
    fn parse_hex(self) -> Option<u32> {
        u32::from_str_radix(self, 16).ok()
    }
}

/// The structures of the table, MSI and PCI Express in their longest forms.
fn described() -> Vec<&'static Structure> {
    let is_longest = |one: &&Structure| match one.id {
        StructureId::Standard(id) => standard_capability(id).name == one.name,
        StructureId::Extended(id) => extended_capability(id).name == one.name,
        _ => true,
    };
    structures().filter(is_longest).collect()
}

/// What is wrong with the rows of one structure.
fn lies(structure: &Structure, rows: &[Row<'_>]) -> Vec<String> {
    let of_it: Vec<&Row<'_>> = rows.iter().filter(|row| row.is_of(structure.id)).collect();
    let length = if structure.length == Field::REST { OF_ANY_LENGTH } else { structure.length };
    let mut lies = Vec::new();
    for (at, bit) in (0..length).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let covering = of_it.iter().filter(|row| row.mask(at) >> bit & 1 != 0);
        let covering: Vec<&&Row<'_>> = covering.collect();
        let [row] = covering[..] else {
            lies.push(format!("{} {at:#x} bit {bit} has {} rows", structure.name, covering.len()));
            continue;
        };
        let field = structure.field(at, bit, length).unwrap();
        if row.ours != (field.treatment, field.shown) {
            lies.push(format!(
                "{} {at:#x} bit {bit}: '{}' says {:?}, and it is {:?}",
                structure.name,
                row.field,
                row.ours,
                (field.treatment, field.shown)
            ));
        }
    }
    let past_the_end = |row: &&&Row<'_>| {
        let ends = (row.first..=row.last.min(length.max(row.first)))
            .filter(|at| row.mask(*at) != 0)
            .max()
            .is_none_or(|last| row.last != u16::MAX && last >= length);
        ends && row.structure != "each" && row.structure != "ext each"
    };
    lies.extend(
        of_it
            .iter()
            .filter(past_the_end)
            .map(|row| format!("{}: '{}' has bits that are not there", structure.name, row.field)),
    );
    lies
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config-table.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_field_of_config_space_is_in_the_document_and_is_as_it_says() {
    let text = document();
    let rows = rows(&text);
    let structures = described();
    let lies: Vec<String> = structures.iter().flat_map(|one| lies(one, &rows)).collect();
    assert!(lies.is_empty(), "{} lies, the first: {:#?}", lies.len(), &lies[..lies.len().min(8)]);
    for row in &rows {
        let known = structures.iter().any(|one| row.is_of(one.id));
        assert!(known, "'{}' is of no structure: {}", row.field, row.structure);
    }
    assert!(rows.len() > 120 && structures.len() > 70, "{} {}", rows.len(), structures.len());
    announce(&format!("config table: {} fields", rows.len()));
}

/// The test above finds what it is there for.
#[test]
fn a_row_that_lies_or_is_missing_or_twice_is_found() {
    let text = document();
    let power = standard_capability(0x01);
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let text = text.replacen(from, to, 1);
        lies(power, &rows(&text)).len()
    };
    assert_eq!(changed("| 0x0003 | forwarded, modelled |", "| 0x0003 | read-only |"), 2);
    assert_eq!(changed("| 0x8100 | zero |", "| 0x8000 | zero |"), 1);
    assert_eq!(changed("| 0x8100 | zero |", "| 0x8101 | zero |"), 1);
    assert_eq!(changed("| 0x01 | Bridge extensions, data |", "| 0x02 | Bridge |"), 16);
    assert_eq!(
        changed(
            "| 0x06-0x07 | all | read-only | hardware | no bridge",
            "| 0x06-0x08 | all | read-only | hardware | no bridge"
        ),
        1
    );
}
