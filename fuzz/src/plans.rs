//! Fault plans: those of the VMM side (`cordon_vmm::faults`), as text and as JSON, and those of the simulated
//! dext.
//!
//! Asserted: any text is a fault or an error that names it; what was read is the same when it is written
//! and read again, in either form; what was armed makes sense.

use arbitrary::Arbitrary;
use cordon_dext_sim::fuzzing::{self, METHODS};
use cordon_vmm::faults::{
    CONNECTION_REQUESTS, FUNCTION_REQUESTS, Fault, FaultPlan, Faults, START, Target, What,
};

use crate::lists;

/// A plan as somebody wrote it.
#[derive(Arbitrary, Debug)]
pub enum Input<'i> {
    /// One fault of the VMM side's.
    Text(&'i str),
    /// One, made of fields that there are.
    Fields(bool, #[arbitrary(with = lists::several)] Vec<(u8, Number)>),
    /// A plan in JSON.
    Json(&'i str),
    /// One fault of the simulated dext's.
    Dext(&'i str),
    /// One, made of fields that there are.
    DextFields(u8, #[arbitrary(with = lists::several)] Vec<(u8, Number)>),
    /// One with every field that its kind has, once.
    DextWhole(u8, [Number; 4]),
}

/// A number: near one of the limits, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Number {
    /// One of [`LIMITS`].
    Limit(u8),
    /// Any.
    Any(u64),
}

/// Where something begins or ends that a fault says.
const LIMITS: [u64; 10] =
    [0, 1, 2, 17, 18, 255, 600_000, 600_001, u32::MAX as u64, u32::MAX as u64 + 1];

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Limit(number) => LIMITS[usize::from(number) % LIMITS.len()],
            Self::Any(any) => any,
        }
    }
}

/// Does it.
pub fn run(input: Input<'_>) {
    match input {
        Input::Text(text) => fault(text),
        Input::Fields(connection, fields) => fault(&written(connection, &fields)),
        Input::Json(text) => {
            if let Ok(plan) = serde_json::from_str::<FaultPlan>(text) {
                json(&plan);
                arm(plan);
            }
        }
        Input::Dext(text) => dext(text),
        Input::DextFields(kind, fields) => dext(&dext_written(kind, &fields)),
        Input::DextWhole(kind, numbers) => {
            let fields = WHOLE[usize::from(kind) % WHOLE.len()];
            let fields: Vec<_> = fields.iter().copied().zip(numbers).collect();
            dext(&dext_written(kind % WHOLE.len() as u8, &fields));
        }
    }
}

fn json(plan: &FaultPlan) {
    let text = serde_json::to_string(plan).unwrap();
    assert_eq!(&serde_json::from_str::<FaultPlan>(&text).unwrap(), plan, "{text}");
}

fn fault(text: &str) {
    match text.parse::<Fault>() {
        // As it was written, or as it was understood.
        Err(error) => assert!(error.to_string().starts_with("Fault '")),
        Ok(fault) => {
            assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault, "{text}");
            let plan = FaultPlan { faults: vec![fault] };
            json(&plan);
            assert!(arm(plan), "{text}: what is read makes sense");
        }
    }
}

/// Arms a plan, if every fault of it could happen; whether it could.
fn arm(plan: FaultPlan) -> bool {
    let makes_sense = |fault: &Fault| {
        let known = match fault.process {
            Target::Function => &FUNCTION_REQUESTS[..],
            Target::Connection => &CONNECTION_REQUESTS[..],
        };
        let starts = fault.request.as_deref() == Some(START);
        let known = fault.request.as_deref().is_none_or(|name| known.contains(&name));
        let of_signals = matches!(fault.what, What::Kill | What::Stop);
        (known || starts)
            && fault.nth > 0
            && (fault.after_ms == 0 || of_signals)
            && (!starts || of_signals || matches!(fault.what, What::Delay(_)))
    };
    let wanted = plan.faults.iter().all(makes_sense);
    let count = plan.faults.len();
    let armed = Faults::new(plan);
    assert_eq!(armed.is_ok(), wanted, "{armed:?}");
    armed.is_ok_and(|armed| {
        let report = armed.report();
        assert_eq!(report.len(), count);
        report.iter().all(|one| one.fired.is_none() && one.seen == 0)
    })
}

/// A text that is nearly right.
fn written(connection: bool, fields: &[(u8, Number)]) -> String {
    let mut text = if connection { "connection" } else { "function" }.to_owned();
    let requests = FUNCTION_REQUESTS.iter().chain(&CONNECTION_REQUESTS).chain([&START]);
    let requests: Vec<_> = requests.collect();
    let at = |list: usize, value: u64| (value % list as u64) as usize;
    for (field, value) in fields {
        let value = &value.value();
        let points = ["before", "during", "after"];
        text += &match field % 14 {
            0 => format!(
                ",device={:02x}:{:02x}.{}",
                value & 0xff,
                value >> 8 & 0x1f,
                value >> 13 & 7
            ),
            1 => format!(",request={}", requests[at(requests.len(), *value)]),
            2 => format!(",nth={value}"),
            3 => format!(",nth={value:#x}"),
            4 => format!(",after-ms={value}"),
            5 => format!(",when={}", points[at(3, *value)]),
            6 => ",kill".to_owned(),
            7 => ",stop".to_owned(),
            8 => ",hang".to_owned(),
            9 => ",garbage".to_owned(),
            10 => ",truncated".to_owned(),
            11 => ",closed".to_owned(),
            12 => format!(",delay={value}"),
            _ => format!(",selector={}:{:#x}", value & 0xff, value >> 8 & 0xffff_ffff),
        };
    }
    text
}

fn dext(text: &str) {
    let Some(fault) = fuzzing::fault(text) else { return };
    if let Some(selector) = fault.selector {
        assert!((selector as usize) < METHODS, "{text}");
    }
    assert!(fault.nth != Some(0) && fault.code != Some(0), "{text}");
    // Ten minutes.
    assert!(fault.milliseconds.is_none_or(|time| (1..=600_000).contains(&time)), "{text}");
}

/// The fields that each kind of fault has, by their numbers in `dext_written`.
const WHOLE: [&[u8]; 8] =
    [&[0, 1, 2], &[0, 1, 3, 4], &[0, 1], &[0, 1, 5, 6], &[1], &[1], &[4], &[]];

/// A text that is nearly right.
fn dext_written(kind: u8, fields: &[(u8, Number)]) -> String {
    const KINDS: [&str; 9] = [
        "fail",
        "delay",
        "die",
        "end",
        "drop-notification",
        "fragment",
        "cleanup-delay",
        "no-msix",
        "burn",
    ];
    const FIELDS: [&str; 7] = ["selector", "nth", "code", "calls", "ms", "as", "back"];
    let mut text = KINDS[usize::from(kind) % KINDS.len()].to_owned();
    for (number, (field, value)) in fields.iter().enumerate() {
        let value = value.value();
        text.push(if number == 0 { ':' } else { ',' });
        let field = FIELDS[usize::from(*field) % FIELDS.len()];
        text += field;
        text += &match (field, value % 2) {
            ("as", 0) => "=offline".to_owned(),
            ("as", 1) => "=port-dead".to_owned(),
            (_, 0) => format!("={value:#x}"),
            _ => format!("={value}"),
        };
    }
    text
}
