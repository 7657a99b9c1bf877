//! A new binary takes over: it gets the sockets, serves, and only then does this process let go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Running;
use crate::doors;
use crate::handover::{Before, Heard, Lock, Successor};
use crate::keeper::Company;
use crate::limits::HANDED_OVER_DRAIN;
use crate::server::Mirror;

/// How long a connection that has just been taken may be without its place. Nobody waits for it.
const SEATED_WITHIN: Duration = Duration::from_secs(1);

/// How often it is looked whether everything has ended.
const PAUSE: Duration = Duration::from_millis(20);

impl Running {
    /// Starts `program` and hands over to it. This process still serves when it comes back; `hand_over`
    /// ends that.
    ///
    /// # Errors
    /// One sentence, where the new process does not serve: everything is as it was before. Dropped
    /// before its end, it leaves the new process killed and this one as if it were not alone.
    pub async fn upgrade(&self, program: &PathBuf) -> Result<Successor, String> {
        let mirror = self.mirror();
        let keeper = mirror.store.keeper();
        if keeper.company() != Company::Alone {
            let text = "the process before this one is still finishing what it has begun; try again when it has ended";
            return Err(text.to_owned());
        }
        if std::process::id() == 1 {
            let text = "this is the first process of its container, which would end with it; replace the container instead";
            return Err(text.to_owned());
        }
        keeper.set_company(Company::Behind);
        mirror.hosting.settle().await;
        let outcome = self.start_successor(program, &mirror).await;
        if outcome.is_err() {
            alone_again(&mirror).await;
        }
        outcome
    }

    async fn start_successor(
        &self,
        program: &PathBuf,
        mirror: &Mirror,
    ) -> Result<Successor, String> {
        let text = |e: std::io::Error| format!("{} cannot be started: {e}", program.display());
        let (fd, file) = mirror.store.disk().lock().map_err(text)?;
        let hosting = !mirror.config().hosted.repositories.is_empty();
        let lock = Lock { file, fd };
        let secret = doors::own_secret().map_err(|error| error.to_string())?;
        let begin = (hosting, &secret[..]);
        let mut new =
            Successor::start(program, self.listening.clone(), lock, begin).map_err(text)?;
        tracing::info!(pid = new.id(), program = %program.display(), "upgrade: the new process starts");
        let within = mirror.config().server.upgrade_timeout;
        let serves = tokio::time::timeout(within.get(), new.serves()).await;
        serves
            .unwrap_or_else(|_| Err(format!("it does not serve after {within}; it is killed")))?;
        Ok(new)
    }

    /// Takes nobody any more: the new process does. What is under way comes to its end, within an
    /// hour.
    pub async fn hand_over(&self, successor: Successor) {
        let mirror = self.mirror();
        let _ = self.stop_admin.send(true);
        self.stop_accepting(SEATED_WITHIN).await;
        let stream = successor.draining(mirror.store.keeper().reserved()).await;
        let deadline = Instant::now() + HANDED_OVER_DRAIN;
        let empty = self.configured.places.empty();
        let _ = tokio::time::timeout_at(deadline.into(), empty).await; // the rest is cut off then
        while mirror.fills.count() > 0 && Instant::now() < deadline {
            tokio::time::sleep(PAUSE).await;
        }
        self.flush().await;
        std::mem::forget(stream); // the end of the process closes it, and nothing before
    }
}

/// Puts back what an upgrade that has failed has changed.
async fn alone_again(mirror: &Mirror) {
    // In this order: what is read from now on stays true.
    mirror.hosting.settle().await;
    mirror.store.keeper().set_company(Company::Alone);
    let learn = mirror.store.blocking(|store| {
        store.keeper().learn_again();
        store.keeper().make_room();
        Ok(())
    });
    let _ = learn.await; // what fails is told there
}

/// Tells the process before that this one serves, and listens to it until it has gone.
pub(super) fn take_over(mut before: Before, mirror: Arc<Mirror>, shared: bool) {
    if before.serving().is_err() {
        tracing::warn!("the process before has gone before it could hand over");
    }
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        while let Heard::Draining(bytes) = before.hear() {
            tracing::info!(bytes, "the process before takes nobody any more");
            mirror.store.keeper().set_elsewhere(bytes);
        }
        tracing::info!("the process before has ended");
        if shared {
            runtime.block_on(alone_again(&mirror));
        }
    });
}
