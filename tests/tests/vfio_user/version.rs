use crate::EINVAL;
use cordon_tests::vfio_user::{Served, words};
use cordon_vfio_user::protocol::command::{GET_INFO, VERSION};

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
        assert_eq!(capabilities["migration"]["pgsize"], 4096);
        assert!(capabilities["write_multiple"].is_null());
        served.until(|event| matches!(event, cordon_vfio_user::Event::Detached(_)));
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
