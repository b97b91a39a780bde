//! The audit chain: who asked for what, under which key, and what left the platform.
//!
//! A record is one line of JSON. It names the hash of the record before it, and ends with its own hash, which covers every byte in
//! front of it. So a record that was changed, removed, added or moved breaks the chain, and whoever holds the files can see
//! that without us. A chain that was cut off at its end is still a good chain: that shows only against a [`Head`] from
//! elsewhere. What was lost before it could be recorded is a record, too ([`Event::Gap`]): a chain that has one is good, and not whole.
//!
//! Nothing here reads or writes: [`Chain`] makes lines, [`file`](crate::file) makes and checks files of them.

mod chain;
pub mod file;
mod record;

pub use chain::{Chain, Head, Line, LineError};
pub use record::{Content, Event, Picture, Request, Task};
