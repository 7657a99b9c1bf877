//! Connections over loopback go as fast as the machine can.
//!
//! BBR, where that is the system's choice, sends by a timer at the rate that it believes a line to
//! have. Between two programs of one machine there is no line: the timers are all that it adds, and
//! they halve what goes through. A connection keeps its timer whatever is chosen for it later, so each
//! begins without one, and is given what was chosen when it is seen to come from elsewhere.

use std::ffi::OsString;
use std::net::{IpAddr, TcpListener};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use nix::sys::socket::sockopt::TcpCongestion;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socket};

use crate::sendfile;

/// What does not pace. Every kernel has it, and as a rule lets everybody choose it.
const UNPACED: &str = "reno";

/// What was chosen for an address, where that sends by a timer.
#[derive(Debug)]
pub struct Pacing(Option<OsString>);

impl Pacing {
    /// Has a listener's connections begin without a timer, where they can be given it back. One that a
    /// process before this one has lifted is set anew, by what the system chooses now.
    pub fn lift(listener: &TcpListener) -> Self {
        Self::try_lift(listener).unwrap_or_else(|error| {
            tracing::warn!(%error, "congestion control cannot be chosen; connections on this machine may be paced");
            Self(None)
        })
    }

    fn try_lift(listener: &TcpListener) -> nix::Result<Self> {
        let found = getsockopt(listener, TcpCongestion)?;
        let fresh = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let unpaced = OsString::from(UNPACED);
        let chosen =
            if found == unpaced { getsockopt(&fresh, TcpCongestion)? } else { found.clone() };
        if !chosen.as_bytes().starts_with(b"bbr") {
            if found != chosen {
                setsockopt(listener, TcpCongestion, &chosen)?;
            }
            return Ok(Self(None));
        }
        // What an administrator does not allow could be left, and never had again.
        setsockopt(&fresh, TcpCongestion, &unpaced)?;
        setsockopt(&fresh, TcpCongestion, &chosen)?;
        setsockopt(listener, TcpCongestion, &unpaced)?;
        Ok(Self(Some(chosen)))
    }

    /// Gives a new connection back what was chosen, unless both ends are here: `local` is asked for
    /// where `peer` alone does not tell. What its route has chosen for it stays.
    pub fn settle(&self, socket: RawFd, peer: IpAddr, local: impl FnOnce() -> Option<IpAddr>) {
        if let Some(chosen) = &self.0
            && !peer.is_loopback()
            && local() != Some(peer)
            && let Err(error) = sendfile::change_congestion(socket, UNPACED, chosen)
        {
            tracing::debug!(%error, ?chosen, "a connection from elsewhere is sent to by {UNPACED}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn algorithm(socket: &impl std::os::fd::AsFd) -> OsString {
        getsockopt(socket, TcpCongestion).unwrap()
    }

    #[test]
    fn only_what_comes_from_elsewhere_is_sent_as_was_chosen() {
        let listener = listener();
        let chosen = algorithm(&listener);
        setsockopt(&listener, TcpCongestion, &OsString::from(UNPACED)).unwrap();
        // As it would be where that is BBR.
        let pacing = Pacing(Some(chosen.clone()));
        let near = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("192.0.2.1", "192.0.2.1")];
        let far = [("192.0.2.2", "192.0.2.1")];
        for (ends, is_near) in near.map(|e| (e, true)).into_iter().chain(far.map(|e| (e, false))) {
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, _) = listener.accept().unwrap();
            assert_eq!(algorithm(&socket), UNPACED);
            let (peer, local) = (ends.0.parse().unwrap(), ends.1.parse().ok());
            pacing.settle(socket.as_raw_fd(), peer, || local);
            let expected = if is_near { UNPACED.into() } else { chosen.clone() };
            assert_eq!(algorithm(&socket), expected, "{ends:?}");
        }
    }

    #[test]
    fn a_listener_is_lifted_only_from_what_paces() {
        let chosen = algorithm(&listener());
        let is_paced = chosen.as_bytes().starts_with(b"bbr");
        let listener = listener();
        for _ in ["first", "handed over"] {
            let pacing = Pacing::lift(&listener);
            assert_eq!(pacing.0, is_paced.then(|| chosen.clone()));
            let expected = if is_paced { UNPACED.into() } else { chosen.clone() };
            assert_eq!(algorithm(&listener), expected);
            // A process before this one may have lifted it.
            setsockopt(&listener, TcpCongestion, &OsString::from(UNPACED)).unwrap();
        }
    }
}
