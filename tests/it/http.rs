//! The daemon as an HTTP server: connections, clients that mean no good, and what it says when it refuses.

mod doors;
mod heads;
mod hostile;
mod tls;
mod words;
