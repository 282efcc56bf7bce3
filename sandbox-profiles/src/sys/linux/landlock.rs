//! Landlock: every right that the kernel can withhold, withheld.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, Ruleset,
    RulesetAttr as _, RulesetError, RulesetStatus, Scope,
};

use crate::LayerState;

/// The newest interface this build asks for; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V6;

/// Whom a process may signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signals {
    /// Nobody outside.
    Inside,
    /// Whom its other layers let it.
    Outside,
}

/// A rule set without a rule denies all that it handles.
pub(super) fn restrict(signals: Signals) -> LayerState {
    let mut scopes = Scope::from_all(NEWEST);
    if signals == Signals::Outside {
        scopes.remove(Scope::Signal);
    }
    let restricted = || -> Result<_, RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(scopes)?
            .create()?
            .restrict_self()
    };
    let status = match restricted() {
        Ok(status) => status,
        Err(error) => {
            return LayerState::Missing(format!(
                "{error}; a seccomp filter over this process must not forbid it, and at most 16 rule \
                 sets may be over it"
            ));
        }
    };
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => format!("{effective_abi:?}"),
        LandlockStatus::NotEnabled => {
            return missing("it is not enabled; add landlock to lsm= of the kernel's command line");
        }
        LandlockStatus::NotImplemented => {
            return missing(
                "the kernel does not know it, or a seccomp filter hides it; Linux 5.13 with CONFIG_SECURITY_LANDLOCK is needed",
            );
        }
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced => {
            let signals = if signals == Signals::Inside { " signals," } else { "" };
            LayerState::Enforced(format!("ABI {abi}: files, network,{signals} abstract sockets"))
        }
        RulesetStatus::PartiallyEnforced => {
            LayerState::Partial(format!("the kernel's ABI {abi} lacks some of {NEWEST:?}"))
        }
        RulesetStatus::NotEnforced => missing("the kernel enforced nothing; a newer one is needed"),
    }
}

fn missing(why: &str) -> LayerState {
    LayerState::Missing(why.to_owned())
}
