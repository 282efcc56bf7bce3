use crate::EINVAL;
use cordon_tests::vfio_user::{Served, access, words};
use cordon_vfio_user::protocol::command::{GET_INFO, REGION_INFO, REGION_READ, VERSION};
use cordon_vfio_user::{Budget, Event, Options};

#[test]
fn the_reply_is_what_stock_clients_take() {
    let served = Served::probe();
    // QEMU's request and cloud-hypervisor's, with the minor version that each must be answered.
    let qemu: &[u8] = b"\0\0\0\0{\"capabilities\": {\"pgsizes\": 4096, \"max_msg_fds\": 16, \
        \"max_dma_maps\": 65535, \"max_data_xfer_size\": 1048576, \"migration\": \
        {\"max_bitmap_size\": 268435456, \"pgsize\": 4096}, \"write_multiple\": true}}\0";
    let cloud: &[u8] = b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":1,\
        \"max_data_xfer_size\":1048576,\"migration\":{\"pgsize\":4096}}}\0";
    for (request, minor) in [(qemu, 0), (cloud, 1)] {
        let body = served.connect().ok(VERSION, request);
        assert_eq!(body[..4], [0, 0, minor, 0]);
        assert!(body.len() <= qemu.len(), "QEMU takes no reply that is longer than its request");
        let (end, text) = body[4..].split_last().unwrap();
        assert_eq!(*end, 0);
        let json: serde_json::Value = serde_json::from_slice(text).unwrap();
        let capabilities = &json["capabilities"];
        assert!(capabilities["max_msg_fds"].as_u64().unwrap() <= 16);
        assert_eq!(capabilities["pgsizes"], rustix::param::page_size());
        // Its presence says that the device migrates.
        assert!(capabilities.get("migration").is_none());
        assert!(capabilities["write_multiple"].is_null());
        served.until(|event| matches!(event, Event::Detached(_)));
    }
}

#[test]
fn versions_and_capabilities_that_make_no_sense_are_refused_and_can_be_tried_again() {
    let served = Served::probe();
    let mut client = served.connect();
    for body in [
        &b""[..],
        b"\0\0\0",
        b"\x01\0\0\0{}\0",
        b"\0\0\0\0{}",
        b"\0\0\0\0{\0",
        b"\0\0\0\0[]\0",
        b"\0\0\0\0\xff\xfe\0",
    ] {
        let reply = client.ask(VERSION, body, &[]);
        assert_eq!(reply.error, 22, "{body:?}");
    }
    client.ok(VERSION, b"\0\0\0\0");
    client.still_works();
}

#[test]
fn version_comes_first_and_once() {
    let served = Served::probe();
    let mut client = served.connect();
    assert_eq!(client.ask(GET_INFO, &words(&[16, 0, 0, 0]), &[]).error, 22);
    client.ok(VERSION, b"\0\0\0\0{}\0");
    assert_eq!(client.refused(VERSION, b"\0\0\0\0{}\0", &[]), EINVAL);
}

#[test]
fn capabilities_of_another_kind_are_refused_by_name() {
    let budget = Budget { reports: 100, ..Budget::default() };
    let options = Options { budget, ..Options::default() };
    let served = Served::start_as("01:00.1", |_| {}, options);
    let mut client = served.connect();
    for (capability, wrong) in [
        ("capabilities", r#"{"capabilities":"all"}"#),
        ("capabilities", r#"{"capabilities":[]}"#),
        ("capabilities", r#"{"capabilities":null}"#),
        ("max_msg_fds", r#"{"capabilities":{"max_msg_fds":-1}}"#),
        ("max_msg_fds", r#"{"capabilities":{"max_msg_fds":"16"}}"#),
        ("max_msg_fds", r#"{"capabilities":{"max_msg_fds":1.5}}"#),
        ("max_msg_fds", r#"{"capabilities":{"max_msg_fds":1000000}}"#),
        ("max_data_xfer_size", r#"{"capabilities":{"max_data_xfer_size":-1}}"#),
        ("max_data_xfer_size", r#"{"capabilities":{"max_data_xfer_size":0}}"#),
        ("max_data_xfer_size", r#"{"capabilities":{"max_data_xfer_size":1099511627776}}"#),
        ("max_data_xfer_size", r#"{"capabilities":{"max_data_xfer_size":{}}}"#),
        ("max_dma_maps", r#"{"capabilities":{"max_dma_maps":"many"}}"#),
        ("pgsizes", r#"{"capabilities":{"pgsizes":0}}"#),
        ("pgsizes", r#"{"capabilities":{"pgsizes":4095}}"#),
        ("pgsizes", r#"{"capabilities":{"pgsizes":[4096]}}"#),
        ("migration", r#"{"capabilities":{"migration":true}}"#),
        ("migration.pgsize", r#"{"capabilities":{"migration":{"pgsize":5000}}}"#),
        ("migration.pgsize", r#"{"capabilities":{"migration":{"pgsize":12288}}}"#),
        ("max_bitmap_size", r#"{"capabilities":{"migration":{"max_bitmap_size":-2}}}"#),
        ("twin_socket", r#"{"capabilities":{"twin_socket":1}}"#),
        ("write_multiple", r#"{"capabilities":{"write_multiple":1}}"#),
    ] {
        let body = format!("\0\0\0\0{wrong}\0");
        assert_eq!(client.ask(VERSION, body.as_bytes(), &[]).error, 22, "{wrong}");
        served.until(|event| matches!(event, Event::Refused(why) if why.contains(capability)));
    }
    // What is not known is the client's own, and no capability is needed.
    client.ok(VERSION, b"\0\0\0\0{\"capabilities\":{\"own\":[1]},\"more\":2}\0");
    client.still_works();
}

#[test]
fn what_a_client_takes_bounds_what_it_is_sent() {
    let served = Served::probe();
    let mut client = served.connect();
    let said = r#"{"capabilities":{"max_msg_fds":0,"max_data_xfer_size":64}}"#;
    client.ok(VERSION, format!("\0\0\0\0{said}\0").as_bytes());
    assert_eq!(client.read(7, 0, 64).len(), 64);
    assert_eq!(client.refused(REGION_READ, &access(7, 0, 65, &[]), &[]), EINVAL);
    // No descriptor can be sent, so nothing can be mapped.
    let reply = client.ask(REGION_INFO, &words(&[32, 0, 2, 0, 0, 0, 0, 0]), &[]);
    assert_eq!((reply.error, reply.descriptors.len()), (0, 0));
    assert_eq!(reply.body[4..8], [3, 0, 0, 0], "it can be read and written, and not mapped");
}
