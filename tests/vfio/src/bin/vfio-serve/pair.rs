//! Two functions of one IOMMU group, served at two sockets to one client: a device of the one could reach what the
//! other was given, so both are one guest's. Another process is sent away until the first has left both.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use console::{complain, say};
use cordon_tests::vfio_user::{Client, map, ram};
use serde_json::{Value, json};

use crate::nvme::{BASE, Nvme, PART, SIZE};
use crate::{CORDON, DMA_MAP, Failure, READ_WRITE, SOCKETS, Serve};

/// Says of this program that it is to be another client, of the socket that is named next.
pub(crate) const OTHER: &str = "--other";

/// Connects, and says whether it is served.
pub(crate) fn other(socket: &str) -> ExitCode {
    let served = Client::connect(Path::new(socket)).is_served();
    match say!("{}", if served { "served" } else { "sent away" }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vfio-serve: {error}"));
            ExitCode::from(console::exit::UNWRITTEN)
        }
    }
}

/// What another process is told at a socket.
fn tried_by_another(socket: &str) -> Result<String, Failure> {
    let output = Command::new(std::env::current_exe()?).args([OTHER, socket]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Serves both, and is their client.
pub(crate) fn check(addresses: [&str; 2]) -> Result<Value, Failure> {
    let mut serve = Serve::start(Command::new(CORDON), &addresses)?;
    serve.until("ready")?;
    let listening = serve.until_all("listening", 2)?;
    let [one, two] = [0, 1].map(|at: usize| &listening[at]["connection_process"]);
    let one_process = one.is_u64() && one == two;
    let mut first = Client::negotiated(Path::new(SOCKETS[0]));
    let memory = ram(SIZE);
    let whole = map(READ_WRITE, 0, BASE, SIZE);
    let mut mapped = vec![first.ask(DMA_MAP, &whole, &[memory.as_fd()]).error];
    let while_one_is_had = tried_by_another(SOCKETS[1])?;
    let refused = serve.until("refused")?;
    let mut second = Client::negotiated(Path::new(SOCKETS[1]));
    // It describes the same memory, and other memory at the same place.
    mapped.push(second.ask(DMA_MAP, &whole, &[memory.as_fd()]).error);
    let memory = File::from(memory.as_fd().try_clone_to_owned()?);
    first.master_bus();
    second.master_bus();
    let mut verified = [0, 0];
    {
        let mut nvme = Nvme::start(&mut first, &memory)?;
        let mut beside = Nvme::start_in(&mut second, &memory, PART)?;
        for seed in 1..=4 {
            verified[0] += nvme.verify(seed)?;
            verified[1] += beside.verify(seed + 16)?;
        }
    }
    // The one leaves; the other goes on in the memory that both had.
    drop(second);
    serve.until("detach")?;
    verified[0] += Nvme::start(&mut first, &memory)?.verify(7)?;
    let still_had = tried_by_another(SOCKETS[1])?;
    drop(first);
    serve.until_all("detach", 2)?;
    // Until the last of it is taken back it may be sent away still.
    let until = std::time::Instant::now() + crate::LONGEST;
    let free = loop {
        let free = tried_by_another(SOCKETS[1])?;
        if free == "served" || std::time::Instant::now() > until {
            break free;
        }
    };
    let status = serve.stop()?;
    Ok(json!({
        "one_process": one_process,
        "mapped": mapped,
        "while_one_is_had": while_one_is_had,
        "refused": refused["why"],
        "still_had": still_had,
        "free": free,
        "bytes_verified": verified,
        "status": status,
    }))
}
