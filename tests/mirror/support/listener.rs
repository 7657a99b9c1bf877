//! A listener on loopback that can be stopped and started again on its port.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::reply::PacedBody;
use super::soon;

type Answering = Pin<Box<dyn Future<Output = io::Result<Response<PacedBody>>> + Send>>;
/// From a request to the answer, or to an error that cuts the connection.
pub(crate) type Handler = Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync>;

/// Dropping it closes the listener and every connection.
pub(crate) struct Listener {
    address: SocketAddr,
    handler: Handler,
    accepted: Arc<AtomicUsize>,
    state: Mutex<State>,
}

enum State {
    Up(JoinHandle<()>),
    /// The port stays bound, so that nobody else gets it, but nothing listens: connections are
    /// refused.
    Down(#[expect(dead_code, reason = "held for its effect on the port")] TcpSocket),
    Moving,
}

impl Listener {
    pub(crate) async fn start(handler: Handler) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound listener has an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(accept(listener, Arc::clone(&handler), Arc::clone(&accepted)));
        Self { address, handler, accepted, state: Mutex::new(State::Up(task)) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Closes every connection and refuses new ones.
    pub(crate) async fn stop(&self) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Moving);
        let State::Up(task) = state else { panic!("the listener was not up") };
        task.abort();
        let _cancelled = task.await;
        // A child process that is just being started holds the listener too, until it executes.
        let held = async {
            loop {
                match self.placeholder() {
                    Ok(socket) => return socket,
                    Err(_in_use) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        *self.state.lock() = State::Down(soon("our own port", held).await);
    }

    /// Listens again, on the same port.
    pub(crate) fn restart(&self) {
        let mut state = self.state.lock();
        assert!(matches!(*state, State::Down(_)), "the listener was not down");
        let listener = self.placeholder().and_then(|socket| socket.listen(1024));
        let listener = listener.expect("our own port");
        let accepted = Arc::clone(&self.accepted);
        let task = tokio::spawn(accept(listener, Arc::clone(&self.handler), accepted));
        *state = State::Up(task);
    }

    fn placeholder(&self) -> io::Result<TcpSocket> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        Ok(socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let State::Up(task) = &*self.state.lock() {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, handler: Handler, accepted: Arc<AtomicUsize>) {
    // Lives in this task: aborting the task drops the set, which aborts the connections.
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        // Head and body leave in two writes; without this each answer may take 40 ms.
        let _quick = socket.set_nodelay(true);
        accepted.fetch_add(1, Ordering::SeqCst);
        while connections.try_join_next().is_some() {}
        let handler = Arc::clone(&handler);
        connections.spawn(async move {
            let answer = service_fn(move |request| handler(request));
            // An error here is a fault we committed, or a client that went away.
            let _ended = http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}
