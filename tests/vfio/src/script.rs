//! What the init program of the machine is told, in a file of its initramfs, and what it reports, a line each.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the script is in the initramfs.
pub const SCRIPT: &str = "/script.json";
/// Where kernel modules are in the initramfs: they are loaded in the order of their names.
pub const MODULES: &str = "/modules";
/// The serial port that reports go to. The kernel's own console is the other one.
pub const REPORTS: &str = "/dev/ttyS1";

/// Everything that is done in one boot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Script {
    /// Functions to bind to `vfio-pci`, as `0000:01:00.0`.
    pub bind: Vec<String>,
    /// What is run, one after the other. A failing one keeps none from running.
    pub steps: Vec<Step>,
}

/// A program to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Names it in reports; unique in its script.
    pub name: String,
    /// Its path in the initramfs.
    pub program: String,
    /// What it is given.
    pub arguments: Vec<String>,
    /// Variables, beside PATH=/bin and TMPDIR=/tmp. Nothing is inherited.
    pub environment: BTreeMap<String, String>,
    /// Whom it runs as: root, or another user and group of this number. The groups of what is bound are theirs meanwhile.
    pub user: u32,
    /// How many bytes it may lock (RLIMIT_MEMLOCK). Mappings for DMA count.
    pub locked_memory: u64,
    /// Files that root opens, and that it is started with as descriptors 3 and up, as a manager does. When there are
    /// some, it may open no file of VFIO's itself.
    pub descriptors: Vec<Descriptor>,
    /// How long it may take until it is killed with all that it started.
    pub timeout: Duration,
}

/// A file that is opened for a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// What it is called in LISTEN_FDNAMES: the variables of systemd are set if one has a name.
    pub name: Option<String>,
    /// Where it is.
    pub file: Opened,
}

/// A file to open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opened {
    /// That of the IOMMU group of the function at this address.
    GroupOf(String),
    /// The own file of the function at this address, where the kernel makes one.
    DeviceOf(String),
    /// Any other, by its path; to read and write if that is allowed.
    Path(String),
}

impl Descriptor {
    /// The file of the IOMMU group of a function.
    #[must_use]
    pub fn group_of(address: &str) -> Self {
        Self { name: None, file: Opened::GroupOf(address.to_owned()) }
    }

    /// A function's own file.
    #[must_use]
    pub fn device_of(address: &str) -> Self {
        Self { name: None, file: Opened::DeviceOf(address.to_owned()) }
    }

    /// A file.
    #[must_use]
    pub fn path(path: &str) -> Self {
        Self { name: None, file: Opened::Path(path.to_owned()) }
    }

    /// As systemd passes it on.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }
}

impl Step {
    /// What a program may lock unless it is said: as much as a manager gives that passes devices on.
    pub const LOCKED_MEMORY: u64 = 256 << 20;

    /// A step that runs a program of the initramfs as root, for a minute at most.
    #[must_use]
    pub fn new(name: &str, program: &str) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            user: 0,
            locked_memory: Self::LOCKED_MEMORY,
            descriptors: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }

    /// Gives it arguments, after those that it has.
    #[must_use]
    pub fn arguments<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs it as another user and group.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = user;
        self
    }

    /// Limits what it may lock, in bytes.
    #[must_use]
    pub fn locked_memory(mut self, bytes: u64) -> Self {
        self.locked_memory = bytes;
        self
    }

    /// Starts it with files that root opens, and without the right to open any of VFIO's itself.
    #[must_use]
    pub fn descriptors(mut self, descriptors: impl IntoIterator<Item = Descriptor>) -> Self {
        self.descriptors.extend(descriptors);
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// A PCI function as the machine's kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// As `0000:01:00.0`.
    pub address: String,
    /// Vendor and device, as `1b36:0010`.
    pub ids: String,
    /// Base class, subclass and interface, as `010802`.
    pub class: String,
    /// The number of its IOMMU group.
    pub group: Option<u32>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
}

/// What the init program reports, each as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// Modules are loaded and functions bound.
    Ready {
        /// Every PCI function that there is.
        functions: Vec<Function>,
    },
    /// A step's program was started.
    Started {
        /// Its step.
        step: String,
    },
    /// A line that a step's program printed.
    Line {
        /// Its step.
        step: String,
        /// On standard error rather than standard output.
        error: bool,
        /// Without the end of line; bytes that are no text are replaced.
        text: String,
    },
    /// A step has ended.
    Ended {
        /// Which.
        step: String,
        /// How.
        how: Ending,
        /// How long it took.
        took: Duration,
        /// Processes that it left running, by their command lines: they are killed.
        left: Vec<String>,
    },
    /// The machine cannot do what it is there for, and powers off.
    Failed {
        /// Why.
        reason: String,
    },
    /// Every step has ended; the machine powers off.
    Done,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It exited.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
    /// It took too long, and was killed.
    TimedOut,
    /// It could not be started, and why.
    NotStarted(String),
}
