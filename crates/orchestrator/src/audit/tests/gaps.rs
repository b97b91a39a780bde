//! What the log keeps for the chain, and what the chain says of what was not kept.

use std::sync::Arc;

use ::audit::Event;
use contract::task::State;
use contract::v1::Feedback;
use messaging::NewEvent;
use task_log::{Commit, Intake, LetGo, Submission};

use super::*;

impl Bench {
    /// Removes all of the log in front of a place, as an operator can.
    async fn purge(&self, before: u64) {
        let tasks = self.broker.log("TASKS");
        tasks.remove_before(before).await.unwrap();
    }

    /// Removes the log itself, and makes it anew.
    async fn make_log_anew(&self) {
        self.server.remove_stream("TASKS").unwrap();
        let streams = StreamSettings::small();
        self.log.ensure_streams(&streams).await.unwrap();
    }

    /// What is recorded: places, and of gaps from where to where and why.
    async fn recorded(&self) -> (Vec<u64>, Vec<(u64, u64, String)>) {
        let later = SystemTime::now() + Duration::from_secs(600);
        let exporter = self.exporter().await;
        while exporter.turn(later).await.unwrap() {}
        let (mut places, mut gaps) = (Vec::new(), Vec::new());
        for line in self.records() {
            match line.content.event {
                ::audit::Event::Gap { from, to, why } => gaps.push((from, to, why)),
                _ => places.push(line.content.source),
            }
        }
        (places, gaps)
    }

    async fn hold(&self, most: &str) -> Hold {
        let most: ::settings::Millis = most.parse().unwrap();
        Hold::new(&self.broker, most.duration()).await.unwrap()
    }

    /// A task with states of which each takes the place of the one before, from submission to end five places.
    async fn task_with_states(&self) {
        let submitted = Submitted {
            task_id: TaskId::random().to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            ..Submitted::default()
        };
        self.log.submit(&submitted).await.unwrap();
        let task = TaskRef::of(&submitted).unwrap();
        for attempt in 1..=3 {
            let state = State {
                attempt,
                ..State::default()
            };
            self.log.set_state(&task, &state).await.unwrap();
        }
        self.log.end(&task, &Done::default()).await.unwrap();
    }

    /// Lets go of all that is older than an hour from now, as far as the chain leaves it; says up to where.
    async fn let_go(&self, hold: &Hold) -> u64 {
        let later = self.log.time().await.unwrap() + Duration::from_secs(3600);
        let leave = hold.leave(later).await;
        let retention = self.log.retention().await.unwrap();
        match retention.let_go(later, leave.before).await.unwrap() {
            LetGo::UpTo(place) => place,
            went => panic!("what was recorded last stays, and a turn takes the rest: {went:?}"),
        }
    }
}

fn gap(from: u64, to: u64, why: &str) -> (u64, u64, String) {
    (from, to, why.to_owned())
}

async fn go_on(writer: &write::Writer, place: &mut Option<write::Place>) {
    while writer.turn(place).await.unwrap() != Turn::Idle {}
}

#[tokio::test]
async fn a_chain_that_begins_lacks_what_was_held_for_too_long_for_it_and_no_more() {
    let bench = bench().await;
    bench.task().await;
    // Before it was to be recorded: nobody has held it.
    bench.purge(3).await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [3, 4]);
    assert!(gaps.is_empty(), "{gaps:?}");

    let bench = super::bench().await;
    bench.task().await;
    let hold = bench.hold("0s").await;
    hold.note_release().await.unwrap();
    bench.purge(3).await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [3, 4]);
    assert_eq!(gaps, [gap(1, 2, "expired")]);
}

#[tokio::test]
async fn what_was_purged_before_it_was_recorded_is_a_gap_for_a_writer_that_begins() {
    let bench = bench().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    bench.task().await;
    bench.task().await;
    // An end stays, and what lies before it has gone.
    bench.purge(6).await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [1, 2, 6]);
    assert_eq!(gaps, [gap(3, 5, "removed")]);
}

#[tokio::test]
async fn a_purge_is_one_gap_for_a_writer_that_goes_on_and_is_told_at_once() {
    let bench = bench().await;
    let (writer, mut place) = (bench.writer(), None);
    bench.task().await;
    go_on(&writer, &mut place).await;
    bench.task().await;
    bench.purge(5).await;
    go_on(&writer, &mut place).await;
    assert_eq!(bench.recorded().await.1, [gap(3, 4, "removed")]);
    bench.task().await;
    go_on(&writer, &mut place).await;
    // Another, which knows what is stored alone.
    until_idle(&bench.writer()).await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [1, 2, 5, 6, 7, 8]);
    assert_eq!(gaps, [gap(3, 4, "removed")]);
}

#[tokio::test]
async fn a_purge_of_what_is_recorded_is_no_gap() {
    let bench = bench().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    bench.purge(3).await;
    until_idle(&bench.writer()).await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [1, 2, 3, 4]);
    assert!(gaps.is_empty(), "{gaps:?}");
}

#[tokio::test]
async fn states_that_others_took_the_place_of_are_no_gap_though_the_log_lets_go_of_all_it_may() {
    let bench = bench().await;
    let hold = bench.hold("1h").await;
    bench.task_with_states().await;
    assert_eq!(bench.let_go(&hold).await, 0, "nothing is recorded");
    until_idle(&bench.writer()).await;
    bench.task_with_states().await;
    assert_eq!(bench.let_go(&hold).await, 5, "it is recorded up to there");
    // 5 is there, and 6, and of 7 to 9 the last.
    until_idle(&bench.writer()).await;
    assert_eq!(bench.let_go(&hold).await, 10);
    let first = bench.log.extent().await.unwrap().first;
    assert_eq!(first, 10, "what was recorded last stays");
    bench.task_with_states().await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [1, 5, 6, 10, 11, 15]);
    assert!(gaps.is_empty(), "{gaps:?}");
}

#[tokio::test]
async fn what_was_held_for_too_long_may_go_and_is_a_gap_that_says_so() {
    let bench = bench().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    bench.task().await;
    let now = bench.log.time().await.unwrap();
    let hour = Duration::from_secs(3600);
    let (later, soon) = (now + hour, now - hour);
    let hold = bench.hold("30m").await;
    let young = hold.leave(soon).await;
    assert_eq!((young.before, young.is_held), (2, false));
    assert_eq!(young.regardless_of, None);
    let patient = bench.hold("2h").await.leave(later).await;
    assert_eq!((patient.before, patient.is_held), (2, true));
    assert_eq!(patient.regardless_of, None, "it is not held for long");
    let leave = hold.leave(later).await;
    let half = hour / 2;
    assert_eq!(leave.regardless_of, Some(later - half));
    hold.note_release().await.unwrap();
    let retention = bench.log.retention().await.unwrap();
    let went = retention.let_go(later - half, u64::MAX).await.unwrap();
    assert_eq!(went, LetGo::All);
    bench.task().await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [1, 2, 5, 6]);
    assert_eq!(gaps, [gap(3, 4, "expired")]);
}

#[tokio::test]
async fn where_nobody_knows_what_is_recorded_all_stays_that_was_not_held_for_too_long() {
    let bench = bench().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    // There were blocks, and none is there.
    let blocks = bench.broker.log(AUDIT);
    let last = blocks.last_sequence().await.unwrap();
    blocks.remove_before(last + 1).await.unwrap();
    let now = bench.log.time().await.unwrap();
    let hour = Duration::from_secs(3600);
    let (later, soon) = (now + hour, now - hour);
    let hold = bench.hold("30m").await;
    let young = hold.leave(soon).await;
    assert_eq!((young.before, young.is_held), (0, false));
    assert_eq!(young.regardless_of, None, "nothing is old");
    let patient = bench.hold("2h").await.leave(later).await;
    assert_eq!((patient.before, patient.is_held), (0, true));
    assert_eq!(patient.regardless_of, None, "nothing was held for too long");
    let leave = hold.leave(later).await;
    assert_eq!((leave.before, leave.is_held), (0, true));
    assert_eq!(leave.regardless_of, Some(later - hour / 2));
}

/// The submission of a task that has ended, at places 1 and 2.
async fn ended(bench: &Bench) -> Submitted {
    let submitted = Submitted {
        task_id: TaskId::random().to_string(),
        tenant: "acme".to_owned(),
        lane: "standard-image".to_owned(),
        ..Submitted::default()
    };
    bench.log.submit(&submitted).await.unwrap();
    let task = TaskRef::of(&submitted).unwrap();
    bench.log.end(&task, &Done::default()).await.unwrap();
    submitted
}

/// The same of one that the log has let go of: its end is left.
async fn let_go_of_submission(bench: &Bench) -> Submitted {
    let submitted = ended(bench).await;
    bench.purge(2).await;
    submitted
}

/// The way in for submissions, by which no end goes that is not recorded.
async fn intake(bench: &Bench) -> Intake {
    // Each goes by itself: nothing has to commit them.
    let (intake, _) = bench.log.intake(Commit::OneByOne);
    let hold = Arc::new(bench.hold("1h").await);
    intake.asking(hold.asked())
}

#[tokio::test]
async fn an_end_that_is_not_recorded_keeps_its_id_until_it_is() {
    let bench = bench().await;
    let submitted = let_go_of_submission(&bench).await;
    let intake = intake(&bench).await;
    let refused = intake.submit(&submitted).await.unwrap_err();
    assert!(matches!(refused, TaskLogError::EarlierEnd { place: 2 }));
    assert!(refused.is_not_stored());
    assert_eq!(bench.log.extent().await.unwrap().first, 2, "it is there");
    until_idle(&bench.writer()).await;
    let accepted = intake.submit(&submitted).await.unwrap();
    assert_eq!(accepted, Submission::Accepted);
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [2, 3]);
    assert!(gaps.is_empty(), "{gaps:?}");
}

#[tokio::test]
async fn what_was_recorded_last_goes_when_its_id_comes_again_and_that_is_no_gap() {
    let bench = bench().await;
    let submitted = ended(&bench).await;
    let task = TaskRef::of(&submitted).unwrap();
    let record = bench.log.read(&task.tenant, task.task).await.unwrap();
    let record = record.unwrap();
    // Of 3 and 4 the last is left, and goes with the end.
    for rating in [1, 2] {
        let feedback = Feedback {
            rating,
            ..Feedback::default()
        };
        assert!(bench.log.set_feedback(&record, &feedback).await.unwrap());
    }
    bench.purge(2).await;
    until_idle(&bench.writer()).await;
    let again = intake(&bench).await.submit(&submitted).await.unwrap();
    assert_eq!(again, Submission::Accepted);
    assert_eq!(bench.log.extent().await.unwrap().first, 5);
    // Another, which knows what is stored alone.
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [2, 5]);
    assert!(gaps.is_empty(), "{gaps:?}");
}

#[tokio::test]
async fn what_is_purged_behind_an_end_that_its_id_has_removed_is_a_gap_all_the_same() {
    let bench = bench().await;
    let submitted = let_go_of_submission(&bench).await;
    until_idle(&bench.writer()).await;
    // Not recorded so far.
    bench.task().await;
    let again = intake(&bench).await.submit(&submitted).await.unwrap();
    assert_eq!(again, Submission::Accepted);
    bench.purge(5).await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [2, 5]);
    assert_eq!(gaps, [gap(3, 4, "removed")]);
}

#[tokio::test]
async fn a_log_that_was_made_anew_is_a_gap_and_recorded_from_its_beginning_however_long_it_is() {
    for tasks in [1, 3] {
        let bench = bench().await;
        bench.task().await;
        bench.task().await;
        until_idle(&bench.writer()).await;
        bench.make_log_anew().await;
        for _ in 0..tasks {
            bench.task().await;
        }
        until_idle(&bench.writer()).await;
        bench.task().await;
        until_idle(&bench.writer()).await;
        let (places, gaps) = bench.recorded().await;
        let expected: Vec<u64> = (1..=4).chain(1..=2 * tasks + 2).collect();
        assert_eq!(places, expected);
        assert_eq!(gaps, [gap(5, 0, Event::ANEW)]);
    }
}

#[tokio::test]
async fn a_writer_that_goes_on_while_the_log_is_made_anew_tells_of_it_once() {
    let bench = bench().await;
    let (writer, mut place) = (bench.writer(), None);
    // By place, and then in turn.
    for _ in 0..2 {
        bench.task().await;
        go_on(&writer, &mut place).await;
    }
    bench.make_log_anew().await;
    for _ in 0..3 {
        bench.task().await;
    }
    // What it reads by has gone with the log, and after an error it begins anew.
    let mut turns = 0;
    while !matches!(writer.turn(&mut place).await, Ok(Turn::Idle)) {
        turns += 1;
        assert!(turns < 100, "it does not come to an end");
    }
    bench.task().await;
    go_on(&writer, &mut place).await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    let expected: Vec<u64> = (1..=4).chain(1..=8).collect();
    assert_eq!(places, expected);
    assert_eq!(gaps, [gap(5, 0, Event::ANEW)]);
}

#[tokio::test]
async fn a_chain_of_before_it_knew_its_log_goes_on_and_knows_it_from_then_on() {
    let bench = bench().await;
    bench.task().await;
    let content = ::audit::Content {
        recorded: "2026-01-02T03:04:05Z".to_owned(),
        source: 2,
        log: String::new(),
        tenant: "acme".to_owned(),
        task: "t-1".to_owned(),
        event: Event::Unreadable {
            sha256: "ab".to_owned(),
        },
    };
    let mut chain = ::audit::Chain::after(::audit::Head::genesis());
    let line = chain.append(content).unwrap() + "\n";
    let block = NewEvent::new(subject(1), BLOCKS.to_owned(), line.into());
    bench.broker.log(AUDIT).append(&block, 0).await.unwrap();
    bench.task().await;
    until_idle(&bench.writer()).await;
    bench.make_log_anew().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [2, 3, 4, 1, 2]);
    assert_eq!(gaps, [gap(5, 0, Event::ANEW)]);
}

#[tokio::test]
async fn a_log_that_was_made_anew_before_anything_was_recorded_is_no_gap() {
    let bench = bench().await;
    let (writer, mut place) = (bench.writer(), None);
    go_on(&writer, &mut place).await;
    bench.make_log_anew().await;
    bench.task().await;
    // The first time it sees that it is another log.
    go_on(&writer, &mut place).await;
    go_on(&writer, &mut place).await;
    let (places, gaps) = bench.recorded().await;
    assert_eq!(places, [1, 2]);
    assert!(gaps.is_empty(), "{gaps:?}");
}

#[tokio::test]
async fn a_note_that_names_no_log_counts_only_for_one_that_it_may_be_of() {
    let bench = bench().await;
    bench.task().await;
    let log = bench.log.extent().await.unwrap();
    let note = |before| serde_json::json!({ "before": before });
    let of = |before| serde_json::from_value::<hold::Released>(note(before)).unwrap();
    assert!(of(3).is_of(&log));
    assert!(!of(4).is_of(&log), "the log ends at place 2");
}

#[tokio::test]
async fn of_a_log_that_was_made_anew_nothing_is_recorded_so_far_and_what_was_noted_of_the_old_one_does_not_count()
 {
    let bench = bench().await;
    for _ in 0..4 {
        bench.task().await;
    }
    until_idle(&bench.writer()).await;
    let hold = bench.hold("1h").await;
    hold.note_release().await.unwrap();
    bench.make_log_anew().await;
    for _ in 0..5 {
        bench.task().await;
    }
    let now = bench.log.time().await.unwrap();
    assert_eq!(hold.leave(now).await.before, 0);
    assert!(!hold.may_go(2).await);
    until_idle(&bench.writer()).await;
    assert_eq!(hold.leave(now).await.before, 10);
    assert!(hold.may_go(2).await);
    bench.make_log_anew().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    // In front of the place up to which the first log was let go of.
    bench.task().await;
    bench.purge(4).await;
    until_idle(&bench.writer()).await;
    bench.task().await;
    hold.note_release().await.unwrap();
    bench.purge(6).await;
    until_idle(&bench.writer()).await;
    let (_, gaps) = bench.recorded().await;
    let expected = [
        gap(9, 0, Event::ANEW),
        gap(11, 0, Event::ANEW),
        gap(3, 3, "removed"),
        gap(5, 5, "expired"),
    ];
    assert_eq!(gaps, expected);
}
