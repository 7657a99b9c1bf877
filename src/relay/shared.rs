//! One transfer for all who want the same content at the same moment, where it cannot be kept: what
//! comes lies in a window of memory until everybody has had it. Who makes the others wait too long
//! goes on alone, from where he is; who comes when the beginning has left the window begins another.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::{Relay, Source};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::flight::Who;
use crate::store::Place;

/// What a window holds, but for one piece more.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Windows at once; further transfers are for one client each.
const WINDOWS_MAX: usize = 16;

/// How long the beginning stays at least, from the upstream's answer on, for those who ask at the same
/// moment; a window that is full waits for that.
const GATHERED_FOR: Duration = Duration::from_millis(200);

/// How long most of the others wait for somebody.
const PATIENCE: Duration = Duration::from_millis(500);

/// What of that each piece makes good that he reads after all: a crowd of one speed is not parted.
const MADE_GOOD: Duration = Duration::from_millis(10);

/// How often it is looked whom they wait for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Content, where from, and by whose credentials.
type Key = (Digest, Place, Who);

/// The transfers that can be joined.
#[derive(Debug)]
pub struct Relays {
    /// The newest of each.
    windows: Mutex<HashMap<Key, Weak<Window>>>,
    places: Arc<Semaphore>,
}

impl Default for Relays {
    fn default() -> Self {
        Self { windows: Mutex::default(), places: Arc::new(Semaphore::new(WINDOWS_MAX)) }
    }
}

fn key(source: &Source) -> Key {
    (source.digest, source.place.clone(), source.upstream.who())
}

impl Relays {
    /// Joins a transfer that still has its beginning.
    pub(super) fn join(&self, source: &Source) -> Option<Reader> {
        let known = self.windows.lock().get(&key(source)).and_then(Weak::upgrade);
        known.and_then(|window| window.join(source, 0))
    }

    /// Joins a transfer that still has what begins at `position`, or has `make` begin one there.
    /// `None` where there are too many.
    pub(super) fn join_or(
        &self,
        source: &Source,
        position: u64,
        make: impl Future<Output = Result<Relay>> + Send + 'static,
    ) -> Option<Reader> {
        let key = key(source);
        let mut windows = self.windows.lock();
        let known = windows.get(&key).and_then(Weak::upgrade);
        if let Some(reader) = known.and_then(|window| window.join(source, position)) {
            return Some(reader);
        }
        windows.retain(|_, window| window.strong_count() > 0);
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let (moved, changes) = watch::channel(());
        let state = Mutex::new(State::at(position));
        let window = Arc::new(Window { state, read_on: Notify::new(), changes, _place: place });
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
    read_on: Notify,
    /// Changes with everything that comes, and at the end.
    changes: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
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
    parted: HashMap<u64, Hasher>,
    readers_ever: u64,
    /// When the upstream has answered.
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
            parted: HashMap::new(),
            readers_ever: 0,
            begun: Instant::now(),
            end: None,
        }
    }

    fn answered(&mut self, size: Option<u64>) {
        (self.is_answered, self.size, self.begun) = (true, size, Instant::now());
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
        let gathered = self.has_gathered();
        let last = self.readers.values().map(|stand| stand.at).min().unwrap_or(self.next);
        while gathered && self.is_full() && self.pieces.front().is_some_and(|p| p.end() <= last) {
            self.pieces.pop_front();
        }
    }

    fn has_gathered(&self) -> bool {
        self.begun.elapsed() >= GATHERED_FOR
    }

    /// Nothing is read ahead for a single reader: there is nobody to share it with.
    fn is_full(&self) -> bool {
        let is_alone = self.readers.len() == 1 && self.has_gathered();
        self.next - self.begins() >= if is_alone { 1 } else { WINDOW_BYTES }
    }

    /// Charges the last ones with what most of the others have waited, and parts with who has been
    /// charged too much. Nobody waits for somebody who is alone.
    fn charge(&mut self, waited: Duration) {
        let begins = self.begins();
        let starving = self.readers.values().filter(|stand| stand.at == self.next).count();
        if starving == 0 || 2 * starving < self.readers.len() || !self.has_gathered() {
            return;
        }
        let mut late = Vec::new();
        for (id, stand) in self.readers.iter_mut().filter(|(_, stand)| stand.at == begins) {
            stand.waited_for += waited;
            if stand.waited_for > PATIENCE {
                late.push(*id);
            }
        }
        let Some(hasher) = self.pieces.front().map(|piece| piece.hasher.clone()) else { return };
        for id in late {
            self.readers.remove(&id);
            self.parted.insert(id, hasher.clone());
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
        let seat = Seat { window: Arc::clone(self), id, changes: self.changes.clone() };
        Some(Reader { way: Way::Shared(seat), at: position, source: source.clone() })
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
            let _ = tokio::time::timeout(LOOK_EVERY, self.read_on.notified()).await;
            self.state.lock().charge(began.elapsed());
        }
    }
}

/// One client's way through a shared transfer.
#[derive(Debug)]
pub struct Reader {
    way: Way,
    at: u64,
    source: Source,
}

#[derive(Debug)]
enum Way {
    Shared(Seat),
    /// The others did not wait. Nothing of the window is held any more.
    Alone(Box<Relay>),
}

/// A reader's place in a window.
#[derive(Debug)]
struct Seat {
    window: Arc<Window>,
    id: u64,
    changes: watch::Receiver<()>,
}

/// What there is for a reader.
enum Next {
    Bytes(Bytes),
    End(Result<()>),
    Alone(Hasher),
}

impl Reader {
    /// What is read, and where from.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Waits for the whole size; `None` where the upstream does not tell it. Cancel safe.
    ///
    /// # Errors
    /// The upstream's, where it has nothing.
    pub(super) async fn size(&mut self) -> Result<Option<u64>> {
        match &mut self.way {
            Way::Shared(seat) => seat.size().await,
            Way::Alone(relay) => Ok(relay.size),
        }
    }

    /// The next bytes; `None` at the end, when the digest was right. Not cancel safe.
    ///
    /// # Errors
    /// The transfer's.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let next = match &mut self.way {
                Way::Shared(seat) => seat.next(self.at).await?,
                Way::Alone(relay) => return relay.next().await,
            };
            match next {
                Next::Bytes(bytes) => {
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Next::End(end) => return end.map(|()| None),
                Next::Alone(hasher) => {
                    let relay = Relay::new(&self.source, Some(hasher), self.at);
                    self.way = Way::Alone(Box::new(relay));
                }
            }
        }
    }
}

impl Seat {
    async fn size(&mut self) -> Result<Option<u64>> {
        loop {
            self.changes.borrow_and_update();
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

    async fn next(&mut self, at: u64) -> Result<Next> {
        loop {
            self.changes.borrow_and_update();
            if let Some(next) = self.take_next(at) {
                return Ok(next);
            }
            self.changed().await?;
        }
    }

    fn take_next(&self, at: u64) -> Option<Next> {
        let mut state = self.window.state.lock();
        if let Some(hasher) = state.parted.remove(&self.id) {
            return Some(Next::Alone(hasher));
        }
        let Some(piece) = state.piece(at) else { return state.end.clone().map(Next::End) };
        let (bytes, end) = (piece.bytes.clone(), piece.end());
        if let Some(stand) = state.readers.get_mut(&self.id) {
            stand.at = end;
            stand.waited_for = stand.waited_for.saturating_sub(MADE_GOOD);
        }
        drop(state);
        self.window.read_on.notify_one();
        Some(Next::Bytes(bytes))
    }

    async fn changed(&mut self) -> Result<()> {
        let dropped = |e| Error::internal("a transfer was dropped", e);
        self.changes.changed().await.map_err(dropped)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.window.state.lock();
        state.readers.remove(&self.id);
        state.parted.remove(&self.id);
        drop(state);
        self.window.read_on.notify_one();
    }
}
