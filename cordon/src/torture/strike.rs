//! How a process is struck, and what is waited for after it: whoever was struck is replaced, and after a removal the
//! load has gone on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cordon_vmm::faults::{Fault, Point, Target};
use cordon_vmm::{Function, PassthroughDevice as _, Presence};
use rustix::process::{Pid, Signal, kill_process};

use super::victim::{FaultKind, Victim};
use super::{Rack, Random, wait};
use crate::Failure;
use crate::rig::alive;

/// How long a dext that was killed is gone, at most.
const GONE: u64 = 20_000;

impl Rack<'_> {
    /// Strikes the process of a function, and waits until it is replaced; how long each replacement since took.
    pub(super) fn strike_function(
        &self,
        proxy: &Function,
        random: &mut Random,
    ) -> Result<Vec<Duration>, Failure> {
        let before = proxy.replacements();
        if let Some(fault) = self.signal(proxy.pid(), random)? {
            let device = Some(proxy.address());
            self.faults.add(Fault { process: Target::Function, device, ..fault })?;
            // One request to strike at, and one to notice that a process stopped after the first.
            for _ in 0..2 {
                proxy.config_read(0, &mut [0; 4])?;
            }
            // What it sends after an answer in its lane is seen by whoever asks by the tube next, which may be nobody for as
            // long as it answers in the lane. It is its death that is waited for, whatever becomes of the request.
            let _ = proxy.statistics();
        }
        let back = wait(|| proxy.replacements() > before || alive(proxy).is_err());
        alive(proxy)?;
        back.map_err(|()| format!("{} did not come back", proxy.address()))?;
        let since = usize::try_from(proxy.replacements() - before)?;
        let mut recoveries = proxy.recoveries();
        Ok(recoveries.split_off(recoveries.len().saturating_sub(since)))
    }

    /// Strikes the connection process or the dext, and waits until both functions are back and their load has gone on;
    /// how long they were away.
    pub(super) fn remove(&self, victim: Victim, random: &mut Random) -> Result<Duration, Failure> {
        let before = self.proxies.each_ref().map(|proxy| proxy.returns());
        let began = Instant::now();
        match victim {
            Victim::Dext => self.strike_dext(random)?,
            _ => self.strike_connection(random)?,
        }
        let is_back = |at: usize| {
            let proxy = &self.proxies[at];
            proxy.returns() > before[at] && matches!(proxy.presence(), Presence::Present)
        };
        let dead = || self.proxies.iter().any(|proxy| alive(proxy).is_err());
        let back = wait(|| (is_back(0) && is_back(1)) || dead());
        let away = began.elapsed();
        for proxy in self.proxies {
            alive(proxy)?;
        }
        back.map_err(|()| format!("the device did not come back after the death of the {victim}"))?;
        let done = || {
            let moved = [&self.tally.bytes, &self.tally.interrupts];
            moved.map(|count| count.load(Ordering::Relaxed))
        };
        let then = done();
        let goes_on = || done().iter().zip(then).all(|(now, then)| *now > then);
        wait(|| goes_on() || !self.goes_on())
            .map_err(|()| format!("the load did not go on after the death of the {victim}"))?;
        Ok(away)
    }

    fn strike_connection(&self, random: &mut Random) -> Result<(), Failure> {
        let proxy = &self.proxies[0];
        let connection = proxy.connection();
        if let Some(fault) = self.signal(connection.pid(), random)? {
            self.faults.add(Fault { process: Target::Connection, ..fault })?;
            for _ in 0..2 {
                // It is the process's death that is waited for, whatever becomes of the request.
                let _ = connection.statistics(proxy.address());
            }
        }
        Ok(())
    }

    fn strike_dext(&self, random: &mut Random) -> Result<(), Failure> {
        let mut simulator = self.simulator.borrow_mut();
        simulator.kill()?;
        std::thread::sleep(Duration::from_micros(random.next() % GONE));
        simulator.restart()?;
        drop(simulator);
        // It had the claim of the meter too.
        self.meter.borrow_mut().take();
        Ok(())
    }

    /// Sends the signal, if it is one that strikes; or the fault, of whichever process, that does.
    fn signal(&self, pid: u32, random: &mut Random) -> Result<Option<Fault>, Failure> {
        let kinds = &self.options.kinds;
        let pick = |random: &mut Random, count: usize| -> usize {
            usize::try_from(random.next() % count as u64).unwrap_or_default()
        };
        let kind = kinds[pick(random, kinds.len())];
        let Some(what) = kind.at_a_request() else {
            let signal = if kind == FaultKind::Freeze { Signal::STOP } else { Signal::KILL };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            kill_process(pid.ok_or("no process")?, signal)?;
            return Ok(None);
        };
        let when = [Point::Before, Point::During, Point::After][pick(random, 3)];
        Ok(Some(Fault {
            process: Target::Function,
            device: None,
            request: None,
            nth: 1,
            when,
            after_ms: 0,
            what,
        }))
    }
}
