//! What ends give back, on a real broker.

use std::num::NonZeroU64;
use std::time::SystemTime;

use contract::TaskId;
use contract::task::{Cancelled, Failed};
use lifecycle::Service;
use messaging::{BrokerSettings, Puller};
use nats_server::NatsServer;
use settings::ByteSize;

use super::*;
use crate::meter::{Account, Charge};
use crate::usage::{DayLimit, Use};

async fn next(puller: &Puller) -> Delivery {
    loop {
        if let Some(delivery) = puller.pull(1).await.unwrap().pop() {
            return delivery;
        }
    }
}

/// An orchestrator's.
async fn meter(broker: &Broker) -> Arc<Meter> {
    let log = TaskLog::new(broker.clone());
    let meter = Meter::open(
        broker,
        move || crate::meter::now(&log),
        ByteSize::of(1 << 20),
    );
    Arc::new(meter.await.unwrap())
}

/// Where a task has ended that was charged three pictures, all that a day has.
struct Bench {
    server: NatsServer,
    broker: Broker,
    submitted: Submitted,
    meter: Arc<Meter>,
    ends: Puller,
}

impl Bench {
    async fn start(done: &Done) -> Self {
        let server = NatsServer::scratch().unwrap();
        let broker = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&broker, "test").await.unwrap();
        let settings: crate::Settings = settings::load(None, &[]).unwrap();
        let log = TaskLog::new(broker.clone());
        log.ensure_streams(&settings.streams).await.unwrap();
        let meter = meter(&broker).await;
        let submitted = Submitted {
            task_id: TaskId::random().to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            charged_to: "prod".to_owned(),
            at: Some(contract::now()),
            request: Some(v1::SubmitTask {
                images: 3,
                ..v1::SubmitTask::default()
            }),
            ..Submitted::default()
        };
        log.submit(&submitted).await.unwrap();
        let task = TaskRef::of(&submitted).unwrap();
        log.end(&task, done).await.unwrap();
        let ends = log.ends_of_all(ACK_WAIT).await.unwrap();
        let bench = Self {
            server,
            broker,
            submitted,
            meter,
            ends,
        };
        assert!(bench.charge(3).await);
        bench
    }

    /// Whether so many pictures more may be charged.
    async fn charge(&self, images: u64) -> bool {
        let account = Account {
            tenant: "acme".parse().unwrap(),
            policy: "prod".to_owned(),
        };
        let limit = DayLimit {
            images: NonZeroU64::new(3),
            pixel_steps: None,
        };
        let ask = Use {
            images,
            pixel_steps: 0,
        };
        let charged = self.meter.charge(&account, limit, ask).await;
        charged.map(Charge::keep).is_ok()
    }

    /// An orchestrator's.
    async fn notices(&self, service: &Service) -> Notices {
        let settings: crate::Settings = settings::load(None, &[]).unwrap();
        Notices {
            log: TaskLog::new(self.broker.clone()),
            outcomes: Outcomes::new(&self.broker, &settings.notices),
            meter: self.meter.clone(),
            webhooks: self.broker.queue(exchange::WEBHOOKS),
            public_url: String::new(),
            service: service.tasks.clone(),
        }
    }
}

fn cancelled() -> Done {
    Done {
        outcome: Some(done::Outcome::Cancelled(Cancelled::default())),
        ..Done::default()
    }
}

fn expired() -> Done {
    deadline::expired(Duration::from_secs(5), SystemTime::now())
}

/// Whether another task like it may be charged after its end was seen, and one more picture after it was seen again.
async fn charged_after(done: Done) -> (bool, bool) {
    let bench = Bench::start(&done).await;
    let service = Service::new("test");
    let end = next(&bench.ends).await;
    let notices = bench.notices(&service).await;
    notices.settle(&end).await.unwrap();
    let first = bench.charge(3).await;
    end.give_back(Duration::ZERO).await.unwrap();
    let end = next(&bench.ends).await;
    notices.settle(&end).await.unwrap();
    (first, bench.charge(1).await)
}

#[tokio::test]
async fn a_task_that_did_not_begin_in_time_is_given_back_once_whoever_ended_it() {
    assert_eq!(charged_after(expired()).await, (true, false));
    let by_a_worker = Done {
        worker: "painter".to_owned(),
        ..expired()
    };
    assert_eq!(charged_after(by_a_worker).await, (true, false));
}

#[tokio::test]
async fn a_task_that_did_not_begin_in_time_is_given_back_though_nobody_hears_of_it() {
    let end = Done {
        without_listeners: true,
        ..expired()
    };
    assert_eq!(charged_after(end).await, (true, false));
}

#[tokio::test]
async fn a_cancelled_task_is_given_back_once_whatever_its_canceller_heard() {
    assert_eq!(charged_after(cancelled()).await, (true, false));
}

#[tokio::test]
async fn a_task_that_failed_otherwise_stays_charged() {
    let failed = Done {
        outcome: Some(done::Outcome::Failed(Failed {
            code: ErrorCode::EngineFailed.to_string(),
            message: String::new(),
        })),
        ..Done::default()
    };
    assert_eq!(charged_after(failed).await, (false, false));
}

#[tokio::test]
async fn an_expired_task_is_given_back_though_the_log_does_not_answer_at_first() {
    let mut bench = Bench::start(&expired()).await;
    let service = Service::new("test");
    let notices = bench.notices(&service).await;
    let end = next(&bench.ends).await;
    bench.server.kill();
    until_it_is_noticed(&bench.broker).await;
    let server = &mut bench.server;
    let back = async { server.restart().unwrap() };
    let (settled, ()) = tokio::join!(notices.settle(&end), back);
    settled.unwrap();
    assert!(bench.charge(3).await);
}

/// That the broker is gone.
async fn until_it_is_noticed(broker: &Broker) {
    while !matches!(broker.probe().await, Err(BrokerError::Unreachable { .. })) {}
}

#[tokio::test]
async fn a_service_that_stops_does_not_wait_for_a_broker_that_is_away_to_give_back() {
    let mut bench = Bench::start(&cancelled()).await;
    let service = Service::new("test");
    let notices = bench.notices(&service).await;
    let end = next(&bench.ends).await;
    bench.server.kill();
    until_it_is_noticed(&bench.broker).await;
    let stop = async { service.stop(PATIENCE).await };
    let both = async { tokio::join!(notices.settle(&end), stop) };
    let (settled, _) = tokio::time::timeout(PATIENCE / 2, both).await.unwrap();
    assert!(matches!(settled, Err(TaskLogError::Stopping)));
}

#[tokio::test]
async fn what_a_service_that_stops_did_not_give_back_the_next_does() {
    let bench = Bench::start(&cancelled()).await;
    let first = Service::new("first");
    let notices = bench.notices(&first).await;
    assert!(first.stop(PATIENCE).await);
    notices.handle(&next(&bench.ends).await).await;
    assert!(!bench.charge(1).await, "nothing was given back so far");
    let second = Service::new("second");
    let notices = bench.notices(&second).await;
    let again = next(&bench.ends).await;
    assert!(again.deliveries() > 1);
    notices.handle(&again).await;
    assert!(bench.charge(3).await);
    assert!(!bench.charge(1).await);
}

#[tokio::test]
async fn an_end_is_told_as_it_was_handed_out_though_whoever_answers_for_the_log_does_not_have_it() {
    let bench = Bench::start(&cancelled()).await;
    let settings: crate::Settings = settings::load(None, &[]).unwrap();
    let (intake, notices) = (&settings.intake, &settings.notices);
    exchange::ensure_streams(&bench.broker, intake, notices, &settings.webhooks)
        .await
        .unwrap();
    let submitted = Submitted {
        task_id: TaskId::random().to_string(),
        producer: Some(Producer::default()),
        ..bench.submitted.clone()
    };
    let log = TaskLog::new(bench.broker.clone());
    log.submit(&submitted).await.unwrap();
    let task = TaskRef::of(&submitted).unwrap();
    log.end(&task, &cancelled()).await.unwrap();
    let mut end = next(&bench.ends).await;
    while !end.subject().contains(&submitted.task_id) {
        end = next(&bench.ends).await;
    }
    // As a replica that lags behind the one that handed it out.
    let tasks = bench.broker.log("TASKS");
    assert!(tasks.remove(end.sequence()).await.unwrap());
    let service = Service::new("test");
    bench.notices(&service).await.settle(&end).await.unwrap();
    let outcomes = bench.broker.queue(exchange::OUTCOMES);
    let told = outcomes.depth("inkstone.outcome.acme.*").await.unwrap();
    let subject = format!("inkstone.outcome.acme.{}", submitted.task_id);
    assert_eq!(told, [(subject, 1)]);
}

#[tokio::test]
async fn of_several_who_see_an_end_one_gives_back() {
    let bench = Bench::start(&cancelled()).await;
    let (one, two) = (&bench.meter, meter(&bench.broker).await);
    let submitted = &bench.submitted;
    let (first, second) = tokio::join!(one.refund(submitted), two.refund(submitted));
    first.unwrap();
    second.unwrap();
    assert!(bench.charge(3).await);
    assert!(!bench.charge(1).await);
}

#[tokio::test]
async fn a_task_whose_id_comes_again_when_the_log_has_let_go_of_it_is_given_back_again() {
    let bench = Bench::start(&cancelled()).await;
    let mut at = bench.submitted.at.unwrap();
    at.seconds -= 1;
    let before = Submitted {
        at: Some(at),
        ..bench.submitted.clone()
    };
    bench.meter.refund(&before).await.unwrap();
    assert!(bench.charge(3).await);
    bench.meter.refund(&bench.submitted).await.unwrap();
    assert!(bench.charge(3).await);
}
