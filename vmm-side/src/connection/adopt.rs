//! What is left of a connection process that died is adopted by another one: its functions go on meanwhile, their
//! DMA too, and those who hold them do not notice.
//!
//! Not where the process ended by itself: it had a reason, and has given back what it held. Not where it made a
//! forbidden call or broke the protocol: whoever took it over may have changed what it left. Not where the kernel
//! wants the function back, or where too many died in a row: what they find may be what kills them. All of this is
//! then closed, and the death is a surprise removal.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::wire::connection::{AddMemory, AdoptDma, Attach, Attached, Mapped, Ready};
use ipc::{Deadline, Handles, PciAddress};

use super::escrow::Accounts;
use super::keep::Turns;
use super::{ConnectionShared, ConnectionState, Link, numbers};
use crate::child::start::Kept;
use crate::child::{CallError, Cause, ConnectionProtocol, Death, ExitStatus, Spec};
use crate::keeper::{Keeper, ReadyChild, StartError};
use crate::recovery::{Backoff, Deaths, Recovery};
use crate::text::printable;

/// The exit status of a process that panicked: it gave nothing back.
const PANICKED: i32 = 101;

/// How often in a row is adopted what a process left, rather than the device being removed and reset: for half of
/// the deaths after which it is given up.
pub(super) fn bound(recovery: &Recovery) -> Deaths {
    Deaths::new(&recovery.with_max_deaths(recovery.max_deaths.div_ceil(2)))
}

/// Whether what the process left is adopted; from here on those who ask wait for that.
pub(super) fn begin(
    shared: &ConnectionShared,
    death: &Arc<Death>,
    noticed: Instant,
    adoptions: &mut Deaths,
) -> bool {
    const REQUESTED: &str = "the kernel wants it back";
    let begun = shared.change(|state| {
        let escrow = state.escrow.as_ref()?;
        let refused = if escrow.is_requested() {
            Some(REQUESTED)
        } else if let Some(why) = is_left_otherwise(death) {
            Some(why)
        } else if adoptions.on(noticed, death).is_err() {
            Some("too many processes that held it died in a row")
        } else {
            None
        };
        if refused.is_some() {
            state.drop_escrow();
        } else {
            state.link = Link::Adopting(state.claims, Arc::clone(death));
        }
        Some(refused)
    });
    if let Some(Some(why)) = begun {
        if why == REQUESTED {
            shared.is_wanted_back(death);
        }
        tracing::info!("{}: not adopted: {why}", shared.spec.subject);
    }
    matches!(begun, Some(None))
}

/// Why what a process held is not as it was told.
fn is_left_otherwise(death: &Death) -> Option<&'static str> {
    match (&death.cause, death.exit) {
        (Cause::Broken(_), _) => Some("its connection process broke the protocol"),
        (_, ExitStatus::Signal(libc::SIGSYS)) => {
            Some("its connection process made a forbidden system call")
        }
        (_, ExitStatus::Signal(_) | ExitStatus::Code(PANICKED)) => None,
        (_, ExitStatus::Code(_) | ExitStatus::Unknown) => {
            Some("its connection process ended by itself")
        }
    }
}

/// Another process that has taken everything over, and what it was told; `None` when it is not wanted any more.
pub(super) fn adopt(
    shared: &ConnectionShared,
    keeper: &Keeper<ConnectionProtocol>,
) -> Result<Option<(ReadyChild<ConnectionProtocol>, Accounts)>, Arc<Death>> {
    let deadline = Deadline::after(shared.recovery.timeout);
    let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(50));
    let mut turns = Turns::new(shared);
    let (of, mut last) = (shared.spec.address, None);
    loop {
        let Some((escrow, accounts)) = shared.state.lock().estate() else {
            return Err(last.unwrap_or_else(|| failed(shared, "it was to be given back")));
        };
        let program = turns.next();
        // Each attempt that fails is no news.
        let mut spec = Spec { expendable: true, ..program.of(&shared.spec) };
        spec.arguments.push("--adopt".into());
        spec.adopted = Some(escrow);
        let death = match keeper.start_as(&spec) {
            Ok((mut kept, ready)) => {
                // The windows are the same device's.
                let told =
                    tell(keeper, &mut kept, (&ready, of), accounts, deadline, &mut |_, _| {});
                match told {
                    Ok(told) => {
                        shared.runs(program);
                        return Ok(Some(((kept, ready), told)));
                    }
                    Err(CallError::Dead(death)) => death,
                    // It would be refused again. Ended in order it would give back what it took over.
                    Err(error) => {
                        kept.end(Cause::Broken("did not adopt".to_owned()));
                        return Err(failed(shared, &printable(&error.to_string())));
                    }
                }
            }
            Err(StartError::Died(death)) => death,
            Err(StartError::Stopped) => return Ok(None),
        };
        if deadline.passed() {
            return Err(death);
        }
        if !keeper.pause(backoff.pause()) && keeper.is_stopped() {
            return Ok(None);
        }
        last = Some(death);
    }
}

fn failed(shared: &ConnectionShared, why: &str) -> Arc<Death> {
    let cause = Cause::StartFailed(why.to_owned());
    Arc::new(Death::of_connection(&shared.spec.subject, cause))
}

/// Tells a successor what the process before it was told; the same with what it answered.
pub(super) fn tell(
    keeper: &Keeper<ConnectionProtocol>,
    kept: &mut Kept<ConnectionProtocol>,
    (ready, of): (&Ready, Option<PciAddress>),
    mut accounts: Accounts,
    deadline: Deadline,
    claimed: &mut dyn FnMut(Attached, Handles),
) -> Result<Accounts, CallError> {
    let numbers = numbers(ready, of);
    let child = Arc::clone(&kept.child);
    keeper.with_in_hand(&child, || {
        for (address, account) in &mut accounts {
            let found = numbers.iter().find(|(_, one)| one == address);
            let function = found.map(|(number, _)| *number);
            let function = function.ok_or_else(|| refused("it does not have every function"))?;
            let (attached, handles) = kept.call_with(&Attach { function }, &[], deadline)?;
            if (attached.identity, attached.bars) != (account.identity, account.bars) {
                return Err(refused("it is another device"));
            }
            claimed(*attached, handles);
            for (base, (region, _)) in &account.regions {
                let (base, size, offset) = (*base, region.size, region.offset);
                let call = AddMemory { function, base, size, offset, writable: region.writable };
                kept.call(&call, &[region.memory.as_fd()], deadline)?;
            }
            for (entry, answered) in account.ranges.values_mut() {
                let call = AdoptDma { function, entry: *entry };
                let mapped: Mapped = kept.call(&call, &[], deadline)?;
                if answered.is_some_and(|(_, before)| before != mapped) {
                    return Err(refused("it reaches memory elsewhere than before"));
                }
                *answered = Some((0, mapped));
            }
        }
        Ok(accounts)
    })
}

pub(super) fn refused(why: &str) -> CallError {
    use ipc::wire::common::{Failure, FailureKind};
    CallError::Refused(Failure { kind: FailureKind::Io, code: None, message: why.to_owned() })
}

impl ConnectionState {
    /// What there is to adopt, unless the kernel wants it back meanwhile or nobody holds it any more.
    fn estate(&self) -> Option<(super::Escrow, Accounts)> {
        let escrow = self.escrow.as_ref().filter(|escrow| !escrow.is_requested())?;
        Some((escrow.clone(), self.accounts.clone()))
    }

    /// Writes down that the process of this generation was told so much. What came since is told by who wants it,
    /// and what went is asked to go again.
    pub(super) fn was_told(&mut self, told: &Accounts, generation: u64) {
        for (function, account) in &mut self.accounts {
            let Some(told) = told.get(function) else { continue };
            for (base, (region, has)) in &mut account.regions {
                let same = told.regions.get(base).is_some_and(|(one, _)| Arc::ptr_eq(one, region));
                *has = same.then_some(generation);
            }
            for (key, (entry, has)) in &mut account.ranges {
                let found = told.ranges.get(key).filter(|(one, _)| one == entry);
                *has = found.and_then(|(_, has)| *has).map(|(_, mapped)| (generation, mapped));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_leaves_is_adopted_if_it_was_killed_or_crashed_and_not_if_it_may_be_otherwise()
    {
        let is_adopted = |cause, exit| {
            let death = Death { exit, ..Death::of_connection("01:00.0", cause) };
            is_left_otherwise(&death).is_none()
        };
        for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
            assert!(is_adopted(Cause::Ended, ExitStatus::Signal(signal)), "{signal}");
        }
        for cause in [Cause::Overdue("answer"), Cause::Upgraded] {
            assert!(is_adopted(cause, ExitStatus::Signal(libc::SIGKILL)));
        }
        assert!(is_adopted(Cause::Ended, ExitStatus::Code(PANICKED)));
        assert!(!is_adopted(Cause::Ended, ExitStatus::Code(1)), "it gave everything back");
        assert!(!is_adopted(Cause::Ended, ExitStatus::Signal(libc::SIGSYS)));
        assert!(!is_adopted(Cause::Broken("x".to_owned()), ExitStatus::Signal(libc::SIGKILL)));
        assert!(!is_adopted(Cause::Ended, ExitStatus::Unknown), "it may still run");
    }

    #[test]
    fn half_of_the_deaths_that_are_repaired_are_adopted_from() {
        let death = Arc::new(Death::of_connection("01:00.0", Cause::Ended));
        for (most, adopted) in [(1u32, 1), (2, 1), (4, 2), (5, 3), (100, 50)] {
            let mut bound = bound(&Recovery::default().with_max_deaths(most));
            let now = Instant::now();
            let count = (0..most).take_while(|_| bound.on(now, &death).is_ok()).count();
            assert_eq!(count, adopted, "{most}");
        }
    }
}
