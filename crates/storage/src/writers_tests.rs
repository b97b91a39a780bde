//! Groups of writes in a real folder.

use std::time::Duration;

use super::*;

fn scratch() -> (tempfile::TempDir, Arc<Writers>) {
    let folder = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(folder.path()).unwrap();
    (folder, Arc::new(Writers::new(root)))
}

fn waiting(
    writers: &Writers,
    name: &str,
    payload: &'static [u8],
) -> (Waiting, oneshot::Receiver<io::Result<Extensions>>) {
    let (answer, answered) = oneshot::channel();
    let one = Waiting {
        path: writers.folders.root.join(name),
        payload: PutPayload::from_static(payload),
        options: PutOptions::default(),
        answer,
    };
    (one, answered)
}

/// One more, whose caller waits.
fn come(writers: &Arc<Writers>, payload: &'static [u8]) -> Option<AtWork> {
    let (one, answered) = waiting(writers, "x", payload);
    std::mem::forget(answered);
    writers.queue_up(one).unwrap()
}

#[test]
fn those_who_come_while_one_is_at_work_are_next_together_up_to_a_whole_group() {
    let (_folder, writers) = scratch();
    let come = |payload| come(&writers, payload);
    let first = come(b"x").unwrap();
    for _ in 1..MAX_OBJECTS - 1 {
        assert!(come(b"x").is_none(), "one is at work");
    }
    let second = come(b"x").unwrap();
    assert!(come(b"x").is_some(), "a whole group waits");
    assert_eq!(writers.next().unwrap().len(), MAX_OBJECTS);
    assert_eq!(writers.next().unwrap().len(), 1);
    drop((first, second));
}

#[test]
fn a_group_has_no_more_bytes_than_it_may_unless_one_alone_has() {
    static LARGE: [u8; MAX_BYTES + 1] = [0; MAX_BYTES + 1];
    let (_folder, writers) = scratch();
    let come = |payload| come(&writers, payload);
    let at_work = [
        come(b"x"),
        come(&LARGE),
        come(&LARGE[..MAX_BYTES]),
        come(b"x"),
    ];
    assert!(at_work.iter().filter(|one| one.is_some()).count() > 1);
    let groups: Vec<usize> = (0..4).map(|_| writers.next().unwrap().len()).collect();
    assert_eq!(groups, [1, 1, 1, 1]);
}

#[tokio::test]
async fn all_that_come_at_once_come_through_and_nothing_is_kept_of_them() {
    let (folder, writers) = scratch();
    let write = |number: u32| {
        let path = writers
            .folders
            .root
            .join(format!("a/{}/{number}", number % 3));
        let payload = PutPayload::from(number.to_string());
        writers.write(path, payload, PutOptions::default())
    };
    let written = futures::future::join_all((0..200).map(write)).await;
    assert!(written.into_iter().all(|one| one.is_ok()));
    for number in 0..200 {
        let path = folder.path().join(format!("a/{}/{number}", number % 3));
        assert_eq!(fs::read_to_string(path).unwrap(), number.to_string());
    }
    let drafts = fs::read_dir(folder.path().join("a/0")).unwrap();
    assert_eq!(drafts.count(), 67);
    // Whoever has answered the last one looks once more whether another has come.
    let rest = async {
        while lock(&writers.queue).at_work > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), rest)
        .await
        .unwrap();
    let queue = lock(&writers.queue);
    assert_eq!((queue.waiting.len(), queue.bytes), (0, 0));
}

#[tokio::test]
async fn while_the_disk_hangs_nothing_is_kept_of_those_who_gave_up_and_no_more_waits_than_may() {
    let (_folder, writers) = scratch();
    // All who may be at work are, and do not come back.
    lock(&writers.queue).at_work = AT_ONCE;
    let kept = || {
        let queue = lock(&writers.queue);
        (queue.waiting.len(), queue.bytes)
    };
    let write = |number: usize| {
        let path = writers.folders.root.join(number.to_string());
        let payload = PutPayload::from_static(b"xy");
        writers.write(path, payload, PutOptions::default())
    };
    for _ in 0..3 {
        let mut many = futures::future::join_all((0..MAX_WAITING).map(write));
        while kept().0 < MAX_WAITING {
            assert!(futures::poll!(&mut many).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(kept().1, 2 * MAX_WAITING);
        let refused = write(MAX_WAITING).await.unwrap_err().to_string();
        assert!(refused.starts_with("1024 objects wait"), "{refused}");
        drop(many);
        assert_eq!(kept(), (0, 0));
    }
}

#[test]
fn no_more_bytes_wait_than_may_unless_one_object_alone_has_more() {
    static PART: [u8; MAX_BYTES] = [0; MAX_BYTES];
    let (_folder, writers) = scratch();
    lock(&writers.queue).at_work = AT_ONCE;
    for _ in 0..MAX_WAITING_BYTES / MAX_BYTES {
        come(&writers, &PART);
    }
    let refused = writers.queue_up(waiting(&writers, "x", b"x").0);
    let refused = refused.map(drop).unwrap_err().to_string();
    assert!(refused.contains("limit of 268435456"), "{refused}");

    let (_folder, writers) = scratch();
    lock(&writers.queue).at_work = AT_ONCE;
    let (mut large, _answered) = waiting(&writers, "x", b"");
    let parts = std::iter::repeat_n(bytes::Bytes::from_static(&PART), 33);
    large.payload = parts.collect();
    assert!(writers.queue_up(large).is_ok());
}

#[test]
fn whoever_nobody_is_left_to_work_for_hears_of_it_and_the_next_is_worked_for() {
    let (_folder, writers) = scratch();
    let (one, mut answered) = waiting(&writers, "a/x", b"x");
    // As when the runtime stops.
    drop(writers.queue_up(one).unwrap());
    let closed = oneshot::error::TryRecvError::Closed;
    assert_eq!(answered.try_recv().unwrap_err(), closed);
    let (next, mut answered) = waiting(&writers, "a/x", b"x");
    writers.queue_up(next).unwrap().unwrap().work();
    answered.try_recv().unwrap().unwrap();
}

#[test]
fn what_nobody_waits_for_any_more_is_not_written() {
    let (folder, writers) = scratch();
    let (one, answered) = waiting(&writers, "x", b"x");
    drop(answered);
    writers.queue_up(one).unwrap().unwrap().work();
    assert!(!folder.path().join("x").exists());
}

#[test]
fn a_folder_is_known_to_be_on_the_disk_once_all_that_holds_it_is_and_one_made_anew_is_not() {
    let (_folder, writers) = scratch();
    let folders = &writers.folders;
    let inner = folders.root.join("a/b");
    // Made by another process, which may not have flushed it.
    fs::create_dir_all(&inner).unwrap();
    let flushed = || {
        let mut round = Round::new();
        assert!(folders.settle(&inner, &mut round).is_ok());
        let mut flushed: Vec<PathBuf> = round.into_keys().collect();
        flushed.sort();
        flushed
    };
    let all = [folders.root.clone(), folders.root.join("a"), inner.clone()];
    assert_eq!(flushed(), all);
    assert_eq!(flushed(), std::slice::from_ref(&inner));
    // Held open, so that the new one does not get its inode within a tick of the clock.
    let _held = File::open(&inner).unwrap();
    fs::remove_dir(&inner).unwrap();
    fs::create_dir(&inner).unwrap();
    assert_eq!(flushed(), all[1..]);
}

#[test]
fn a_folder_that_cannot_be_flushed_is_an_error_for_each_that_lies_in_it() {
    let (_folder, writers) = scratch();
    let mut round = Round::new();
    for _ in 0..2 {
        let missing = writers.folders.root.join("missing");
        let failed = writers.folders.settle(&missing, &mut round).unwrap_err();
        let failed = io::Error::from(failed);
        assert_eq!(failed.kind(), io::ErrorKind::NotFound);
        assert!(failed.raw_os_error().is_some(), "{failed}");
    }
}
