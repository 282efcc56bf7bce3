//! Faults as text: for command lines and messages.

use std::fmt;
use std::str::FromStr;

use ipc::wire::dext::IoReturn;

use super::{Fault, Point, Target, What};

/// How a fault is written, for people: what `--help` of a command shows that takes faults. Its lines have
/// at most 70 columns, which is what clap leaves of 80.
pub const GRAMMAR: &str = "\
A fault is words between commas: whose process, when, and what.

  function | connection    whose process: always the first word
  device=BB:DD.F           of this function only
  request=NAME             at requests of this name; any if not given
  nth=N                    at the N-th of them, from 1; 1 if not given
  when=before              before the process gets it; if not given
  when=during              while the process is at it
  when=after               when the process has answered
  after-ms=N               so much later; of kill and stop only

and one of

  kill                     the process is killed
  stop                     it is stopped: found by its silence
  hang                     it loops for ever: found by its silence
  garbage                  it answers bytes that are no message
  truncated                it answers half a message
  closed                   it closes its tube
  delay=MS                 the request takes so much longer
  selector=N:CODE          its next call of this selector of the
                           dext's, 0 to 17, fails with this code

Numbers are decimal, or hexadecimal after 0x. The requests of a
function process are ConfigRead, ConfigWrite, BarRead, BarWrite,
Interrupts, Reset, Statistics, TakeOver, Companion, AddMemory,
RemoveMemory, Doorbell; those of a connection process Attach, Detach,
AddMemory, RemoveMemory, MapDma, UnmapDma, Statistics, Reset,
Companion, ReleaseDma, AbandonBatch. Start, of either, is its start:
it can be killed, stopped or delayed.

  function,device=01:00.1,request=BarWrite,nth=3,when=during,kill
  function,request=Start,nth=2,when=after,after-ms=5,stop
  connection,request=MapDma,delay=20
  connection,selector=8:0xe00002cd";

/// A fault that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Fault '{fault}': {why}")]
pub struct FaultError {
    fault: String,
    why: String,
}

impl FaultError {
    pub(super) fn new(fault: &str, why: &str) -> Self {
        Self { fault: fault.to_owned(), why: why.to_owned() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.process {
            Target::Function => "function",
            Target::Connection => "connection",
        })?;
        if let Some(device) = self.device {
            write!(f, ",device={device}")?;
        }
        if let Some(request) = &self.request {
            write!(f, ",request={request}")?;
        }
        let when = match self.when {
            Point::Before => "before",
            Point::During => "during",
            Point::After => "after",
        };
        write!(f, ",nth={},when={when}", self.nth)?;
        if self.after_ms > 0 {
            write!(f, ",after-ms={}", self.after_ms)?;
        }
        match self.what {
            What::Kill => write!(f, ",kill"),
            What::Stop => write!(f, ",stop"),
            What::Hang => write!(f, ",hang"),
            What::Garbage => write!(f, ",garbage"),
            What::Truncated => write!(f, ",truncated"),
            What::Closed => write!(f, ",closed"),
            What::Delay(ms) => write!(f, ",delay={ms}"),
            What::Selector { selector, code } => write!(f, ",selector={selector}:{:#x}", code.0),
        }
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let bad = |why: &str| FaultError::new(text, why);
        let number = |value: &str| -> Result<u64, FaultError> {
            let parsed = match value.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => value.parse(),
            };
            parsed.map_err(|_| bad(&format!("'{value}' is no number")))
        };
        let mut parts = text.split(',');
        let process = match parts.next() {
            Some("function") => Target::Function,
            Some("connection") => Target::Connection,
            _ => return Err(bad("it begins with function or connection")),
        };
        let (mut device, mut request, mut nth, mut after_ms) = (None, None, 1, 0);
        let (mut when, mut what) = (Point::Before, None);
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let doing = match key {
                "device" => {
                    device = Some(value.parse().map_err(|_| bad("device is BB:DD.F"))?);
                    continue;
                }
                "request" => {
                    request = Some(value.to_owned());
                    continue;
                }
                "nth" => {
                    nth = number(value)?;
                    continue;
                }
                "after-ms" => {
                    after_ms = number(value)?;
                    continue;
                }
                "when" => {
                    when = match value {
                        "before" => Point::Before,
                        "during" => Point::During,
                        "after" => Point::After,
                        _ => return Err(bad("when is before, during or after")),
                    };
                    continue;
                }
                "kill" => What::Kill,
                "stop" => What::Stop,
                "hang" => What::Hang,
                "garbage" => What::Garbage,
                "truncated" => What::Truncated,
                "closed" => What::Closed,
                "delay" => What::Delay(number(value)?),
                "selector" => selector(value, number)
                    .ok_or_else(|| bad("selector is NUMBER:CODE, as selector=8:0xe00002cd"))?,
                other => return Err(bad(&format!("there is no '{other}'"))),
            };
            if what.replace(doing).is_some() {
                return Err(bad("it does two things"));
            }
        }
        let what = what.ok_or_else(|| {
            bad("it does nothing: kill, stop, hang, garbage, truncated, closed, delay=MS or \
                 selector=NUMBER:CODE")
        })?;
        let fault = Self { process, device, request, nth, when, after_ms, what };
        fault.check()?;
        Ok(fault)
    }
}

fn selector(value: &str, number: impl Fn(&str) -> Result<u64, FaultError>) -> Option<What> {
    let (selector, code) = value.split_once(':')?;
    let narrow = |text| u32::try_from(number(text).ok()?).ok();
    Some(What::Selector { selector: narrow(selector)?, code: IoReturn(narrow(code)?) })
}

/// An address as people write it.
pub(super) mod address {
    use ipc::PciAddress;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(
        address: &Option<PciAddress>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(
        deserializer: D,
    ) -> Result<Option<PciAddress>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CONNECTION_REQUESTS, FUNCTION_REQUESTS, FaultPlan, Faults, START};
    use super::*;
    use ipc::wire::handshake::Role;
    use proptest::prelude::*;

    fn what() -> impl Strategy<Value = What> {
        prop_oneof![
            Just(What::Kill),
            Just(What::Stop),
            Just(What::Hang),
            Just(What::Garbage),
            Just(What::Truncated),
            Just(What::Closed),
            any::<u64>().prop_map(What::Delay),
            (any::<u32>(), any::<u32>())
                .prop_map(|(selector, code)| What::Selector { selector, code: IoReturn(code) }),
        ]
    }

    fn fault() -> impl Strategy<Value = Fault> {
        let request = prop_oneof![
            Just(None),
            (0..FUNCTION_REQUESTS.len()).prop_map(|at| Some(FUNCTION_REQUESTS[at].to_owned())),
        ];
        let device = prop_oneof![Just(None), Just(Some("01:00.1".parse().unwrap()))];
        let when = prop_oneof![Just(Point::Before), Just(Point::During), Just(Point::After)];
        (device, request, 1u64.., when, what()).prop_map(|(device, request, nth, when, what)| {
            Fault { process: Target::Function, device, request, nth, when, after_ms: 0, what }
        })
    }

    proptest! {
        #[test]
        fn a_fault_is_the_same_as_text_and_as_json(fault in fault()) {
            prop_assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault.clone());
            let plan = FaultPlan { faults: vec![fault] };
            let json = serde_json::to_string(&plan).unwrap();
            prop_assert_eq!(serde_json::from_str::<FaultPlan>(&json).unwrap(), plan);
        }

        #[test]
        fn any_text_is_a_fault_or_an_error(text in "[a-z0-9=:,.x-]{0,60}") {
            let _ = text.parse::<Fault>();
        }
    }

    /// Whether `word` is in the grammar, as a word.
    fn is_explained(word: &str) -> bool {
        let is_of_a_word = |one: char| one.is_ascii_alphanumeric() || "-=".contains(one);
        GRAMMAR.split(|one: char| !is_of_a_word(one)).any(|one| one == word)
    }

    #[test]
    fn the_grammar_has_every_word_that_there_is() {
        for name in FUNCTION_REQUESTS.iter().chain(&CONNECTION_REQUESTS).chain(&[START]) {
            assert!(is_explained(name), "{name}");
        }
        for when in ["before", "during", "after"] {
            assert!(is_explained(&format!("when={when}")), "{when}");
        }
        // What a fault is written with, from the values themselves: a new kind does not get past this match.
        let text = |what: What| match what {
            What::Kill
            | What::Stop
            | What::Hang
            | What::Garbage
            | What::Truncated
            | What::Closed
            | What::Delay(_)
            | What::Selector { .. } => Fault {
                process: Target::Function,
                device: Some("01:00.1".parse().unwrap()),
                request: Some("Reset".to_owned()),
                nth: 2,
                when: Point::During,
                after_ms: u64::from(what == What::Kill),
                what,
            }
            .to_string(),
        };
        let code = IoReturn(1);
        for what in [
            What::Kill,
            What::Stop,
            What::Hang,
            What::Garbage,
            What::Truncated,
            What::Closed,
            What::Delay(1),
            What::Selector { selector: 1, code },
        ] {
            for word in text(what).split(',') {
                let key = word.split_once('=').map(|(key, _)| format!("\n  {key}="));
                let plain = format!("\n  {word} ");
                let found =
                    key.iter().chain([&plain]).any(|known| GRAMMAR.contains(known.as_str()));
                assert!(found, "{word}");
            }
        }
    }

    #[test]
    fn the_examples_of_the_grammar_are_faults_and_its_lines_are_short() {
        let examples: Vec<Fault> = GRAMMAR
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("function,") || line.starts_with("connection,"))
            .map(|line| line.parse().unwrap_or_else(|error| panic!("{error}")))
            .collect();
        assert_eq!(examples.len(), 4);
        assert!(Faults::new(FaultPlan { faults: examples }).is_ok());
        // What is not given is what it says.
        let fault: Fault = "function,kill".parse().unwrap();
        assert_eq!((fault.nth, fault.when, fault.request), (1, Point::Before, None));
        for line in GRAMMAR.lines() {
            assert!(line.len() <= 70, "{line}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (text, why) in [
            ("", "function or connection"),
            ("function", "does nothing"),
            ("function,kill,stop", "two things"),
            ("function,request=Fly,kill", "no request Fly"),
            ("function,request=MapDma,kill", "no request MapDma"),
            ("function,nth=0,kill", "counted from 1"),
            ("function,nth=many,kill", "'many' is no number"),
            ("function,device=1,kill", "BB:DD.F"),
            ("function,when=never,kill", "when is"),
            ("function,after-ms=3,garbage", "only a kill or a stop"),
            ("function,request=Start,garbage", "can be killed"),
            ("function,selector=8,kill", "selector is NUMBER:CODE"),
            ("connection,fly", "no 'fly'"),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(why) && error.starts_with("Fault '"), "{error}");
        }
    }

    #[test]
    fn a_fault_is_due_once_at_its_request() {
        let fault = "function,device=01:00.1,request=BarRead,nth=2,kill".parse().unwrap();
        let faults = Faults::new(FaultPlan { faults: vec![fault] }).unwrap();
        let due = |role, subject, request| faults.at(role, subject, request).len();
        assert_eq!(due(Role::Function, "01:00.1", "BarRead"), 0);
        assert_eq!(due(Role::Function, "01:00.0", "BarRead"), 0);
        assert_eq!(due(Role::Connection, "01:00.1", "BarRead"), 0);
        assert_eq!(due(Role::Function, "01:00.1", "BarWrite"), 0);
        assert_eq!(due(Role::Function, "01:00.1", "BarRead"), 1);
        assert_eq!(due(Role::Function, "01:00.1", "BarRead"), 0);
        let any = "function,kill".parse().unwrap();
        faults.add(any).unwrap();
        assert_eq!(due(Role::Function, "02:00.0", START), 0);
        assert_eq!(due(Role::Function, "02:00.0", "Reset"), 1);
    }
}
