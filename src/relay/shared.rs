//! One transfer for all who want the same content at the same moment, where it cannot be kept: what
//! comes lies in a window of memory until everybody has had it. Who makes the others wait too long
//! goes on alone, from where he is; who comes when the beginning has left the window begins alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{Relay, Source};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::flight::Who;
use crate::store::Place;

/// What a window holds, but for one piece more.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Windows at once; further transfers are for one client each.
const WINDOWS_MAX: usize = 16;

/// How long the beginning stays in the window, for those who ask at the same moment.
const GATHERED_FOR: Duration = Duration::from_millis(200);

/// How long the others wait for somebody, in all, beside a tenth of the time that has passed.
const PATIENCE: Duration = Duration::from_millis(300);

/// How often it is looked whom they wait for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Content, where from, and by whose credentials.
type Key = (Digest, Place, Who);

/// The transfers that can be joined.
#[derive(Debug, Default)]
pub struct Relays(Mutex<HashMap<Key, Weak<Window>>>);

impl Relays {
    /// Joins a transfer that still has what begins at `position`, or has `make` begin one there.
    /// `None` where there are too many.
    pub(super) fn join_or(
        &self,
        source: &Source,
        position: u64,
        make: impl Future<Output = Result<Relay>> + Send + 'static,
    ) -> Option<Reader> {
        let key = (source.digest, source.place.clone(), source.upstream.who());
        let mut windows = self.0.lock();
        let known = windows.get(&key).and_then(Weak::upgrade);
        if let Some(reader) = known.and_then(|window| window.join(source, position)) {
            return Some(reader);
        }
        windows.retain(|_, window| window.strong_count() > 0);
        if windows.len() >= WINDOWS_MAX {
            return None;
        }
        let (moved, seen) = watch::channel(());
        let state = Mutex::new(State::at(position));
        let window = Arc::new(Window { state, taken: Notify::new(), seen });
        let reader = window.join(source, position);
        windows.insert(key, Arc::downgrade(&window));
        tokio::spawn(async move { window.fill(make, &moved).await });
        reader
    }
}

/// What one transfer has brought and not everybody has had.
#[derive(Debug)]
struct Window {
    state: Mutex<State>,
    /// A reader has gone on, or away.
    taken: Notify,
    /// Changes with everything that comes, and at the end.
    seen: watch::Receiver<()>,
}

#[derive(Debug)]
struct State {
    /// Whether the upstream's head has come, and the size that it told, if any.
    is_answered: bool,
    size: Option<u64>,
    pieces: VecDeque<Piece>,
    /// Where the next piece will begin.
    next: u64,
    readers: HashMap<u64, Stand>,
    /// Those who were too slow, with the hash of what they have had.
    left: HashMap<u64, Hasher>,
    readers_ever: u64,
    begun: Instant,
    end: Option<Result<()>>,
}

#[derive(Debug)]
struct Piece {
    at: u64,
    bytes: Bytes,
    /// Of everything before it.
    hasher: Hasher,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// Where a reader is, and how long others have waited for him.
#[derive(Debug)]
struct Stand {
    at: u64,
    waited_for: Duration,
}

impl State {
    fn at(position: u64) -> Self {
        Self {
            is_answered: false,
            size: None,
            pieces: VecDeque::new(),
            next: position,
            readers: HashMap::new(),
            left: HashMap::new(),
            readers_ever: 0,
            begun: Instant::now(),
            end: None,
        }
    }

    fn answered(&mut self, size: Option<u64>) {
        (self.is_answered, self.size) = (true, size);
    }

    fn begins(&self) -> u64 {
        self.pieces.front().map_or(self.next, |piece| piece.at)
    }

    fn push(&mut self, bytes: Bytes, hasher: Hasher) {
        let piece = Piece { at: self.next, bytes, hasher };
        self.next = piece.end();
        self.pieces.push_back(piece);
    }

    fn piece(&self, at: u64) -> Option<&Piece> {
        let index = self.pieces.binary_search_by_key(&at, |piece| piece.at).ok()?;
        self.pieces.get(index)
    }

    /// Drops what everybody has had, where that makes room, once all have gathered: whoever comes while
    /// the beginning is here can join.
    fn make_room(&mut self) {
        let gathered = self.begun.elapsed() >= GATHERED_FOR;
        let last = self.readers.values().map(|stand| stand.at).min().unwrap_or(self.next);
        while gathered && self.is_full() && self.pieces.front().is_some_and(|p| p.end() <= last) {
            self.pieces.pop_front();
        }
    }

    fn is_full(&self) -> bool {
        self.next - self.begins() >= WINDOW_BYTES
    }

    /// Charges the last ones with what the others have waited, and parts with who has been charged
    /// too much. Nobody waits for somebody who is alone.
    fn charge(&mut self, waited: Duration) {
        let begins = self.begins();
        let starving = self.readers.values().any(|stand| stand.at == self.next);
        if !starving || self.begun.elapsed() < GATHERED_FOR {
            return;
        }
        let most = PATIENCE + self.begun.elapsed() / 10;
        let mut late = Vec::new();
        for (id, stand) in self.readers.iter_mut().filter(|(_, stand)| stand.at == begins) {
            stand.waited_for += waited;
            if stand.waited_for > most {
                late.push(*id);
            }
        }
        let Some(hasher) = self.pieces.front().map(|piece| piece.hasher.clone()) else { return };
        for id in late {
            self.readers.remove(&id);
            self.left.insert(id, hasher.clone());
        }
    }
}

impl Window {
    /// A reader from `position` on, if that is still here.
    fn join(self: &Arc<Self>, source: &Source, position: u64) -> Option<Reader> {
        let mut state = self.state.lock();
        let here = position == state.next || state.piece(position).is_some();
        if !here || matches!(state.end, Some(Err(_))) {
            return None;
        }
        let id = state.readers_ever;
        state.readers_ever += 1;
        state.readers.insert(id, Stand { at: position, waited_for: Duration::ZERO });
        let (window, seen) = (Arc::clone(self), self.seen.clone());
        Some(Reader { window, id, at: position, seen, source: source.clone(), alone: None })
    }

    /// Brings what there is, for as long as somebody wants it.
    async fn fill(&self, make: impl Future<Output = Result<Relay>>, moved: &watch::Sender<()>) {
        let end = match make.await {
            Ok(relay) => self.pass(relay, moved).await,
            Err(error) => Err(error),
        };
        self.state.lock().end.get_or_insert(end);
        moved.send_replace(());
    }

    async fn pass(&self, mut relay: Relay, moved: &watch::Sender<()>) -> Result<()> {
        self.state.lock().answered(relay.size());
        moved.send_replace(());
        while self.has_room().await {
            let Some((bytes, hasher)) = relay.next_hashed().await? else { break };
            let unproven = || Error::internal("a part is not shared", "no hash can prove it");
            self.state.lock().push(bytes, hasher.ok_or_else(unproven)?);
            moved.send_replace(());
        }
        Ok(())
    }

    /// Waits for room. `false` once nobody is left.
    async fn has_room(&self) -> bool {
        loop {
            {
                let mut state = self.state.lock();
                state.make_room();
                if state.readers.is_empty() {
                    // At once, so that nobody joins what has ended.
                    state.end = Some(Err(Error::new(Kind::Unavailable, "nobody was left")));
                    return false;
                }
                if !state.is_full() {
                    return true;
                }
            }
            let began = Instant::now();
            // In time or not: it is looked again.
            let _ = tokio::time::timeout(LOOK_EVERY, self.taken.notified()).await;
            self.state.lock().charge(began.elapsed());
        }
    }
}

/// One client's way through a shared transfer.
#[derive(Debug)]
pub struct Reader {
    window: Arc<Window>,
    id: u64,
    at: u64,
    seen: watch::Receiver<()>,
    source: Source,
    /// Where the others did not wait.
    alone: Option<Relay>,
}

/// What there is for a reader.
enum Next {
    Bytes(Bytes),
    End(Result<()>),
    Alone(Hasher),
    Nothing,
}

impl Reader {
    /// What is read, and where from.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Waits for the whole size, where the upstream tells it. Cancel safe.
    ///
    /// # Errors
    /// The upstream's, where it has nothing.
    pub(super) async fn size(&mut self) -> Result<Option<u64>> {
        loop {
            self.seen.borrow_and_update();
            {
                let state = self.window.state.lock();
                if state.is_answered {
                    return Ok(state.size);
                }
                if let Some(Err(error)) = &state.end {
                    return Err(error.clone());
                }
            }
            self.changed().await?;
        }
    }

    /// The next bytes; `None` at the end, when the digest was right. Not cancel safe.
    ///
    /// # Errors
    /// The transfer's.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(relay) = &mut self.alone {
                return relay.next().await;
            }
            self.seen.borrow_and_update();
            match self.look() {
                Next::Bytes(bytes) => {
                    self.at += bytes.len() as u64;
                    self.window.taken.notify_one();
                    return Ok(Some(bytes));
                }
                Next::End(end) => return end.map(|()| None),
                Next::Alone(hasher) => {
                    self.alone = Some(Relay::new(&self.source, Some(hasher), self.at));
                }
                Next::Nothing => self.changed().await?,
            }
        }
    }

    fn look(&self) -> Next {
        let mut state = self.window.state.lock();
        if let Some(hasher) = state.left.remove(&self.id) {
            return Next::Alone(hasher);
        }
        if let Some(piece) = state.piece(self.at) {
            let (bytes, end) = (piece.bytes.clone(), piece.end());
            if let Some(stand) = state.readers.get_mut(&self.id) {
                stand.at = end;
            }
            return Next::Bytes(bytes);
        }
        state.end.clone().map_or(Next::Nothing, Next::End)
    }

    async fn changed(&mut self) -> Result<()> {
        let dropped = |e| Error::internal("a transfer was dropped", e);
        self.seen.changed().await.map_err(dropped)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.window.state.lock();
        state.readers.remove(&self.id);
        state.left.remove(&self.id);
        drop(state);
        self.window.taken.notify_one();
    }
}
