//! Chores of this repository that are programs: `cargo xtask layers`, `cargo xtask settings`, `cargo xtask tidy`.
//!
//! Each check is a function from what the repository holds to what is wrong with it, beside its tests; this file
//! reads, calls and prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a chore talks to the person who ran it, not to a log"
)]

mod layers;
mod settings_page;
mod tidy;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::{Workspace, WorkspaceError};

/// Repository chores.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fails when a crate depends against the direction of docs/ARCHITECTURE.md.
    Layers,
    /// Writes docs/SETTINGS.md from crates/*/config.default.toml.
    Settings {
        /// Write nothing; fail when the page is out of date.
        #[arg(long)]
        check: bool,
    },
    /// Fails when a file breaks one of the rules that a program can check.
    Tidy,
}

/// Why a chore did not succeed.
#[derive(Debug, thiserror::Error)]
enum ChoreError {
    /// The repository cannot be read.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// A file of settings is not as the page needs it.
    #[error("{} is not documented as it should be:\n{problems}", path.display())]
    Undocumented { path: PathBuf, problems: String },
    /// The page of settings is not what the files say.
    #[error("{} is out of date; run `cargo xtask settings`", path.display())]
    OutOfDate { path: PathBuf },
    /// Something is against the rules.
    #[error("{found}\n\n{count} against the rules; {advice}")]
    Violations {
        found: String,
        count: usize,
        advice: &'static str,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Layers => check_layers(),
        Chore::Settings { check } => settings(check),
        Chore::Tidy => check_tidy(),
    };
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                eprintln!("  because: {next}");
                cause = next.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn check_layers() -> Result<String, ChoreError> {
    let graph = Workspace::here().graph()?;
    let violations = layers::violations(&graph);
    let advice = "move the code or the dependency; the rules stand in crates/xtask/src/layers.rs";
    verdict(violations, advice)?;
    Ok(format!(
        "{} crates depend in the right direction",
        graph.len()
    ))
}

fn settings(check: bool) -> Result<String, ChoreError> {
    let workspace = Workspace::here();
    let mut services = Vec::new();
    for (name, path, text) in workspace.default_settings()? {
        let sections = settings_page::parse(&text).map_err(|problems| {
            let problems = problems.join("\n");
            ChoreError::Undocumented { path, problems }
        })?;
        services.push((name, sections));
    }
    let page = settings_page::render(&services);
    let path = workspace.path("docs/SETTINGS.md");
    let current = workspace.read_if_there(&path)?;
    let shown = path.display().to_string();
    match (current.as_deref() == Some(page.as_str()), check) {
        (true, _) => Ok(format!("{shown} is up to date")),
        (false, true) => Err(ChoreError::OutOfDate { path }),
        (false, false) => {
            workspace.write(&path, &page)?;
            Ok(format!("wrote {shown}"))
        }
    }
}

fn check_tidy() -> Result<String, ChoreError> {
    let workspace = Workspace::here();
    let sources = workspace.sources()?;
    let mut violations: Vec<String> = Vec::new();
    for (path, text) in &sources {
        violations.extend(tidy::source(path, text));
    }
    if let Some(page) = workspace.read_if_there(&workspace.path("docs/ARCHITECTURE.md"))? {
        let crates: Vec<String> = workspace.crates()?;
        violations.extend(tidy::architecture(&page, &crates));
    }
    if let Some(page) = workspace.read_if_there(&workspace.path("docs/DEPENDENCIES.md"))? {
        let manifest = workspace.read(&workspace.path("Cargo.toml"))?;
        violations.extend(tidy::dependencies(&page, &manifest));
    }
    verdict(
        violations,
        "docs and crates/xtask/src/tidy.rs say why each rule is there",
    )?;
    Ok(format!("{} source files are tidy", sources.len()))
}

fn verdict(violations: Vec<String>, advice: &'static str) -> Result<(), ChoreError> {
    if violations.is_empty() {
        return Ok(());
    }
    Err(ChoreError::Violations {
        count: violations.len(),
        found: violations.join("\n"),
        advice,
    })
}
