//! `inkstone audit`: the audit files, without any service.

use std::path::{Path, PathBuf};

use ::audit::{Chain, Event, Head, Line, file};

use crate::cli::AuditCommand;
use crate::error::CliError;
use crate::out::say;
use crate::place::Place;

/// Gaps that are told one by one.
const MOST_TOLD: usize = 20;
/// Where a platform on this machine keeps its files, in its data folder.
const IN_DATA: &str = "objects/audit";

pub(crate) fn run(data: &Path, command: &AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Verify {
            files,
            after,
            head,
            known_gaps,
        } => {
            let folder = folder(data, files.as_deref())?;
            if files.is_none() {
                say!("the files in {}:", folder.display());
            }
            verify(&folder, after.as_ref(), head.as_ref(), *known_gaps)
        }
        AuditCommand::Show { task, files, after } => {
            show(&folder(data, files.as_deref())?, after.as_ref(), task)
        }
    }
}

/// The folder that was named, else that of the platform whose data this is, if it has files by now.
fn folder(data: &Path, named: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let place = Place::at(data);
    let path = place.join(IN_DATA);
    let is_there = path.try_exists().map_err(CliError::file("read", &path))?;
    if is_there && !listed(&path)?.is_empty() {
        return Ok(path);
    }
    if !place.join("nats").is_dir() {
        let data = place.folder().to_owned();
        return Err(CliError::NoData { data });
    }
    // As the platform reads them, if it is started from here.
    let settings: orchestrator::Settings = settings::load(None, &[])?;
    let (enabled, every) = (settings.audit.enabled, settings.audit.export_every);
    Err(CliError::NoAuditFilesYet {
        path,
        every: enabled.then_some(every.duration()),
    })
}

fn verify(
    files: &Path,
    after: Option<&Head>,
    head: Option<&Head>,
    known: usize,
) -> Result<(), CliError> {
    let mut met = head.is_none_or(|head| after == Some(head));
    let mut gaps = Vec::new();
    let (count, end) = read(files, after, |line| {
        met |= head.is_some_and(|head| head.sequence == line.sequence && head.hash == line.hash);
        gaps.extend(gap(&line));
    })?;
    if let Some(head) = head.filter(|_| !met) {
        return Err(CliError::AuditTail {
            end: end.to_string(),
            head: head.to_string(),
        });
    }
    for gap in gaps.iter().take(MOST_TOLD) {
        say!("{gap}");
    }
    let number = gaps.len();
    if number > MOST_TOLD {
        say!("… and {} gaps more", number - MOST_TOLD);
    }
    if let Some(first) = gaps.into_iter().next().filter(|_| number > known) {
        return Err(CliError::AuditGaps {
            end: end.to_string(),
            count,
            number,
            known,
            first,
        });
    }
    let known = match number {
        0 => String::new(),
        _ => format!(", and not whole: {number} gaps that are known"),
    };
    match head {
        Some(head) => say!("good up to {end}, in {count} files; {head} is among them{known}"),
        None => {
            say!("good up to {end}, in {count} files{known}");
            say!("whether records are missing behind it was not checked: give --head");
        }
    }
    Ok(())
}

/// What a record says of what was lost before it could be recorded.
fn gap(line: &Line) -> Option<String> {
    let Event::Gap { from, to, why } = &line.content.event else {
        return None;
    };
    let (sequence, recorded) = (line.sequence, &line.content.recorded);
    let lost = match why == Event::ANEW {
        true => format!(
            "the task log was made anew: what the one before had from place {from} on was not recorded, and of the new one nothing up to place {to}"
        ),
        false => format!(
            "places {from} to {to} of the task log were removed before they were recorded ({why})"
        ),
    };
    Some(format!(
        "record {sequence}: {lost}, as was found at {recorded}"
    ))
}

fn show(files: &Path, after: Option<&Head>, task: &str) -> Result<(), CliError> {
    let (mut shown, mut gaps) = (Vec::new(), 0_usize);
    read(files, after, |line| {
        gaps += usize::from(gap(&line).is_some());
        if line.content.task == task {
            shown.push(line);
        }
    })?;
    if shown.is_empty() {
        let task = task.to_owned();
        return Err(match gaps {
            0 => CliError::NotAudited { task },
            _ => CliError::PerhapsNotAudited { task, gaps },
        });
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

#[cfg(test)]
mod tests {
    use ::audit::Content;

    use super::*;

    fn gap_of(from: u64, to: u64, why: &str) -> Event {
        let why = why.to_owned();
        Event::Gap { from, to, why }
    }

    fn content(source: u64, event: Event) -> Content {
        let task = match event {
            Event::Gap { .. } => "",
            _ => "t-1",
        };
        Content {
            recorded: "2026-01-02T03:04:05Z".to_owned(),
            source,
            log: String::new(),
            tenant: String::new(),
            task: task.to_owned(),
            event,
        }
    }

    /// The file of a chain of these, and its end.
    fn chain_of(contents: impl IntoIterator<Item = Content>) -> (tempfile::TempDir, Head) {
        let mut chain = Chain::after(Head::genesis());
        let mut file = file::FileWriter::after(Head::genesis());
        for content in contents {
            file.line(&chain.append(content).unwrap()).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0-1.jsonl");
        std::fs::write(path, file.finish().unwrap()).unwrap();
        (folder, chain.head().clone())
    }

    /// The same, of one with so many gaps.
    fn with_gaps(gaps: u64) -> (tempfile::TempDir, Head) {
        let sha256 = "ab".to_owned();
        let first = content(3, Event::Unreadable { sha256 });
        let gap = |number| {
            let (from, to) = (10 * number, 10 * number + 3);
            content(to, gap_of(from, to, "removed"))
        };
        chain_of([first].into_iter().chain((1..=gaps).map(gap)))
    }

    #[test]
    fn a_chain_with_a_gap_is_not_good_unless_the_gap_is_known() {
        let (whole, end) = with_gaps(0);
        verify(whole.path(), None, Some(&end), 0).unwrap();
        let (files, end) = with_gaps(2);
        for known in [0, 1] {
            let error = verify(files.path(), None, Some(&end), known).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("not whole"), "{error}");
            assert!(error.contains("places 10 to 13"), "{error}");
            assert!(error.contains(&end.to_string()), "{error}");
        }
        verify(files.path(), None, Some(&end), 2).unwrap();
    }

    #[test]
    fn that_the_log_was_made_anew_is_a_gap_and_told_as_what_it_is() {
        let (files, end) = chain_of([
            content(
                3,
                Event::Unreadable {
                    sha256: "ab".to_owned(),
                },
            ),
            content(0, gap_of(4, 0, Event::ANEW)),
        ]);
        let error = verify(files.path(), None, Some(&end), 0).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("made anew"), "{error}");
        assert!(error.contains("from place 4 on"), "{error}");
        verify(files.path(), None, Some(&end), 1).unwrap();
    }

    #[test]
    fn who_names_no_folder_has_the_datas_files_checked_or_hears_when_they_come() {
        let verified = |data: &Path| {
            let command = AuditCommand::Verify {
                files: None,
                after: None,
                head: None,
                known_gaps: 0,
            };
            run(data, &command).map_err(|error| error.to_string())
        };
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        let said = verified(&data).unwrap_err();
        assert!(
            said.contains("--data") && said.contains("--files"),
            "{said}"
        );
        // A platform ran there, and not for long enough.
        std::fs::create_dir_all(data.join("nats")).unwrap();
        let said = verified(&data).unwrap_err();
        assert!(said.contains("within 5 min"), "{said}");
        let folder = data.join("objects/audit/2026-01-02");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(verified(&data).unwrap_err(), said);
        let (files, _) = with_gaps(0);
        std::fs::copy(files.path().join("0-1.jsonl"), folder.join("0-1.jsonl")).unwrap();
        verified(&data).unwrap();
        let show = AuditCommand::Show {
            task: "t-1".to_owned(),
            files: None,
            after: None,
        };
        run(&data, &show).unwrap();
    }

    #[test]
    fn that_nothing_is_recorded_of_a_task_is_not_certain_where_there_are_gaps() {
        let (whole, _) = with_gaps(0);
        let (gaps, _) = with_gaps(1);
        for files in [&whole, &gaps] {
            show(files.path(), None, "t-1").unwrap();
        }
        let said = |files: &tempfile::TempDir| {
            let error = show(files.path(), None, "t-2").unwrap_err();
            error.to_string()
        };
        assert!(!said(&whole).contains("gap"), "{}", said(&whole));
        assert!(said(&gaps).contains("1 gaps"), "{}", said(&gaps));
    }
}
