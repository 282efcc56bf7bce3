use cordon_tests::vfio_user::Served;
use cordon_vfio_user::protocol::command::RESET;

#[test]
fn a_reset_resets_the_device_and_its_bar_registers() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    client.write(0, 0x10, &[1, 2, 3, 4]);
    client.write(7, 0x10, &0xfeb0_0000u32.to_le_bytes());
    assert!(client.ok(RESET, &[]).is_empty());
    // COMMAND is as after a reset, so nobody answers.
    assert_eq!(client.read(0, 0x10, 4), [0xff; 4]);
    client.master_bus();
    assert_eq!(client.read(0, 0x10, 4), [0; 4]);
    assert_eq!(client.read(7, 0x10, 4), [0; 4]);
}

#[test]
fn a_reset_that_fails_is_an_io_error() {
    let served = Served::probe();
    let mut client = served.client();
    served.simulator.fault("fail:selector=17,nth=1,code=0xe00002bc");
    assert_eq!(client.refused(RESET, &[], &[]), 5);
    client.ok(RESET, &[]);
}
