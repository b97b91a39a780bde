//! A tenant's tasks, page by page, and how many of them wait.

use contract::TaskId;
use contract::task::{Cancelled, Submitted, done};
use contract::v1::TaskPhase;
use task_log::{TaskRef, Wanted};

use crate::support::{cancelled, ended, scratch_log, submitted, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_task_once_newest_first() {
    let (_server, log) = scratch_log().await;
    let ids: Vec<TaskId> = (0..25).map(|_| TaskId::random()).collect();
    for &id in &ids {
        log.submit(&submitted(id)).await.unwrap();
        let mut foreign = submitted(TaskId::random());
        foreign.tenant = "other".to_owned();
        log.submit(&foreign).await.unwrap();
    }
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = log
            .list(&tenant(), &Wanted::default(), before, 10)
            .await
            .unwrap();
        assert!(page.records.len() <= 10);
        seen.extend(
            page.records
                .iter()
                .map(|r| r.submitted.task_id.parse::<TaskId>().unwrap()),
        );
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let newest_first: Vec<TaskId> = ids.into_iter().rev().collect();
    assert_eq!(seen, newest_first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_filtered_before_it_is_cut_and_its_pages_stay_good_while_tasks_come() {
    let (_server, log) = scratch_log().await;
    let ids: Vec<TaskId> = (0..60).map(|_| TaskId::random()).collect();
    for (number, &id) in ids.iter().enumerate() {
        let mut event = submitted(id);
        event.at = Some(std::time::SystemTime::now().into());
        if number % 3 == 0 {
            event.model = "other".to_owned();
        }
        log.submit(&event).await.unwrap();
        if number % 4 == 0 {
            let task = TaskRef::of(&event).unwrap();
            log.end(&task, &cancelled()).await.unwrap();
        }
    }
    let walk = async |wanted: Wanted, size: usize| {
        let (mut seen, mut before, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = log.list(&tenant(), &wanted, before, size).await.unwrap();
            let ids = page.records.iter().map(|r| &r.submitted.task_id);
            seen.extend(ids.map(|id| id.parse::<TaskId>().unwrap()));
            before = page.next;
            pages += 1;
            // One that comes in between is not on later pages, and moves none of theirs.
            log.submit(&submitted(TaskId::random())).await.unwrap();
            if before.is_none() {
                return (seen, pages);
            }
        }
    };
    let expected = |wanted: &dyn Fn(usize) -> bool| -> Vec<TaskId> {
        let numbers = (0..60).rev().filter(|number| wanted(*number));
        numbers.map(|number| ids[number]).collect()
    };
    let other = Wanted {
        model: "other".to_owned(),
        ..Wanted::default()
    };
    assert_eq!(walk(other.clone(), 7).await.0, expected(&|n| n % 3 == 0));
    let both = Wanted {
        phases: vec![TaskPhase::Cancelled, TaskPhase::Failed],
        ..other
    };
    let (seen, pages) = walk(both, 100).await;
    assert_eq!(seen, expected(&|n| n % 12 == 0));
    // All of them in one, although the log holds many others between them.
    assert_eq!(pages, 1);

    let now = std::time::SystemTime::now();
    let [hour, day] = [3600, 86400].map(std::time::Duration::from_secs);
    let after = |ago| Wanted {
        after: Some(now - ago),
        model: "other".to_owned(),
        ..Wanted::default()
    };
    assert_eq!(walk(after(hour), 100).await.0.len(), 20);
    let long_ago = Wanted {
        before: Some(now - hour),
        after: Some(now - day),
        ..Wanted::default()
    };
    assert!(walk(long_ago, 100).await.0.is_empty());
    let to_come = Wanted {
        after: Some(now + hour),
        ..Wanted::default()
    };
    assert!(walk(to_come, 100).await.0.is_empty());
}

#[tokio::test]
async fn the_tasks_of_a_tenant_that_wait_are_those_that_have_not_ended_and_nobody_was_handed() {
    let (_server, log) = scratch_log().await;
    assert_eq!(log.waiting(&tenant()).await.unwrap(), 0);
    let mut tasks = Vec::new();
    for _ in 0..5 {
        let submitted = submitted(TaskId::random());
        log.submit(&submitted).await.unwrap();
        tasks.push(submitted);
    }
    let other = Submitted {
        tenant: "other".to_owned(),
        ..submitted(TaskId::random())
    };
    log.submit(&other).await.unwrap();
    assert_eq!(log.waiting(&tenant()).await.unwrap(), 5);
    log.dispatch(&tasks[0], 0, 1).await.unwrap();
    let cancelled = ended(done::Outcome::Cancelled(Cancelled::default()));
    let task = TaskRef::of(&tasks[1]).unwrap();
    log.end(&task, &cancelled).await.unwrap();
    assert_eq!(log.waiting(&tenant()).await.unwrap(), 3);
    assert_eq!(log.waiting(&"other".parse().unwrap()).await.unwrap(), 1);
}
