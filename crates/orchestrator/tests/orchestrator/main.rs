//! Orchestrators against a real broker. Workers and the registry are other services: tasks are put into the log as an admitting
//! orchestrator does it, and taken out of the work queue as a worker does.

#![allow(clippy::unwrap_used, reason = "a failed step of a test fails the test")]
// What was measured, for whoever runs it by hand; what a test spawns ends with it.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

mod aged;
mod audit;
mod backlog;
mod dispatch;
mod lost;
mod support;
mod waits;
