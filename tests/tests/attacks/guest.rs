//! A guest that means ill, at its own function and the companion beside it, which real processes serve. The
//! neighbour is a sibling function of another guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cordon_tests::companion::{Guest as Driver, PAGE, REQUESTS, RESPONSES};
use cordon_tests::{RAM, RAM_BASE, SetAtEnd, Simulator, address, config};
use cordon_vmm::companion::{Companion, CompanionConfig, register};
use cordon_vmm::{DmaMode, Function, Host, PassthroughDevice, Recovery};

use crate::ledger::{Ledger, Stage};
use crate::neighbour::Neighbour;
use crate::{ATTACKER, Guest, SIBLING, random, simulator};

/// How long one attack goes on.
const TIME: Duration = Duration::from_millis(700);
/// Memory that can be mapped: behind the rings.
const DATA: u64 = RAM_BASE + 0x30_0000;

/// Memory that no attack maps.
const SPARE: u64 = RAM_BASE + 0x3f_0000;

/// What a guest attacks with.
struct Attacked {
    function: Arc<Function>,
    companion: Arc<Companion>,
    guest: Guest,
}

impl Attacked {
    fn driver(&self) -> Driver<'_> {
        let layout = self.companion.config().layout;
        Driver { companion: &*self.companion, ram: &self.guest.ram, layout }
    }

    /// Rings for a page, whatever comes of it.
    fn ring(&self, page: u64) -> Option<u32> {
        let write = |at, value: u64| {
            let word = u32::try_from(value & 0xffff_ffff).unwrap();
            self.companion.bar_write(0, at, &word.to_le_bytes()).is_ok()
        };
        let mut status = [0; 4];
        let rung = write(register::CMD_GPA_LO, page)
            && write(register::CMD_GPA_HI, page >> 32)
            && write(register::DOORBELL, 1)
            && self.companion.bar_read(0, register::STATUS, &mut status).is_ok();
        rung.then(|| u32::from_le_bytes(status))
    }

    /// A batch that is as it should be works.
    fn works(&self) -> Result<(), String> {
        self.companion.config_write(4, &[6, 0]).map_err(|error| error.to_string())?;
        let driver = self.driver();
        let (status, mapped) = driver.map(&[(SPARE, 0x4000)]);
        let bus = mapped.first().map(|(bus, ..)| *bus);
        match (status, bus) {
            (0, Some(bus)) if driver.unmap(&[bus]).0 == 0 => Ok(()),
            other => Err(format!("the companion does not work any more: {other:x?}")),
        }
    }

    /// The function is there and its device with it.
    fn answers(&self) -> Result<(), String> {
        let mut ids = [0; 4];
        let read = self.function.config_read(0, &mut ids);
        match (read, ids) {
            (Ok(()), [0xd0, 0xc0, 2, 0]) => Ok(()),
            other => Err(format!("the function does not answer any more: {other:x?}")),
        }
    }
}

/// An attack, and what came of it.
type Attack = (&'static str, fn(&Attacked) -> Result<String, String>);

/// Repeats something for as long as an attack lasts; how often.
fn repeat(mut what: impl FnMut()) -> u32 {
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < TIME {
        what();
        count += 1;
    }
    count
}

const ATTACKS: &[Attack] = &[
    ("rings that point at themselves and each other", |attacked| {
        let driver = attacked.driver();
        let places = [PAGE, PAGE + 8, PAGE + 16, REQUESTS, RESPONSES, RESPONSES - 8];
        let mut next = random(11);
        let mut rung = 0;
        let count = repeat(|| {
            let pick = |word: u64| places[usize::try_from(word % 6).unwrap()];
            driver.write_map(&[(DATA, 0x4000), (PAGE, 0x4000), (REQUESTS, 0x1000)]);
            let kind = u32::try_from(next() % 3).unwrap();
            let entries = usize::try_from(next() % 5000).unwrap();
            driver.command(kind, entries, pick(next()), pick(next()));
            rung += u32::from(attacked.ring(pick(next())).is_some());
        });
        Ok(format!("{rung} of {count} answered"))
    }),
    ("rings outside of memory", |attacked| {
        let driver = attacked.driver();
        let places = [
            0,
            RAM_BASE - 8,
            RAM_BASE + RAM - 8,
            RAM_BASE + RAM,
            u64::MAX - 7,
            !0xfff,
            1 << 63,
            PAGE,
            PAGE + 1,
        ];
        let mut rung = 0;
        for page in places {
            for requests in places {
                for responses in places {
                    driver.command(1, 4096, requests, responses);
                    rung += u32::from(attacked.ring(page).is_some());
                }
            }
        }
        Ok(format!("{rung} of {} answered", places.len().pow(3)))
    }),
    ("batches that are rewritten while they are read", |attacked| {
        let (driver, over) = (attacked.driver(), AtomicBool::new(false));
        let count = std::thread::scope(|scope| {
            let ends = SetAtEnd(&over);
            scope.spawn(|| {
                let mut next = random(13);
                while !over.load(Ordering::Relaxed) {
                    let at = [PAGE, REQUESTS, RESPONSES][usize::try_from(next() % 3).unwrap()];
                    let value = if next().is_multiple_of(2) { next() } else { next() >> 58 };
                    driver.put(at + next() % 512 * 8, &value.to_le_bytes());
                }
            });
            let count = repeat(|| {
                driver.write_map(&[(DATA, 0x4000); 16]);
                attacked.ring(PAGE);
            });
            drop(ends);
            count
        });
        Ok(format!("{count} rung"))
    }),
    ("doorbells of several processors at once", |attacked| {
        let count = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4u64)
                .map(|thread| {
                    scope.spawn(move || {
                        repeat(|| {
                            attacked.ring(PAGE + thread * 8);
                        })
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).sum::<u32>()
        });
        Ok(format!("{count} rung"))
    }),
    ("more mappings than there are", |attacked| {
        let driver = attacked.driver();
        let ranges: Vec<_> = (0..4096u64).map(|at| (DATA + at % 200 * 0x1000, 0x1000)).collect();
        let count = repeat(|| {
            driver.write_map(&ranges);
            attacked.ring(PAGE);
        });
        Ok(format!("{count} batches of 4096"))
    }),
    ("config writes at random", |attacked| {
        let mut next = random(17);
        let count = repeat(|| {
            let (offset, value) = (u32::try_from(next() % 4200).unwrap(), next().to_le_bytes());
            let width = [1, 2, 4, 8][usize::try_from(next() % 4).unwrap()];
            let _ = attacked.function.config_write(offset, &value[..width]);
            let _ = attacked.companion.config_write(offset, &value[..width]);
        });
        Ok(format!("{count} writes"))
    }),
    ("BARs moved over each other while COMMAND flaps", |attacked| {
        let mut next = random(19);
        let count = repeat(|| {
            let bar = 0x10 + 4 * u32::try_from(next() % 6).unwrap();
            let value = [u32::MAX, 0, 0xfee0_0000, 0xc000_0000, 0xf, 1];
            let value = value[usize::try_from(next() % 6).unwrap()];
            let devices: [&dyn PassthroughDevice; 2] = [&*attacked.function, &*attacked.companion];
            for device in devices {
                let _ = device.config_write(bar, &value.to_le_bytes());
                let _ = device.config_write(4, &[u8::try_from(next() % 8).unwrap(), 0]);
                let _ = device.bar_read(0, next() % 0x3_0000, &mut [0; 4]);
            }
        });
        Ok(format!("{count} moves"))
    }),
    ("power states and resets in a loop", |attacked| {
        // The simulated probe's power management capability, where it has one.
        let mut header = [0; 256];
        attacked.function.config_read(0, &mut header).map_err(|error| error.to_string())?;
        let mut at = usize::from(header[0x34]);
        while at != 0 && header[at] != 1 {
            at = usize::from(header[at + 1]);
        }
        let mut state = 0u8;
        let count = repeat(|| {
            state = state.wrapping_add(1);
            if at != 0 {
                let offset = u32::try_from(at + 4).unwrap();
                let _ = attacked.function.config_write(offset, &[state % 4, 0]);
            }
            let _ = attacked.function.bar_read(0, 0, &mut [0; 4]);
            let _ = attacked.function.reset();
        });
        Ok(format!("{count} resets, power management at {at:#x}"))
    }),
    ("accesses of any width at any place", |attacked| {
        let mut next = random(23);
        let count = repeat(|| {
            let (bar, offset) = (u8::try_from(next() % 8).unwrap(), next() >> (next() % 64));
            let (value, width) = (next().to_le_bytes(), usize::try_from(next() % 9).unwrap());
            let _ = attacked.function.bar_read(bar, offset, &mut [0; 8][..width]);
            let _ = attacked.function.bar_write(bar, offset & !0xff, &value[..width]);
            let _ = attacked.companion.bar_read(bar, offset, &mut [0; 8][..width]);
        });
        Ok(format!("{count} accesses"))
    }),
    ("DMA to everywhere, and interrupts without end", |attacked| {
        let window = attacked.function.windows().map_err(|error| error.to_string())?[0].map();
        let registers = window.map_err(|error| error.to_string())?;
        attacked.function.config_write(4, &[6, 0]).map_err(|error| error.to_string())?;
        let mut next = random(29);
        let mut number = 0u32;
        let count = repeat(|| {
            number += 1;
            for at in (0x40..0x58).step_by(4) {
                let word = u32::try_from(next() >> 32).unwrap();
                registers.store_u32(at, if at == 0x50 { word >> 8 } else { word }).unwrap();
            }
            registers.store_u32(0x64, 0).unwrap();
            registers.store_u32(0x68, u32::MAX).unwrap();
            registers.store_u32(0x58, number).unwrap();
            registers.store_u32(0x6c, number).unwrap();
        });
        Ok(format!("{count} copies and volleys asked for"))
    }),
];

pub(crate) fn attacks(ledger: &mut Ledger) {
    let (simulator, ours): (Simulator, _) = (simulator(), std::process::id());
    let host = Host::new(config(&simulator).with_recovery(Recovery::default()));
    let sibling = Guest::new(DmaMode::Direct);
    let function = sibling.attach(&host, SIBLING);
    let neighbour = Neighbour::of(&function, &sibling.ram);
    let stage = Stage::new(&neighbour, ours);
    for (name, attack) in ATTACKS {
        ledger.attack(&stage, &format!("guest {name}"), || {
            let guest = Guest::new(DmaMode::Companion);
            let config = CompanionConfig::new(address("00:05.0"));
            let attached =
                host.attach_with_companion(address(ATTACKER), &guest.container, None, config);
            let (function, companion) = attached.map_err(|error| ipc::chain(&error))?;
            let attacked = Attacked { function, companion, guest };
            let outcome = attack(&attacked);
            // What a guest has done to its device is its own; it is reset, as for the next one.
            let reset = attacked.function.reset().map_err(|error| error.to_string());
            let still = reset.and_then(|()| attacked.answers()).and_then(|()| attacked.works());
            let replaced = attacked.function.replacements();
            host.detach(&attacked.function);
            still?;
            if replaced > 0 {
                return Err(format!("its function process was replaced {replaced} times"));
            }
            outcome
        });
    }
    drop(neighbour);
    host.detach(&function);
    for function in [SIBLING, ATTACKER] {
        simulator.assert_released(function);
    }
}
