//! Faults at random moments of a whole platform, and a proof of what held.
//!
//! A run starts real processes: a broker of three servers, every service several times. Callers with different manners use it while a
//! [plan](plan), which follows from a seed, kills, stops and cuts off whatever it is made of. Everything that callers, the broker's subjects
//! and the plan's executor see is a [history](history); the [checker](checker), a pure function, proves from it and from what the log and the
//! object store hold at the end that nothing was lost, doubled, forgotten or starved. docs/RELIABILITY.md says how to read it.

// What runs here are tests: the thread that lets clients be joined has nobody to return an error to.
#![allow(clippy::missing_panics_doc)]

mod brokers;
mod calm;
pub mod checker;
mod clients;
mod cluster;
mod error;
mod evidence;
pub mod history;
mod link;
pub mod plan;
mod random;
mod recorder;
mod report;
mod run;
mod settings;

pub use error::ChaosError;
pub use report::report;
pub use run::{EVIDENCE, HISTORY, Outcome, PLAN, run};
