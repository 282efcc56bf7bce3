//! The dext's errors and powers as the traits have them.

use ipc::TubeError;

use super::*;

fn all() -> Vec<(DextError, ErrorKind)> {
    let refused = |code| {
        let subject = "Function 01:00.0".to_owned();
        DextError::Refused { subject, operation: "ConfigRead", code }
    };
    let (subject, operation) = (|| "Function 01:00.0".to_owned(), "MapMemory");
    vec![
        (refused(IoReturn::NOT_OPEN), ErrorKind::Refused),
        (refused(IoReturn::NOT_ATTACHED), ErrorKind::Gone),
        (refused(IoReturn::NO_SPACE), ErrorKind::NoSpace),
        (refused(IoReturn::NO_MEMORY), ErrorKind::NoSpace),
        (refused(IoReturn::NOT_ALIGNED), ErrorKind::Fragmented),
        (refused(IoReturn::STILL_OPEN), ErrorKind::Busy),
        (DextError::Lost { subject: subject(), operation, code: None }, ErrorKind::Lost),
        (
            DextError::Broken { subject: subject(), operation, source: TubeError::TimedOut },
            ErrorKind::Lost,
        ),
        (
            DextError::Invalid { subject: subject(), operation, why: "of size 0".to_owned() },
            ErrorKind::Invalid,
        ),
        (
            DextError::NoDext { place: "sim:/x".to_owned(), why: "not there".to_owned() },
            ErrorKind::Unreachable,
        ),
        (DextError::NoSuchDevice("01:00.0".parse().unwrap()), ErrorKind::NoSuchDevice),
        (
            DextError::Ambiguous {
                address: "01:00.0".parse().unwrap(),
                root_bridges: vec!["apciec0".parse().unwrap(), "apciec1".parse().unwrap()],
            },
            ErrorKind::Ambiguous,
        ),
    ]
}

#[test]
fn p1_5_an_error_of_the_dexts_keeps_its_words_and_its_code() {
    for (error, kind) in all() {
        let (line, code) = (ipc::chain(&error), error.code());
        let error = BackendError::from(error);
        assert_eq!(error.kind, kind, "{line}");
        assert_eq!(error.to_string(), line);
        assert_eq!(error.code, code.map(|code| code.0), "{line}");
    }
}

#[test]
fn p7_7_windows_are_made_of_the_pages_of_this_system() {
    let (_, client) = crate::fake::Fake::client();
    assert_eq!(client.window_granule(), rustix::param::page_size() as u64);
}

#[test]
fn p8_the_dext_resets_a_function_and_no_bus() {
    let (fake, mut client) = crate::fake::Fake::client();
    let function: &mut dyn ServedFunction = &mut client;
    assert_eq!(function.reset_kinds(), [ResetKind::Function]);
    function.reset(ResetKind::Function).unwrap();
    let refused = function.reset(ResetKind::Bus).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    assert_eq!(fake.calls_of(ipc::wire::dext::selector::RESET_DEVICE).len(), 1);
}

#[test]
fn what_others_opened_is_of_no_use() {
    let endpoint = "sim:/nonexistent/dext".parse().unwrap();
    let dext = Dext::at(&endpoint).unwrap();
    let address = "01:00.0".parse().unwrap();
    let handed = dext.open_function(address, Source::Handed(Vec::new()));
    assert_eq!(handed.err().unwrap().kind, ErrorKind::Unsupported);
    let adopted = dext.open_group(address, Source::Adopted(cordon_backend::Left::default()));
    assert_eq!(adopted.err().unwrap().kind, ErrorKind::Unsupported);
    let unreachable = dext.open_group(address, Source::Own).err().unwrap();
    assert_eq!(unreachable.kind, ErrorKind::Unreachable);
    assert!(unreachable.to_string().starts_with("No dext at sim:/nonexistent/dext: "));
}

#[test]
fn the_fake_leaves_a_registration_as_it_is_whose_key_is_taken() {
    let (fake, mut client) = crate::fake::Fake::client();
    let memory = ipc::SharedMemory::create("guest", 0x8000).unwrap();
    let behind = || crate::Behind { memory: &memory, offset: 0, writable: true };
    client.register_dma(0x1000, 0x7000_0000, 0x4000, behind()).unwrap();
    let refused = client.register_dma(0x1000, 0x7000_0000, 0x2000, behind()).unwrap_err();
    assert_eq!(refused.code(), Some(IoReturn::STILL_OPEN));
    assert_eq!(fake.registered(), [(0x1000, 0x4000)]);
    client.unregister_dma(0x1000).unwrap();
    assert_eq!(fake.registered(), []);
}

/// A registry of so many services.
struct Many(u64);

impl Registry for Many {
    fn services(&self) -> Result<Vec<Service>, DextError> {
        let service = |id| Service {
            id,
            class: SERVICE_CLASS.to_owned(),
            root_bridge: None,
            clients: Vec::new(),
        };
        Ok((0..self.0).map(service).collect())
    }

    fn open(&self, _: u64, _: u32) -> Result<Box<dyn crate::UserClient>, DextError> {
        Ok(crate::fake::Fake::connection().1)
    }
}

#[test]
fn of_more_functions_than_are_asked_for_only_so_many_are_opened_and_listed() {
    use ipc::wire::listing::MAX_FUNCTIONS;
    for (there, listed) in [(MAX_FUNCTIONS, MAX_FUNCTIONS), (MAX_FUNCTIONS + 1, MAX_FUNCTIONS)] {
        let dext = Dext::of(Box::new(Many(there as u64)));
        assert_eq!(dext.list(MAX_FUNCTIONS).unwrap().len(), listed);
    }
}
