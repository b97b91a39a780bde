//! The audit files as an auditor has them: a folder, and `inkstone audit`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{LIMIT, Platform, binary, printed};
use serde_json::Value;

use crate::command_line::Up;
use crate::{long_picture, short_picture};

pub(crate) const SOON: (&str, &str) = ("INKSTONE_ORCHESTRATOR__AUDIT__EXPORT_EVERY", "1s");

/// Runs `inkstone audit`; what it printed, or its complaint.
fn audit(arguments: &[&str], files: &Path) -> Result<String, String> {
    let mut command = Command::new(binary("inkstone"));
    command.arg("audit").args(arguments);
    printed(command.arg("--files").arg(files))
}

/// All audit files, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let listed = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut files: Vec<PathBuf> = listed(folder).iter().flat_map(|day| listed(day)).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "jsonl"));
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    files
}

/// How often each event of each task is recorded in the files.
pub(crate) fn recorded(folder: &Path) -> BTreeMap<(String, String), u32> {
    let mut count = BTreeMap::new();
    for file in files(folder) {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let text = |field: &str| record[field].as_str().map(str::to_owned);
            if let (Some(task), Some(event)) = (text("task"), text("event")) {
                *count.entry((task, event)).or_default() += 1;
            }
        }
    }
    count
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Submits a picture until it is accepted: an orchestrator that has just been killed refuses it, or takes it without saying so.
async fn accepted(platform: &Platform, key: &str) -> String {
    let mut picture = short_picture();
    picture.idempotency_key = key.to_owned();
    let deadline = Instant::now() + LIMIT;
    loop {
        match platform.submit(picture.clone()).await {
            Ok(task) => return task.id,
            Err(status) => assert!(Instant::now() < deadline, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_submission_and_end_is_audited_once_over_kills_of_the_orchestrator() {
    const ROUNDS: usize = 3;
    let mut platform = Platform::start_with(&[SOON]).await;
    let folder = platform.objects().join("audit");
    let mut tasks = vec![platform.submit(long_picture()).await.unwrap().id];
    for round in 0..ROUNDS {
        for number in 0..10 {
            tasks.push(accepted(&platform, &format!("{round}-{number}")).await);
        }
        // In the middle of it: some of them are in the chain, some files may be under way.
        tokio::time::sleep(Duration::from_millis(400 * round as u64)).await;
        platform.kill("orchestrator");
        platform.run("orchestrator");
        platform.wait_ready("orchestrator");
        platform.wait_ready("gateway");
    }
    for task in &tasks {
        platform.wait_ended(task).await;
    }
    until("all is recorded", || {
        recorded(&folder).len() >= 2 * tasks.len()
    })
    .await;
    let mut expected = BTreeMap::new();
    for task in &tasks {
        expected.insert((task.clone(), "submitted".to_owned()), 1);
        expected.insert((task.clone(), "done".to_owned()), 1);
    }
    assert_eq!(recorded(&folder), expected);
    let good = audit(&["verify"], &folder).unwrap();
    assert!(
        good.contains(&format!("good up to {}:", 2 * tasks.len())),
        "{good}"
    );
}

/// A copy of the files to tamper with; those that `up` wrote stay.
fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files(folder) {
        let name = file.file_name().unwrap();
        std::fs::copy(&file, copy.path().join(name)).unwrap();
    }
    copy
}

/// Verifies a copy after `change` did something to its files; the complaint.
fn tampered(folder: &Path, change: impl FnOnce(&[PathBuf])) -> String {
    let copy = copy_of(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(copy.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    change(&files);
    audit(&["verify"], copy.path()).unwrap_err()
}

fn name(file: &Path) -> String {
    file.file_name().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_run_are_good_and_what_is_done_to_them_is_found() {
    let mut up = Up::start_with(&[SOON]);
    let folder = up.data.path().join("objects/audit");
    let out = tempfile::tempdir().unwrap();
    let picture = out.path().join("a.png").display().to_string();
    for count in 1..=3 {
        up.ok(&["generate", "a cat", "--steps", "2", "-o", &picture]);
        until("another file", || files(&folder).len() >= count).await;
    }
    assert!(up.interrupt().success());
    let all = files(&folder);
    let good = audit(&["verify"], &folder).unwrap();
    let head = good
        .split_whitespace()
        .find(|word| word.contains(':'))
        .unwrap()
        .trim_end_matches(',')
        .to_owned();
    audit(&["verify", "--head", &head], &folder).unwrap();
    // Where no folder is named, these are the files that are meant.
    let same = up.ok(&["audit", "verify", "--head", &head]);
    assert!(same.contains(&folder.display().to_string()), "{same}");
    assert!(same.contains(&format!("good up to {head},")), "{same}");

    let second = name(&all[1]);
    let before: u64 = second[..20].parse::<u64>().unwrap() - 1;
    let up_to = format!("good up to record {before}");
    // A byte of the prompt's digest.
    let message = tampered(&folder, |files| {
        let mut data = std::fs::read(&files[1]).unwrap();
        let at = data.len() / 4;
        data[at] ^= 1;
        std::fs::write(&files[1], data).unwrap();
    });
    assert!(message.contains(&second), "{message}");
    let message = tampered(&folder, |files| {
        let text = std::fs::read_to_string(&files[1]).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        std::fs::write(&files[1], rest).unwrap();
    });
    assert!(
        message.contains(&second) && message.contains(&up_to),
        "{message}"
    );
    let message = tampered(&folder, |files| std::fs::remove_file(&files[1]).unwrap());
    let third = name(&all[2]);
    assert!(
        message.contains(&third) && message.contains(&up_to),
        "{message}"
    );
    assert!(message.contains("missing"), "{message}");
    let message = tampered(&folder, |files| std::fs::remove_file(&files[0]).unwrap());
    assert!(
        message.contains(&second) && message.contains("record 0"),
        "{message}"
    );

    // The last file's absence shows against the end that is known from elsewhere.
    let copy = copy_of(&folder);
    std::fs::remove_file(copy.path().join(name(all.last().unwrap()))).unwrap();
    audit(&["verify"], copy.path()).unwrap();
    let message = audit(&["verify", "--head", &head], copy.path()).unwrap_err();
    assert!(message.contains(&head), "{message}");

    let (task, _) = recorded(&folder).into_keys().next().unwrap();
    let shown = audit(&["show", &task], &folder).unwrap();
    assert!(
        shown.contains("submitted") && shown.contains("succeeded"),
        "{shown}"
    );
    assert!(!shown.contains("a cat"), "{shown}");
}
