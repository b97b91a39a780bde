//! With a real broker and a real folder.

use std::time::SystemTime;

use contract::TaskId;
use contract::task::{Cancelled, Done, Submitted, done};
use messaging::BrokerSettings;
use nats_server::NatsServer;
use storage::{Key, StorageSettings};
use task_log::{StreamSettings, TaskRef};

use super::write::Turn;
use super::*;

mod gaps;

struct Bench {
    server: NatsServer,
    folder: tempfile::TempDir,
    broker: Broker,
    log: TaskLog,
    storage: Storage,
    released: Bucket<hold::Released>,
    settings: AuditSettings,
}

async fn bench() -> Bench {
    bench_with("64MiB").await
}

/// With a stream that takes so much.
async fn bench_with(max_size: &str) -> Bench {
    let server = NatsServer::scratch().unwrap();
    let wait = "20s".parse().unwrap();
    let settings = BrokerSettings::new(server.url(), wait);
    let broker = Broker::connect(&settings, "test").await.unwrap();
    let log = TaskLog::new(broker.clone());
    let streams = StreamSettings::small();
    log.ensure_streams(&streams).await.unwrap();
    let settings = AuditSettings {
        enabled: true,
        prompts: false,
        export_every: "5m".parse().unwrap(),
        file_size: "16MiB".parse().unwrap(),
        max_size: max_size.parse().unwrap(),
        hold: "1h".parse().unwrap(),
    };
    broker.ensure_stream(&spec(&settings)).await.unwrap();
    let released = hold::released(&broker).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let storage = Storage::open(&StorageSettings::new(url));
    Bench {
        server,
        folder,
        broker,
        log,
        storage: storage.unwrap(),
        released,
        settings,
    }
}

impl Bench {
    async fn task(&self) {
        self.task_of("a secret cat").await;
    }

    async fn task_of(&self, prompt: &str) {
        let submitted = Submitted {
            task_id: TaskId::random().to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            request: Some(contract::v1::SubmitTask {
                prompt: prompt.to_owned(),
                expires_after_seconds: 3600,
                ..Default::default()
            }),
            at: Some(contract::now()),
            ..Submitted::default()
        };
        self.log.submit(&submitted).await.unwrap();
        let done = Done {
            at: Some(contract::now()),
            outcome: Some(done::Outcome::Cancelled(Cancelled::default())),
            ..Done::default()
        };
        let task = TaskRef::of(&submitted).unwrap();
        self.log.end(&task, &done).await.unwrap();
    }

    fn writer(&self) -> write::Writer {
        self.writer_with(false)
    }

    /// With prompts, or without.
    fn writer_with(&self, prompts: bool) -> write::Writer {
        let (log, blocks) = (self.log.clone(), self.broker.log(AUDIT));
        write::Writer::new(log, blocks, self.released.clone(), prompts)
    }

    async fn exporter(&self) -> export::Exporter {
        let state = self.broker.bucket("audit", Duration::ZERO).await.unwrap();
        let blocks = self.broker.log(AUDIT);
        let (log, storage) = (self.log.clone(), self.storage.clone());
        export::Exporter::new(log, blocks, state, storage, &self.settings)
    }

    /// All records in files, checked as one chain.
    fn records(&self) -> Vec<::audit::Line> {
        let mut names = Vec::new();
        for day in std::fs::read_dir(self.folder.path().join("audit")).unwrap() {
            let files = std::fs::read_dir(day.unwrap().path()).unwrap();
            names.extend(files.map(|file| file.unwrap().path()));
        }
        names.sort();
        let mut chain = ::audit::Chain::after(::audit::Head::genesis());
        let mut all = Vec::new();
        for name in names {
            let data = std::fs::read(name).unwrap();
            ::audit::file::check(&mut chain, &data, |line| all.push(line)).unwrap();
        }
        all
    }
}

async fn until_idle(writer: &write::Writer) {
    let mut place = None;
    while writer.turn(&mut place).await.unwrap() != Turn::Idle {}
}

#[tokio::test]
async fn every_event_is_recorded_once_by_writers_that_start_anew_and_outrun_each_other() {
    let bench = bench().await;
    let (one, other) = (bench.writer(), bench.writer());
    let (mut first, mut second) = (None, None);
    bench.task().await;
    assert_eq!(one.turn(&mut first).await.unwrap(), Turn::CaughtUp);
    // Idle, and so with its own idea of where the chain stands.
    assert_eq!(other.turn(&mut second).await.unwrap(), Turn::Idle);
    bench.task().await;
    assert_eq!(one.turn(&mut first).await.unwrap(), Turn::CaughtUp);
    assert_eq!(other.turn(&mut second).await.unwrap(), Turn::Outrun);
    bench.task().await;
    // As after a crash: nothing is known but what is stored.
    until_idle(&other).await;
    until_idle(&one).await;

    let later = SystemTime::now() + Duration::from_secs(600);
    let exporter = bench.exporter().await;
    assert!(!exporter.turn(SystemTime::now()).await.unwrap());
    assert!(exporter.turn(later).await.unwrap());
    assert!(!exporter.turn(later).await.unwrap());
    let sources = |records: Vec<::audit::Line>| -> Vec<u64> {
        records.iter().map(|line| line.content.source).collect()
    };
    assert_eq!(sources(bench.records()), [1, 2, 3, 4, 5, 6]);

    // Behind a file the chain goes on, though the stream has let go of what is in it.
    bench.task().await;
    until_idle(&bench.writer()).await;
    assert!(exporter.turn(later).await.unwrap());
    let records = bench.records();
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains("secret cat"), "{text}");
    assert!(text.contains("\"expires_after_seconds\":3600"), "{text}");
    assert_eq!(sources(records), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn records_are_dated_and_files_are_due_by_the_brokers_clock_whatever_this_machines_says() {
    // Of this process, which has no other test in it.
    contract::clock::set_offset(24 * 3600);
    let day = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap().as_secs() / (24 * 3600)
    };
    let today = day();
    let bench = bench().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    let exporter = bench.exporter().await;
    let written = exporter.look().await.unwrap();
    // Midnight may come while this runs.
    assert!(!written || day() != today, "it is no other day there");
    let now = SystemTime::now();
    let later = now + Duration::from_secs(600);
    assert!(written || exporter.turn(later).await.unwrap());
    for line in bench.records() {
        let recorded: jiff::Timestamp = line.content.recorded.parse().unwrap();
        let recorded = SystemTime::from(recorded);
        let within = Duration::from_secs(300);
        assert!(recorded > now - within && recorded < now + within);
    }
}

#[tokio::test]
async fn a_writer_whose_next_block_was_written_and_put_into_a_file_while_it_slept_is_outrun() {
    let bench = bench().await;
    let (sleeper, mut place) = (bench.writer(), None);
    bench.task().await;
    until_idle(&bench.writer()).await;
    assert_eq!(sleeper.turn(&mut place).await.unwrap(), Turn::Idle);
    for _ in 0..3 {
        bench.task().await;
        until_idle(&bench.writer()).await;
    }
    let later = SystemTime::now() + Duration::from_secs(600);
    let exporter = bench.exporter().await;
    assert!(exporter.turn(later).await.unwrap());
    let second = bench.broker.log(AUDIT).at(&subject(2)).await.unwrap();
    assert!(second.is_none(), "it is in a file");

    bench.task().await;
    assert_eq!(sleeper.turn(&mut place).await.unwrap(), Turn::Outrun);
    until_idle(&sleeper).await;
    assert!(exporter.turn(later).await.unwrap());
    let sources: Vec<u64> = bench.records().iter().map(|it| it.content.source).collect();
    assert_eq!(sources, (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_does_not_fit_into_one_block_goes_into_the_next_and_none_is_left_out() {
    const TASKS: u64 = 600;
    let bench = bench().await;
    let blocks = bench.broker.log(AUDIT);
    let writer = bench.writer_with(true);
    let mut place = None;
    // The first asks by place, and the others go on reading.
    bench.task().await;
    assert_eq!(writer.turn(&mut place).await.unwrap(), Turn::CaughtUp);
    let prompt = "a secret cat ".repeat(300);
    let tasks = (1..TASKS).map(|_| bench.task_of(&prompt));
    futures::future::join_all(tasks).await;
    while writer.turn(&mut place).await.unwrap() != Turn::Idle {}

    let later = SystemTime::now() + Duration::from_secs(600);
    let exporter = bench.exporter().await;
    while exporter.turn(later).await.unwrap() {}
    let sources: Vec<u64> = bench.records().iter().map(|it| it.content.source).collect();
    assert_eq!(sources, (1..=2 * TASKS).collect::<Vec<_>>());
    // 2.3 MiB, no more than half a mebibyte and a record in each.
    assert!(blocks.last_sequence().await.unwrap() > 5);
}

#[tokio::test]
async fn a_chain_that_has_no_room_goes_on_where_it_was_when_a_file_has_taken_some() {
    let bench = bench_with("256KiB").await;
    let blocks = bench.broker.log(AUDIT);
    let writer = bench.writer_with(true);
    let prompt = "a secret cat ".repeat(300);
    let (mut place, mut events) = (None, 0);
    // Each round is a block of some 40 KiB.
    'rounds: for _ in 0..20 {
        let tasks = (0..10).map(|_| bench.task_of(&prompt));
        futures::future::join_all(tasks).await;
        events += 20;
        loop {
            match writer.turn(&mut place).await.unwrap() {
                Turn::Idle => break,
                Turn::Full => break 'rounds,
                _ => {}
            }
        }
    }
    let stored = blocks.last_sequence().await.unwrap();
    assert!(stored > 1);
    assert_eq!(writer.turn(&mut place).await.unwrap(), Turn::Full);
    assert!(place.is_some(), "nothing is read anew");

    let later = SystemTime::now() + Duration::from_secs(600);
    let exporter = bench.exporter().await;
    assert!(exporter.turn(later).await.unwrap());
    while writer.turn(&mut place).await.unwrap() != Turn::Idle {}
    assert_eq!(blocks.last_sequence().await.unwrap(), stored + 1);
    assert!(exporter.turn(later).await.unwrap());
    let sources: Vec<u64> = bench.records().iter().map(|it| it.content.source).collect();
    assert_eq!(sources, (1..=events).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_file_whose_writer_died_is_written_by_another_just_so() {
    let bench = bench().await;
    bench.task().await;
    until_idle(&bench.writer()).await;
    // It decided and died.
    let state = bench.broker.bucket("audit", Duration::ZERO).await.unwrap();
    let cut = export::State {
        next: 1,
        cut: Some(1),
    };
    state.create("export", &cut).await.unwrap();
    bench.task().await;
    until_idle(&bench.writer()).await;
    let exporter = bench.exporter().await;
    assert!(exporter.turn(SystemTime::now()).await.unwrap());
    assert_eq!(bench.records().len(), 2);
    let later = SystemTime::now() + Duration::from_secs(600);
    assert!(exporter.turn(later).await.unwrap());
    assert_eq!(bench.records().len(), 4);
    assert!(Key::audit("2026-1-02", 1, 2).is_none());
}
