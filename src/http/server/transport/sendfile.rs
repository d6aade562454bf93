//! The socket of a connection without TLS, through which the kernel sends stored files by itself.
//!
//! hyper keeps the protocol. A body gives it mapped bytes of a stored file ([`Mapped`]) and says so here; when
//! hyper then writes a slice that lies in that mapping, `sendfile` does it: the kernel passes pages on, and no byte
//! is copied. Whatever does not fit (another slice, a short one, a file system that cannot) is written as usual,
//! and the same bytes go out.
//!
//! # Why sendfile, and not only the mapping
//! Both were measured on the daemon, with `benches/run hot` and clients that copy. Writing out of the mapping cost
//! 1.4 to 2 times the CPU time per byte that nginx's sendfile takes, and this takes as much as nginx (0.13 to 0.20
//! CPU-seconds per GB); the throughput is the same or better, since the clients are then what limits. On a node that
//! time belongs to the pods. Below [`SENDFILE_MIN`] a write is cheaper.
//!
//! There is one exception. A client on the same machine that takes whatever it gets at once goes to sleep after each
//! 64 KiB that sendfile hands over, and to wake it costs this side more than a copy. Written to in large pieces it stays
//! awake: on a virtual machine 3.2 instead of 1.8 GB/s, for 0.25 instead of 0.41 CPU-seconds per GB. Among eight such
//! clients one is always awake, and sendfile costs 0.15.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::store::{Mapped, MappedWeak};
use crate::sync::lock;

/// Bytes of the shortest slice that is sent by `sendfile`: to copy a shorter one costs less than a further call to the
/// kernel.
const SENDFILE_MIN: usize = 64 * 1024;

/// The mapped file that the connection's current body is made of, if it is made of one. Clones share it.
///
/// A connection that is idle, or has the last bytes of a body still to write, must not keep the file from being
/// evicted. If the file is evicted, those bytes are written from the mapping that they themselves keep.
#[derive(Clone, Default)]
pub(crate) struct Sendfile(Arc<Mutex<Option<MappedWeak>>>);

impl Sendfile {
    /// Lets the kernel send slices of `mapped` from now on, for a body that keeps the guard.
    pub(crate) fn set(&self, mapped: Option<&Mapped>) -> Option<SendfileGuard> {
        *lock(&self.0) = mapped.map(Mapped::downgrade);
        mapped.map(|_| {
            BODIES.fetch_add(1, Ordering::Relaxed);
            SendfileGuard(())
        })
    }

    fn mapped(&self) -> Option<Mapped> {
        lock(&self.0).as_ref()?.upgrade()
    }

    /// Notes that bytes of the file could not be sent: perhaps it is not what it was.
    fn suspect(&self) {
        if let Some(mapped) = self.mapped() {
            mapped.suspect();
        }
    }

    /// The file that a slice lies in, and its offset there.
    fn find(&self, slice: &[u8]) -> Option<(Mapped, u64)> {
        if slice.len() < SENDFILE_MIN {
            return None;
        }
        let mapped = self.mapped()?;
        let offset = mapped.offset_of(slice)?;
        Some((mapped, offset))
    }
}

/// A TCP connection without TLS.
pub(crate) struct RawSocket {
    stream: TcpStream,
    sendfile: Sendfile,
    /// Whether the socket took all of the last slice at once.
    keeps_up: bool,
}

/// Number of bodies that are being sent out of mapped files.
static BODIES: AtomicUsize = AtomicUsize::new(0);
/// Up to this many bodies at once are copied to a socket that keeps up; above it all are sent by `sendfile`.
const FEW_BODIES_MAX: usize = 2;

/// Counts a body as being sent out of a mapped file until this is dropped.
pub(crate) struct SendfileGuard(());

impl Drop for SendfileGuard {
    fn drop(&mut self) {
        BODIES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RawSocket {
    pub(crate) fn new(stream: TcpStream, sendfile: Sendfile) -> Self {
        Self { stream, sendfile, keeps_up: false }
    }

    /// Writes some of what hyper has: by `sendfile`, by `send`, or by a plain write.
    fn poll_write_parts(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        for (at, part) in parts.iter().enumerate() {
            let Some((mapped, offset)) = self.sendfile.find(part) else { continue };
            if at > 0 {
                // What comes before the slice is sent with the flag that more follows: the head of a response does not
                // travel alone.
                let head = parts[..at].iter().find(|part| !part.is_empty());
                let Some(head) = head else { continue };
                return self.poll_write_io(context, || Ok(send(&self.stream, head, SendFlags::MORE)?));
            }
            let is_copied = self.keeps_up && BODIES.load(Ordering::Relaxed) <= FEW_BODIES_MAX;
            let sent =
                if is_copied { None } else { self.poll_sendfile(context, (&mapped, offset), part.len()) };
            let sent = sent.unwrap_or_else(|| Pin::new(&mut self.stream).poll_write(context, part));
            self.keeps_up = matches!(sent, Poll::Ready(Ok(count)) if count == part.len());
            return sent;
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    /// Writes once the socket is ready, and again if the kernel says that it was not.
    fn poll_write_io(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_io(Interest::WRITABLE, &mut write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Sends a slice of a file by `sendfile`; `None` if the kernel cannot do that with this file.
    fn poll_sendfile(
        &self,
        context: &mut Context<'_>,
        (mapped, start): (&Mapped, u64),
        len: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        let mut is_possible = true;
        let sent = self.poll_write_io(context, || {
            let mut offset = start;
            match rustix::fs::sendfile(&self.stream, mapped.file(), Some(&mut offset), len) {
                // There was more when it was mapped: the file has been truncated.
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => Ok(count),
                Err(Errno::INVAL | Errno::NOSYS) => {
                    is_possible = false;
                    Ok(0)
                }
                Err(error) => Err(error.into()),
            }
        });
        is_possible.then_some(sent)
    }
}

/// Whether a write has failed because of the file: a page of it is gone, or the disk cannot read it.
fn is_of_file(error: &io::Error) -> bool {
    let codes = [Errno::FAULT, Errno::IO].map(Errno::raw_os_error);
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

impl AsyncRead for RawSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for RawSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sendfile = self.sendfile.clone();
        let written = self.poll_write_parts(context, parts);
        if let Poll::Ready(Err(error)) = &written
            && is_of_file(error)
        {
            sendfile.suspect();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
