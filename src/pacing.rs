//! Connections within this machine go as fast as it can.
//!
//! BBR, where that is the system's choice, sends by a timer at the rate that it believes a line to
//! have. Between two programs of one machine there is no line: the timers are all that it adds, and
//! they halve what goes through. A connection keeps its timer whatever is chosen for it later, so each
//! begins without one, and is given what the system chose when it is seen to come from elsewhere.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use nix::sys::socket::sockopt::TcpCongestion;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socket};
use pingora::protocols::GetSocketDigest;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;

use crate::sendfile;

/// What every kernel has, lets everybody choose, and does not pace.
const UNPACED: &str = "reno";

/// What the system chose, where that sends by a timer.
#[derive(Clone, Debug)]
pub struct Pacing(Option<OsString>);

impl Pacing {
    /// As a new socket has it.
    pub fn of_system() -> Self {
        let fresh = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        let chosen = fresh.and_then(|fresh| getsockopt(&fresh, TcpCongestion));
        Self(chosen.ok().filter(|name| name.as_bytes().starts_with(b"bbr")))
    }

    /// Has connections begin without a timer. Where that is refused they are as the system has them.
    pub fn lift(&self, listener: &TcpListener) {
        if self.0.is_some()
            && let Err(error) = setsockopt(listener, TcpCongestion, &OsString::from(UNPACED))
        {
            tracing::debug!(%error, "connections within this machine are paced");
        }
    }

    /// Gives a new connection back what the system chose, unless its other end is here.
    pub fn settle(&self, stream: &Stream) {
        if let Some(chosen) = &self.0
            && !is_within(stream)
            && let Err(error) = sendfile::set_congestion(stream.as_raw_fd(), chosen)
        {
            tracing::debug!(%error, "a connection from elsewhere is not paced");
        }
    }
}

/// Whether both ends are of this machine.
fn is_within(stream: &Stream) -> bool {
    let Some(ends) = stream.get_socket_digest() else { return false };
    let ip = |end: Option<&SocketAddr>| Some(end?.as_inet()?.ip().to_canonical());
    let Some(peer) = ip(ends.peer_addr()) else { return false };
    peer.is_loopback() || ip(ends.local_addr()) == Some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora::protocols::SocketDigest;

    /// The server's end of a connection over loopback, of which Pingora may know both ends or none; and
    /// a double of its socket.
    async fn accepted(pacing: &Pacing, knows_ends: bool) -> (Stream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        pacing.lift(&listener);
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (_client, accepted) = tokio::join!(client, listener.accept());
        let accepted = accepted.unwrap().0.into_std().unwrap();
        let double = accepted.try_clone().unwrap();
        let mut stream = Stream::from(tokio::net::TcpStream::from_std(accepted).unwrap());
        if knows_ends {
            let ends = SocketDigest::from_raw_fd(stream.as_raw_fd());
            stream.set_socket_digest(ends);
        }
        (stream, double)
    }

    fn algorithm(socket: &impl std::os::fd::AsFd) -> OsString {
        getsockopt(socket, TcpCongestion).unwrap()
    }

    #[tokio::test]
    async fn only_what_comes_from_elsewhere_is_sent_as_the_system_chose() {
        let chosen = algorithm(&TcpListener::bind("127.0.0.1:0").unwrap());
        let pacing = Pacing(Some(chosen.clone()));
        let (near, socket) = accepted(&pacing, true).await;
        pacing.settle(&near);
        assert_eq!(algorithm(&socket), UNPACED);
        let (far, socket) = accepted(&pacing, false).await;
        assert_eq!(algorithm(&socket), UNPACED);
        pacing.settle(&far);
        assert_eq!(algorithm(&socket), chosen);
    }

    #[tokio::test]
    async fn where_nothing_is_paced_nothing_is_changed() {
        let chosen = algorithm(&TcpListener::bind("127.0.0.1:0").unwrap());
        let pacing = Pacing(None);
        let (stream, socket) = accepted(&pacing, false).await;
        assert_eq!(algorithm(&socket), chosen);
        pacing.settle(&stream);
        assert_eq!(algorithm(&socket), chosen);
    }
}
