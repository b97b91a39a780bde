//! `inkstone audit`: the audit files, without any service.

use std::path::{Path, PathBuf};

use ::audit::{Chain, Head, Line, file};

use crate::cli::AuditCommand;
use crate::error::CliError;
use crate::out::say;

pub(crate) fn run(command: &AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Verify { files, after, head } => verify(files, after.as_ref(), head.as_ref()),
        AuditCommand::Show { task, files, after } => show(files, after.as_ref(), task),
    }
}

fn verify(files: &Path, after: Option<&Head>, head: Option<&Head>) -> Result<(), CliError> {
    let mut met = head.is_none_or(|head| after == Some(head));
    let (count, end) = read(files, after, |line| {
        met |= head.is_some_and(|head| head.sequence == line.sequence && head.hash == line.hash);
    })?;
    match head {
        Some(head) if !met => {
            return Err(CliError::AuditTail {
                end: end.to_string(),
                head: head.to_string(),
            });
        }
        Some(head) => say!("good up to {end}, in {count} files; {head} is among them"),
        None => {
            say!("good up to {end}, in {count} files");
            say!("whether records are missing behind it was not checked: give --head");
        }
    }
    Ok(())
}

fn show(files: &Path, after: Option<&Head>, task: &str) -> Result<(), CliError> {
    let mut shown = Vec::new();
    read(files, after, |line| {
        if line.content.task == task {
            shown.push(line);
        }
    })?;
    if shown.is_empty() {
        let task = task.to_owned();
        return Err(CliError::NotAudited { task });
    }
    for line in shown {
        let text = serde_json::to_string_pretty(&line);
        say!("{}", text.map_err(|_| CliError::Answer("a record"))?);
    }
    Ok(())
}

/// Checks all files as one chain; says how many there are and where it ends.
fn read(
    files: &Path,
    after: Option<&Head>,
    mut see: impl FnMut(Line),
) -> Result<(usize, Head), CliError> {
    let paths = listed(files)?;
    if paths.is_empty() {
        let path = files.to_owned();
        return Err(CliError::NoAuditFiles { path });
    }
    let mut chain = Chain::after(after.cloned().unwrap_or_else(Head::genesis));
    for path in &paths {
        let data = std::fs::read(path).map_err(CliError::file("read", path))?;
        let checked = file::check(&mut chain, &data, &mut see);
        checked.map_err(|source| CliError::Audit {
            path: path.clone(),
            good: chain.head().sequence,
            source,
        })?;
    }
    Ok((paths.len(), chain.head().clone()))
}

/// All audit files below a folder, in the order of their records.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(CliError::file("read", &folder))?;
        for entry in entries {
            let path = entry.map_err(CliError::file("read", &folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "jsonl")
            {
                found.push(path);
            }
        }
    }
    // A name begins with its first record's number, in twenty digits.
    found.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(found)
}
