//! Where each kind of object lies.

use std::fmt;
use std::time::SystemTime;

use contract::{TaskId, TenantId};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Where files lie that tenants have sent.
pub(crate) const INPUTS: &str = "inputs";
/// Where pictures lie.
pub(crate) const IMAGES: &str = "images";
/// Where checkpoints lie.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Where models' files lie.
const ARTIFACTS: &str = "artifacts";
/// How keys begin that the store is probed with.
const PROBE: &str = "probe-";

/// How a minute names a folder: ISO 8601, basic format, UTC.
const MINUTE: &str = "%Y%m%dT%H%M";
/// How many of a task id's last digits named the folder of its pictures before.
const DIGITS_BEFORE: usize = 2;
/// How many digits of a picture's SHA-256 stand in its key.
const PICTURE_DIGITS: usize = 16;

/// The key of an object. Made only by the functions here, so that no part of it comes unchecked from outside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// Picture `index` of a task that was `begun` first at that time; `sha256` is its file's, as [`sha256_hex`](crate::sha256_hex) gives it, and
    /// `extension` that of its format.
    ///
    /// Two workers may draw a task, and where they are not of one kind their bytes differ: neither writes over what the other's end names.
    ///
    /// Those that were begun in the same minute share a folder: who writes now writes where others do, so that one flush of it is good for all. Keys
    /// were `images/<task>/<index>.png` once, and `images/<last two digits of the task's id>/<task>-<index>.png` after that, with the digest and without:
    /// they stand in the ends of tasks, and [`stored`](Self::stored) takes them.
    pub fn image(
        task: TaskId,
        begun: SystemTime,
        index: u32,
        sha256: &str,
        extension: &'static str,
    ) -> Self {
        let folder = minute(begun);
        let digest: String = sha256.chars().take(PICTURE_DIGITS).collect();
        // After a dot: all before the last hyphen is the task, as it was before.
        Self(format!(
            "{IMAGES}/{folder}/{task}-{index}.{digest}.{extension}"
        ))
    }

    /// A new place for a task's engine snapshots after `step` steps, as its `attempt`-th attempt had them: no two are the same.
    ///
    /// An attempt that was handed back does not count, so that its number comes again; and a worker that was taken for dead removes what it has
    /// stored. Keys ended with the step once, and [`stored`](Self::stored) takes them.
    pub fn checkpoint(task: TaskId, attempt: u32, step: u32) -> Self {
        let unique = TaskId::random();
        Self(format!("{CHECKPOINTS}/{task}/{attempt}-{step}-{unique}"))
    }

    /// A model's file by its SHA-256 in lower-case hex; `None` when it is not one.
    pub fn artifact(sha256: &str) -> Option<Self> {
        is_sha256(sha256).then(|| Self(format!("{ARTIFACTS}/{sha256}")))
    }

    /// A file that a tenant has sent, by its SHA-256 in lower-case hex; `None` when it is not one.
    pub fn input(tenant: &TenantId, sha256: &str) -> Option<Self> {
        let key = || Self(format!("{INPUTS}/{tenant}/{sha256}"));
        is_sha256(sha256).then(key)
    }

    /// A key that names a file which `tenant` has sent; `None` for everything else, another tenant's files above all.
    pub fn input_of(tenant: &TenantId, text: &str) -> Option<Self> {
        let (_, sha256) = text.rsplit_once('/')?;
        Self::input(tenant, sha256).filter(|key| key.0 == text)
    }

    /// A key that someone else made and stored, such as the one in a task's end. `None` when it is not of a kind
    /// that this module makes.
    pub fn stored(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/.-".contains(&b);
        let (kind, _) = text.split_once('/')?;
        let well = [IMAGES, CHECKPOINTS, ARTIFACTS, INPUTS].contains(&kind)
            && text.bytes().all(plain)
            && !text.contains("..");
        well.then(|| Self(text.to_owned()))
    }

    /// A file of audit records of one day, `YYYY-MM-DD`, by the numbers of its first and last record; `None` when that is no day.
    pub fn audit(day: &str, first: u64, last: u64) -> Option<Self> {
        let shaped = day.len() == 10
            && day.bytes().enumerate().all(|(place, b)| match place {
                4 | 7 => b == b'-',
                _ => b.is_ascii_digit(),
            });
        // Twenty digits hold every number, so that the order of the names is that of the records.
        shaped.then(|| Self(format!("audit/{day}/{first:020}-{last:020}.jsonl")))
    }

    /// The task whose picture or checkpoint this is, whenever it was stored; `None` for what is neither.
    pub(crate) fn task(&self) -> Option<TaskId> {
        let (kind, rest) = self.0.split_once('/')?;
        let (folder, name) = rest.split_once('/')?;
        if ![IMAGES, CHECKPOINTS].contains(&kind) {
            return None;
        }
        if let Ok(task) = folder.parse() {
            return Some(task);
        }
        let (task, _) = name.rsplit_once('-')?;
        if !is_minute(folder) && folder_before(task) != folder {
            return None;
        }
        task.parse().ok()
    }

    pub(crate) fn probe() -> Self {
        // Probes of different processes must not meet.
        Self(format!("{PROBE}{}", TaskId::random()))
    }

    /// The key of a probe, this process's or another's; `None` for everything else.
    pub(crate) fn of_probe(text: &str) -> Option<Self> {
        let id = text.strip_prefix(PROBE)?;
        let made = id.parse::<TaskId>().is_ok();
        made.then(|| Self(text.to_owned()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The folder for the pictures of tasks that were begun then. A time that no calendar has is taken for its beginning.
fn minute(begun: SystemTime) -> String {
    let begun = Timestamp::try_from(begun).unwrap_or_default();
    begun.to_zoned(TimeZone::UTC).strftime(MINUTE).to_string()
}

fn is_minute(folder: &str) -> bool {
    folder.len() == "20261128T0449".len()
        && folder.bytes().enumerate().all(|(place, b)| match place {
            8 => b == b'T',
            _ => b.is_ascii_digit(),
        })
}

/// The folder for the pictures of a task as it was before. Ids begin with a time and end in chance.
fn folder_before(task: &str) -> &str {
    let start = task.len().saturating_sub(DIGITS_BEFORE);
    task.get(start..).unwrap_or_default()
}

fn is_sha256(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 64 && text.bytes().all(hex)
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// 2026-11-28 04:49:07.
    const BEGUN: u64 = 1_795_841_347;

    fn image(task: TaskId, index: u32) -> Key {
        image_of(BEGUN, task, index)
    }

    fn image_of(begun: u64, task: TaskId, index: u32) -> Key {
        let begun = UNIX_EPOCH + Duration::from_secs(begun);
        Key::image(task, begun, index, &"0123456789abcdef".repeat(4), "png")
    }

    #[test]
    fn stored_keys_are_those_that_were_made_here() {
        let image = image(TaskId::random(), 3);
        assert_eq!(Key::stored(image.as_str()), Some(image));
        for text in [
            "",
            "images/../../etc/passwd",
            "other/x",
            "images/a b",
            "/images/x",
        ] {
            assert_eq!(Key::stored(text), None, "{text}");
        }
    }

    #[test]
    fn a_task_is_found_by_what_is_stored_for_it_as_now_and_as_before() {
        let task = TaskId::random();
        let text = task.to_string();
        let found = |key: &str| Key::stored(key).and_then(|key| key.task());
        let folder = folder_before(&text);
        for key in [
            image(task, 3).as_str(),
            Key::checkpoint(task, 1, 20).as_str(),
            &format!("checkpoints/{text}/1-20"),
            &format!("images/{text}/3.png"),
            &format!("images/{folder}/{text}-3.png"),
            &format!("images/{folder}/{text}-3.0123456789abcdef.png"),
        ] {
            assert_eq!(found(key), Some(task), "{key}");
        }
        let other = if text.ends_with("00") { "01" } else { "00" };
        for key in [
            "images/x",
            "images/00/x",
            "images/00/x-0.png",
            "images/artifact/0.png",
            &format!("inputs/{text}/3"),
            &format!("images/{other}/{text}-3.png"),
            &format!("images/20261128-0449/{text}-3.png"),
            "images/20261128T0449/x-0.png",
        ] {
            assert_eq!(found(key), None, "{key}");
        }
    }

    #[test]
    fn pictures_of_tasks_that_were_begun_in_the_same_minute_share_a_folder() {
        let folder = |begun: u64| {
            let key = image_of(begun, TaskId::random(), 0);
            key.as_str().split('/').nth(1).unwrap().to_owned()
        };
        assert_eq!(folder(BEGUN), "20261128T0449");
        assert_eq!(folder(BEGUN + 52), "20261128T0449");
        assert_eq!(folder(BEGUN + 53), "20261128T0450");
        // What no calendar has.
        assert_eq!(folder(u64::from(u32::MAX) << 30), "19700101T0000");
    }

    #[test]
    fn pictures_of_other_bytes_never_meet_and_those_of_the_same_do() {
        let task = TaskId::random();
        let of = |data: &[u8]| Key::image(task, UNIX_EPOCH, 0, &crate::sha256_hex(data), "png");
        assert_ne!(of(b"x"), of(b"y"));
        assert_eq!(of(b"x"), of(b"x"));
        let name = format!("{task}-0.2d711642b726b044.png");
        assert!(of(b"x").as_str().ends_with(&name), "{}", of(b"x"));
    }

    #[test]
    fn checkpoints_never_meet_though_an_attempts_number_comes_again() {
        let task = TaskId::random();
        let (first, second) = (Key::checkpoint(task, 1, 20), Key::checkpoint(task, 1, 20));
        assert_ne!(first, second);
        assert_eq!(Key::stored(first.as_str()), Some(first));
    }

    #[test]
    fn a_tenant_can_name_its_own_files_and_nobody_elses() {
        let tenant = |name: &str| name.parse::<TenantId>().unwrap();
        let digest = "0a".repeat(32);
        let key = Key::input(&tenant("acme"), &digest).unwrap();
        assert_eq!(
            Key::input_of(&tenant("acme"), key.as_str()),
            Some(key.clone())
        );
        assert_eq!(Key::stored(key.as_str()), Some(key.clone()));
        assert_eq!(Key::input_of(&tenant("bcme"), key.as_str()), None);
        for text in [
            "",
            "inputs/acme/x",
            &format!("images/{digest}"),
            &format!("x{key}"),
        ] {
            assert_eq!(Key::input_of(&tenant("acme"), text), None, "{text}");
        }
    }

    #[test]
    fn an_artifact_is_named_by_a_whole_digest() {
        assert!(Key::artifact(&"0a".repeat(32)).is_some());
        assert!(Key::artifact(&"0A".repeat(32)).is_none());
        assert!(Key::artifact("0a").is_none());
    }
}
