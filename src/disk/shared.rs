//! The folder between two processes. Only one owns it, by its lock; while it hands over to its
//! successor, both are at work on it for as long as the old one's transfers take.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::fills::is_lost_note;
use super::{Disk, OpenError};

/// How long a start waits for another process to leave the folder.
const LEFT_WITHIN: Duration = Duration::from_secs(3);

/// How long one process waits for the other to let go of hosted records: each holds them for one
/// change.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// The lock of a folder: whoever has it open has it, in whatever process.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    /// Whether it was handed over, so that another process may be at work here.
    is_handed: bool,
}

impl Lock {
    pub(super) fn take(
        root: &Path,
        handed: Option<(OwnedFd, (u64, u64))>,
    ) -> Result<Self, OpenError> {
        let unusable = |e| OpenError::Unusable(root.to_owned(), e);
        let path = root.join("lock");
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        if let Some((lock, id)) = handed
            && fs::metadata(&path).is_ok_and(|about| (about.dev(), about.ino()) == id)
        {
            return Ok(Self { file: File::from(lock), is_handed: true });
        }
        let file = open().map_err(unusable)?;
        // One that has just been told to stop hears its connections for a second more.
        match wait(LEFT_WITHIN, || file.try_lock()) {
            Ok(()) => Ok(Self { file, is_handed: false }),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(OpenError::InUse(root.to_owned())),
            Err(e) => Err(unusable(e)),
        }
    }
}

/// Hosted records, while this process may read or change them and the other one may not.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, and let go of when it is closed")] File);

impl Disk {
    /// Whether another process may be at work on the folder.
    pub fn is_handed(&self) -> bool {
        self.lock.is_handed
    }

    /// The lock's descriptor, with device and inode of its file, to be handed over.
    ///
    /// # Errors
    /// What the file system says.
    pub fn lock(&self) -> io::Result<(RawFd, (u64, u64))> {
        let about = self.lock.file.metadata()?;
        Ok((self.lock.file.as_raw_fd(), (about.dev(), about.ino())))
    }

    /// Waits for the other process to let go of hosted records.
    ///
    /// # Errors
    /// `TimedOut`, or what the file system says.
    pub fn turn(&self, exclusive: bool) -> io::Result<Turn> {
        let path = self.root.join("hosted.lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        wait(TURN_WITHIN, || if exclusive { file.try_lock() } else { file.try_lock_shared() })?;
        Ok(Turn(file))
    }

    /// Removes temporary files that a crash has left; not those of a process that is still there.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("fills"))? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_left = match name.to_str().and_then(|name| name.strip_prefix("tmp-")) {
                Some(rest) => !(self.lock.is_handed && is_anothers(rest)),
                None => is_lost_note(&path),
            };
            if is_left {
                super::found(fs::remove_file(path))?;
            }
        }
        Ok(())
    }
}

/// Locks a file that another process may hold for a moment.
///
/// # Errors
/// `TimedOut`, or what the file system says.
pub fn lock_soon(file: &File) -> io::Result<()> {
    wait(TURN_WITHIN, || file.try_lock())
}

fn wait(within: Duration, take: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match take() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) if began.elapsed() > within => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}

/// Whether a temporary file, by what stands behind `tmp-`, is of another process that lives.
fn is_anothers(rest: &str) -> bool {
    let id = rest.split('-').next().and_then(|id| id.parse::<i32>().ok());
    let Some(id) = id.filter(|id| u32::try_from(*id).is_ok_and(|id| id != std::process::id()))
    else {
        return false;
    };
    // What may not be signalled is there all the same.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), None) != Err(nix::errno::Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_its_lock_can_be_handed_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = Disk::open(folder.path()).unwrap();
        assert!(matches!(Disk::open(folder.path()), Err(OpenError::InUse(_))));
        let (_, id) = first.lock().unwrap();
        let copy = || OwnedFd::from(first.lock.file.try_clone().unwrap());
        let wrong = Disk::open_with(folder.path(), Some((copy(), (id.0, id.1 + 1))));
        assert!(matches!(wrong, Err(OpenError::InUse(_))), "of another folder");
        // A download and a temporary file of the process before, which is ours here.
        let second = Disk::open_with(folder.path(), Some((copy(), id))).unwrap();
        drop(first);
        assert!(matches!(Disk::open(folder.path()), Err(OpenError::InUse(_))), "still owned");
        drop(second);
        assert!(Disk::open(folder.path()).is_ok());
    }

    #[test]
    fn temporary_files_of_a_living_process_stay_while_it_hands_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = Disk::open(folder.path()).unwrap();
        let fills = folder.path().join("fills");
        let names = [format!("tmp-{}-1", std::process::id()), "tmp-1-1".into(), "tmp-x".into()];
        for name in &names {
            fs::write(fills.join(name), "").unwrap();
        }
        let (_, id) = first.lock().unwrap();
        let lock = OwnedFd::from(first.lock.file.try_clone().unwrap());
        let _second = Disk::open_with(folder.path(), Some((lock, id))).unwrap();
        let left = || names.each_ref().map(|name| fills.join(name).exists());
        assert_eq!(left(), [false, true, false]);
    }

    #[test]
    fn hosted_records_are_for_one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let reading = (disk.turn(false).unwrap(), disk.turn(false).unwrap());
        let other = File::open(folder.path().join("hosted.lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(reading);
        let _changing = disk.turn(true).unwrap();
        assert!(matches!(other.try_lock_shared(), Err(TryLockError::WouldBlock)));
    }
}
