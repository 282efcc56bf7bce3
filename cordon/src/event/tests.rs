//! Every event, as text, as an object, and as the schema and docs/events.md have it.

use super::*;

mod schema;

fn death() -> ProcessDeath {
    ProcessDeath {
        process: 7,
        cause: DeathCause::Ended,
        exit_code: None,
        signal: Some("SIGSYS".to_owned()),
        claimed_call: Some("openat".to_owned()),
        from_outside: false,
        last_request: Some("BarWrite".to_owned()),
        why: "it died".to_owned(),
    }
}

fn all() -> Vec<Event> {
    let device = "01:00.1".parse().unwrap();
    let part = Part::Companion;
    let why = || "because".to_owned();
    let missing = crate::confinement::Layer {
        name: "landlock".to_owned(),
        state: "MISSING".to_owned(),
        detail: "no such kernel".to_owned(),
    };
    let spawner = Some(5);
    vec![
        Event::Confined(Confinement { process: 4, spawner, layers: vec![missing], syscalls: 60 }),
        Event::SpawnerLost { process: 5 },
        Event::Listening {
            device,
            socket: "/s".to_owned(),
            companion_socket: Some("/c".to_owned()),
            function_process: 2,
            connection_process: 3,
        },
        Event::Released { device },
        Event::Ready,
        Event::Attach { device, part: Part::Function },
        Event::ClientAdopted { device },
        Event::ClientLost { device, why: why() },
        Event::Detach { device, part, why: why() },
        Event::Refused { device, part, why: why() },
        Event::Busy { device, part },
        Event::LeftOut { device, part, of: "refused".to_owned(), count: 7 },
        Event::Unread { count: 7 },
        Event::Delayed { device, part, why: why() },
        Event::Withheld { device, part, why: why() },
        Event::Available { device, part },
        Event::Failed { device, part, why: why() },
        Event::Requested { device, process: 3, why: why() },
        Event::Away { device, why: why() },
        Event::Back { device, client: ClientView::Ones },
        Event::GivenUp { device, why: why() },
        Event::FunctionDied { device, death: death() },
        Event::ConnectionDied { device, death: death() },
        Event::StandbyLost { device, death: death() },
        Event::Recovered {
            device,
            process: 8,
            generation: 1,
            microseconds: 900,
            by: Successor::Standby,
        },
        Event::ConnectionReplaced { device, process: 8, generation: 1, microseconds: 900 },
        Event::ConnectionAdopted { device, process: 8, generation: 1, microseconds: 900 },
        Event::Upgraded { device, process: 8, upgrades: 1, microseconds: 900 },
        Event::Limit {
            device,
            of: Limited::Function,
            part: None,
            limit: LimitName::Deaths,
            most: None,
            deaths: Some(101),
            milliseconds: Some(10_000),
        },
        Event::Limit {
            device,
            of: Limited::Client,
            part: Some(part),
            limit: LimitName::MemoryFiles,
            most: Some(256),
            deaths: None,
            milliseconds: None,
        },
        Event::Unobserved { count: 7 },
        Event::NothingLeft,
        Event::Stopping { signal: Some("SIGTERM".to_owned()) },
        Event::Stopping { signal: None },
        Event::Forced,
        Event::Fault { fault: "function,nth=1,when=before,kill".to_owned(), process: Some(7) },
        Event::Stopped,
    ]
}

#[test]
fn every_event_is_an_object_with_its_name_and_comes_back_the_same() {
    for event in all() {
        let value = serde_json::to_value(&event).unwrap();
        assert_eq!(value["event"], event.name());
        let device = event.device().map(|(device, _)| device.to_string());
        assert_eq!(value["device"].as_str(), device.as_deref());
        assert_eq!(serde_json::from_value::<Event>(value).unwrap(), event);
    }
}

#[test]
fn every_event_is_one_line_that_names_its_function_first() {
    for event in all() {
        let line = event.to_string();
        assert!(!line.contains('\n') && !line.is_empty());
        assert_eq!(line.starts_with("01:00.1: "), event.device().is_some(), "{line}");
    }
    let client = ClientView::Ones;
    let back = Event::Back { device: "01:00.0".parse().unwrap(), client }.to_string();
    assert!(back.contains("all ones") && back.contains("--windows trapped"), "{back}");
}
