//! The config space of a device that says what it likes.

use arbitrary::Arbitrary;
use cordon_pci::registers::{CAPABILITY_POINTER, CONFIG_SPACE, EXTENDED, HEADER, STATUS, VENDOR};
use cordon_pci::{Bar, BarKind};

use crate::lists;

/// What it shows: capabilities, then whatever else overwrites them.
#[derive(Arbitrary, Debug)]
pub struct Device {
    /// Where the lists begin: nowhere in particular, if it says so.
    #[arbitrary(with = lists::rarely)]
    pointer: Option<u8>,
    /// Standard capabilities stand one behind the other, as those of real devices do.
    in_order: bool,
    /// One of each kind, as real devices have them, and what they say; then no others count.
    each: Option<[[u8; 10]; 7]>,
    #[arbitrary(with = lists::several)]
    standard: Vec<Capability>,
    #[arbitrary(with = lists::several)]
    extended: Vec<Capability>,
    row: Option<Row>,
    patches: Vec<(u16, Vec<u8>)>,
}

/// An entry of a list.
#[derive(Arbitrary, Debug)]
struct Capability {
    at: u16,
    /// One of those that have rules of their own, or any.
    id: Id,
    /// Where it says that the next is, instead of where that is.
    #[arbitrary(with = lists::rarely)]
    next: Option<u16>,
    body: [u8; 20],
}

#[derive(Arbitrary, Debug)]
enum Id {
    Known(u8),
    Any(u16),
}

/// More extended capabilities than can be described one by one, behind the others.
#[derive(Arbitrary, Debug)]
struct Row {
    count: u8,
    id: u16,
    /// Which of them is behind the last one, if any is.
    back: Option<u8>,
}

/// Power management, VPD, MSI, vendor, Express, MSI-X, Advanced Features, and their lengths.
const STANDARD: [u16; 7] = [0x01, 0x03, 0x05, 0x09, 0x10, 0x11, 0x13];
const LENGTHS: [usize; 7] = [8, 8, 24, 20, 60, 12, 8];
/// Where each of them is where there is one of each.
const EACH: [u8; 7] = [0x40, 0x48, 0x50, 0x68, 0x7c, 0xb8, 0xc4];
/// Advanced errors, serial number, vendor, ATS, SR-IOV, resizable BARs.
const EXTENDED_IDS: [u16; 6] = [0x01, 0x03, 0x0b, 0x0f, 0x10, 0x15];
/// Where a row begins that is not all of the list, and how far its entries are from each other.
const ROW: usize = 0x800;
const STEP: usize = 8;

impl Id {
    fn number(&self, known: &[u16]) -> u16 {
        match self {
            Self::Known(number) => known[usize::from(*number) % known.len()],
            Self::Any(number) => *number,
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Known(number) => LENGTHS[usize::from(*number) % LENGTHS.len()],
            Self::Any(_) => 24,
        }
    }
}

impl Device {
    /// All of its config space.
    pub fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_SPACE];
        put(&mut config, VENDOR, &[0xd0, 0xc0, 0x02, 0x00]);
        put(&mut config, STATUS, &[0x10, 0]);
        self.put_standard(&mut config);
        self.put_extended(&mut config);
        for (at, bytes) in &self.patches {
            put(&mut config, usize::from(*at) % CONFIG_SPACE, bytes);
        }
        config
    }

    fn put_standard(&self, config: &mut [u8]) {
        if let Some(bodies) = &self.each {
            config[CAPABILITY_POINTER] = EACH[0];
            for (number, body) in bodies.iter().enumerate() {
                let next = EACH.get(number + 1).copied().unwrap_or(0);
                let head = [STANDARD[number] as u8, next];
                put(config, EACH[number].into(), &[&head, &body[..]].concat());
            }
            return;
        }
        let mut behind = HEADER;
        let mut place = |one: &Capability| {
            let at = if self.in_order { behind } else { HEADER + usize::from(one.at) / 4 * 4 };
            behind += one.id.length();
            HEADER + (at - HEADER) % (EXTENDED - HEADER)
        };
        let places: Vec<usize> = self.standard.iter().map(&mut place).collect();
        let first = places.first().map_or(0, |at| *at as u8);
        config[CAPABILITY_POINTER] = self.pointer.unwrap_or(first);
        for (number, one) in self.standard.iter().enumerate() {
            let next = places.get(number + 1).map_or(0, |at| *at as u16);
            let [next, _] = one.next.unwrap_or(next).to_le_bytes();
            let [id, _] = one.id.number(&STANDARD).to_le_bytes();
            let body = if self.in_order { one.id.length() - 2 } else { one.body.len() };
            let body = &one.body[..body.min(one.body.len())];
            put(config, places[number], &[&[id, next], body].concat());
        }
    }

    fn put_extended(&self, config: &mut [u8]) {
        let place = |number: usize, one: &Capability| match number {
            0 => EXTENDED,
            _ => EXTENDED + usize::from(one.at) % (CONFIG_SPACE - EXTENDED) / 4 * 4,
        };
        let row = if self.extended.is_empty() { EXTENDED } else { ROW };
        let behind = self.row.as_ref().map_or(0, |_| row as u16);
        for (number, one) in self.extended.iter().enumerate() {
            let next = self.extended.get(number + 1);
            let next = next.map_or(behind, |one| place(number + 1, one) as u16);
            let id = u32::from(one.id.number(&EXTENDED_IDS));
            let header = header(id, one.next.unwrap_or(next));
            put(config, place(number, one), &[&header, &one.body[..]].concat());
        }
        let Some(Row { count, id, back }) = &self.row else { return };
        for number in 0..=usize::from(*count) {
            let behind = match back {
                _ if number < usize::from(*count) => row + STEP * (number + 1),
                Some(back) => row + STEP * usize::from(*back),
                None => 0,
            };
            put(config, row + STEP * number, &header((*id).into(), behind as u16));
        }
    }
}

/// The first 4 bytes of an extended capability.
fn header(id: u32, next: u16) -> [u8; 4] {
    (id | 1 << 16 | u32::from(next) << 20).to_le_bytes()
}

/// Writes as far as there is room.
pub fn put(config: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in config.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// A BAR as a device describes it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct AnyBar {
    size: u64,
    /// Mostly small powers of two: the rest of the bits are only rarely of interest.
    shift: u8,
    kind: u8,
}

impl AnyBar {
    /// It.
    pub fn bar(self) -> Bar {
        let size = self.size >> (self.shift & 63);
        Bar { size, kind: BarKind::from_bits(self.kind) }
    }
}
