//! The thread that keeps a child, and how it is stopped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ipc::Event;
use ipc::event::Signaller;
use parking_lot::Mutex;

use crate::child::{Cause, Fate, Launch};

/// How long the thread may go on with what it has in hand after it was told to stop.
const STOP_GRACE: Duration = Duration::from_millis(300);

/// The child that the thread is talking to: whoever stops the thread ends it.
#[derive(Default)]
pub(super) struct InHand(pub(super) Mutex<Option<Arc<Fate>>>);

/// The owner's side: stops the thread.
pub(crate) struct KeeperThread {
    stop: Signaller,
    in_hand: Arc<InHand>,
    thread: Mutex<Option<JoinHandle<()>>>,
    finished: Mutex<Receiver<()>>,
    name: String,
}

/// What a keeper's thread is given to begin with.
pub(crate) struct KeeperParts {
    pub(super) stopped: Event,
    pub(super) in_hand: Arc<InHand>,
}

impl KeeperThread {
    /// Starts a thread that starts children by `launch` and runs `run` until it is told to stop.
    ///
    /// # Errors
    /// When there are no threads or descriptors left.
    pub(crate) fn spawn(
        name: String,
        launch: Arc<dyn Launch>,
        run: impl FnOnce(KeeperParts) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stopped = Event::new()?;
        let stop = stopped.signaller()?;
        let in_hand = Arc::new(InHand::default());
        let parts = KeeperParts { stopped, in_hand: Arc::clone(&in_hand) };
        let (sender, finished) = channel();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            launch.prepare_thread();
            run(parts);
            let _ = sender.send(());
        })?;
        let (thread, finished) = (Mutex::new(Some(thread)), Mutex::new(finished));
        Ok(Self { stop, in_hand, thread, finished, name })
    }

    /// Stops the thread, and with it the child. Returns within half a second or so, whatever state the
    /// child is in. Called from the thread itself it only says so.
    pub(crate) fn stop(&self) {
        self.stop.signal();
        let own = self.thread.lock().as_ref().map(|thread| thread.thread().id());
        if own == Some(std::thread::current().id()) {
            return;
        }
        let finished = self.finished.lock();
        let mut ended = finished.recv_timeout(STOP_GRACE);
        if ended == Err(RecvTimeoutError::Timeout) {
            self.in_hand.end();
            ended = finished.recv_timeout(Duration::from_secs(5));
        }
        match ended {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let thread = self.thread.lock().take();
                if thread.is_some_and(|thread| thread.join().is_err()) {
                    tracing::error!("the thread '{}' panicked", self.name);
                }
            }
            Err(RecvTimeoutError::Timeout) => tracing::error!("the thread '{}' hangs", self.name),
        }
    }
}

impl Drop for KeeperThread {
    fn drop(&mut self) {
        self.stop();
    }
}

impl InHand {
    fn end(&self) {
        if let Some(fate) = &*self.0.lock() {
            fate.condemn(Cause::Overdue("stop"));
        }
    }
}
