//! `vfio-serve apart ADDRESS ADDRESS`: `cordon keep` has `cordon serve` started again, which has functions of two IOMMU
//! groups and a client of each. One is taken out of the machine, and the server is killed: the next one goes on with the
//! other and its client, and the one that is gone is attached by a command when it is back.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use cordon_tests::vfio_user::ram;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::kept::{Driven, Servers, wanted};
use crate::nvme::{Nvme, SIZE, version};
use crate::{CORDON, Failure, put_back, remove};

const CONTROL: &str = "/tmp/control.sock";

pub(crate) fn check(addresses: [&str; 2]) -> Result<Value, Failure> {
    wanted(&addresses, &["--control", CONTROL])?;
    let mut servers = Servers::start()?;
    let pid = servers.next()?;
    let memory = ram(SIZE);
    let file = File::from(memory.as_fd().try_clone_to_owned()?);
    let mut stays = Driven::connect(0, &memory)?;
    let goes = Driven::connect(1, &memory)?;
    stays.client.master_bus();
    let mut verified = Nvme::start(&mut stays.client, &file)?.verify(1)?;
    let removal = remove(addresses[1])?;
    servers.serve.until("away")?;
    removal.recv()??;
    kill_process(pid, Signal::KILL)?;
    let answered = version(&mut stays.client)? != u32::MAX;
    let last = servers.next()?;
    let undisturbed = stays.is_undisturbed()?;
    let failed = servers.serve.until("failed")?;
    servers.serve.until("client-adopted")?;
    verified += Nvme::start(&mut stays.client, &file)?.verify(2)?;
    drop(goes);
    put_back(addresses[1])?;
    let attached = Command::new(CORDON)
        .args(["ctl", "--control", CONTROL, "attach", addresses[1]])
        .stdout(Stdio::null())
        .status()?
        .success();
    let mut back = Driven::connect(1, &memory)?;
    back.client.master_bus();
    verified += Nvme::start_in(&mut back.client, &file, crate::nvme::PART)?.verify(3)?;
    drop((stays, back));
    kill_process(last, Signal::TERM)?;
    let status = servers.serve.child.wait()?.code();
    Ok(json!({
        "answered": answered,
        "undisturbed": undisturbed,
        "adopted": servers.count("client-adopted"),
        "lost": servers.count("client-lost"),
        "failed": failed,
        "attached": attached,
        "bytes_verified": verified,
        "status": status,
    }))
}
