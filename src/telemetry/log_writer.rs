//! Writes log lines to standard error, on a thread of its own.
//!
//! Code that logs never waits: while the reader of the log stands still, lines wait in a bounded queue, and beyond that they
//! are dropped and counted, while requests go on. A write that blocks could otherwise stop every worker.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

/// The number of lines that may wait to be written. Each has some hundred bytes at most.
const WAITING_MAX: usize = 8192;
/// How long the end of the process waits for lines that are not yet written.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// Interval at which a full queue is tried again, at the end of the process.
const FLUSH_PAUSE: Duration = Duration::from_millis(1);

/// Makes a [`Line`] for every event, and queues it. Clones share the queue.
#[derive(Clone)]
pub(super) struct LogWriter {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// Asks for everything before this to be written. The sender is dropped when that is done.
    Flush(SyncSender<()>),
}

/// One event that is being formatted. It is queued when it is dropped.
pub(super) struct Line<'a> {
    writer: &'a LogWriter,
    text: Vec<u8>,
}

/// Waits, when it is dropped at the end of the process, until what was logged is written, for a second at most.
#[must_use = "lines that wait are lost when the process ends without it"]
pub struct Flush(LogWriter);

impl LogWriter {
    /// Starts the thread that writes to `out`.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        thread::Builder::new().name("log".to_owned()).spawn(move || write(out, &lines, &counted))?;
        Ok(Self { queue, dropped })
    }

    pub(super) fn flush_at_end(&self) -> Flush {
        Flush(self.clone())
    }
}

fn write(mut out: impl Write, lines: &Receiver<Message>, dropped: &AtomicU64) {
    for message in lines {
        // A log that cannot be written has nowhere to say so.
        match message {
            Message::Line(text) => drop(out.write_all(&text)),
            Message::Flush(done) => {
                drop(out.flush());
                drop(done);
            }
        }
        let dropped = dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            // There is room for this line: one was just taken out.
            warn!(dropped, "lines of the log were dropped, because it is read too slowly");
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { writer: self, text: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        if self.writer.queue.try_send(Message::Line(text)).is_err() {
            self.writer.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_MAX;
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(again)) = self.0.queue.try_send(message) {
            if Instant::now() > deadline {
                return;
            }
            message = again;
            thread::sleep(FLUSH_PAUSE);
        }
        // The other end is dropped when it is done: that is the answer.
        let _: Result<(), RecvTimeoutError> = written.recv_timeout(FLUSH_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Takes nothing until it is told to, and passes on what it was given.
    struct Reader {
        may_read: Receiver<()>,
        read: Sender<String>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.may_read.recv();
            self.read.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_time() {
        let (go, may_read) = channel();
        let (read, seen) = channel();
        let lines = LogWriter::start(Reader { may_read, read }).unwrap();
        for number in 0..2 * WAITING_MAX {
            write!(lines.make_writer(), "line {number}").unwrap();
        }
        assert!(lines.dropped.load(Ordering::Relaxed) >= WAITING_MAX as u64 - 1);
        drop(go);
        drop(lines.flush_at_end());
        assert_eq!(lines.dropped.load(Ordering::Relaxed), 0, "it is said, once");
        let seen: Vec<_> = seen.try_iter().collect();
        assert_eq!((&*seen[0], &*seen[WAITING_MAX / 2]), ("line 0", &*format!("line {}", WAITING_MAX / 2)));
    }
}
