//! Asking the orchestrator that serves a queue what a task of it waits for, or how many of a tenant's tasks wait: only that one knows.
//!
//! A question goes to `inkstone.wait.<partition>`, which all orchestrators hear and the partition's owner answers, to
//! `inkstone.told.<who asks>`. Neither is stored and both may be lost: who hears nothing in time has nothing to tell. Questions are few:
//! beyond a number a second, or while too many are open, they are not asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::{TaskId, TenantId};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lifecycle::Service;
use messaging::{Broker, BrokerError};
use serde::{Deserialize, Serialize};
use task_log::TaskRef;
use tokio::sync::oneshot;

use crate::partitions::Partition;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(100);
/// Questions that wait for their answers.
const MAX_OPEN: usize = 256;
/// Questions a second.
const MAX_RATE: u32 = 500;

/// Where a task stands, as far as whoever asks knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum At {
    /// Its submission lies there in the log.
    Sequence(u64),
    /// It was stored just now: behind all others.
    End,
    /// It was handed to workers.
    Workers,
}

/// What is to be known to tell a task's wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) place: TaskRef,
    pub(crate) at: At,
    /// What tasks like it take of a device, in units of work.
    pub(crate) cost: u64,
    /// Tasks of its tenant that workers may have at once.
    pub(crate) limit: Option<u64>,
}

/// What is told of a task that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Tasks of its own queue that begin before it.
    pub(crate) position: u64,
    pub(crate) wait: Option<Duration>,
}

/// A question on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    id: u64,
    to: String,
    tenant: String,
    /// Empty, like the task, where it is asked how many of the tenant's tasks wait. The version before this one leaves such a question alone.
    lane: String,
    task: String,
    at: At,
    cost: u64,
    limit: Option<u64>,
}

impl Asked {
    fn about(&self) -> Option<About> {
        if self.lane.is_empty() && self.task.is_empty() {
            return self.tenant.parse().ok().map(About::Tenant);
        }
        let place = TaskRef::parse(&self.tenant, &self.lane, &self.task).ok()?;
        Some(About::Task(Waiter {
            place,
            at: self.at,
            cost: self.cost,
            limit: self.limit,
        }))
    }
}

/// An answer on its way. Also where nothing is known: who asks waits for it.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    id: u64,
    position: Option<u64>,
    wait_ms: Option<u64>,
}

impl Told {
    fn new(id: u64, figures: Option<Figures>) -> Self {
        let wait = figures.and_then(|figures| figures.wait);
        Self {
            id,
            position: figures.map(|figures| figures.position),
            wait_ms: wait.and_then(|wait| u64::try_from(wait.as_millis()).ok()),
        }
    }

    fn figures(&self) -> Option<Figures> {
        Some(Figures {
            position: self.position?,
            wait: self.wait_ms.map(Duration::from_millis),
        })
    }
}

/// A question of another's.
#[derive(Debug)]
pub(crate) struct Question {
    id: u64,
    to: TaskId,
    pub(crate) about: About,
}

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum About {
    /// What a task waits for.
    Task(Waiter),
    /// How many tasks of a tenant wait: the position that the next one would have if all were in one queue.
    Tenant(TenantId),
}

impl About {
    /// Whose owner is asked.
    pub(crate) fn tenant(&self) -> &TenantId {
        match self {
            Self::Task(waiter) => &waiter.place.tenant,
            Self::Tenant(tenant) => tenant,
        }
    }
}

/// Who asks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Asking(Arc<Inner>);

struct Inner {
    broker: Broker,
    /// Nobody else's.
    name: TaskId,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    asked: HashMap<u64, oneshot::Sender<Option<Figures>>>,
    pace: Pace,
}

/// So many a second.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    count: u32,
}

impl Pace {
    fn lets_in(&mut self, now: Instant) -> bool {
        let is_over = |at: Instant| now.saturating_duration_since(at) >= Duration::from_secs(1);
        if self.since.is_none_or(is_over) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count += 1;
        self.count <= MAX_RATE
    }
}

impl Asking {
    /// Listens for answers for as long as the service runs. The other end hears questions, of all partitions.
    ///
    /// # Errors
    /// When they cannot be listened to.
    pub(crate) async fn start(
        service: &Service,
        broker: &Broker,
    ) -> Result<(Self, BoxStream<'static, (Partition, Question)>), BrokerError> {
        let asking = Self(Arc::new(Inner {
            broker: broker.clone(),
            name: TaskId::random(),
            open: Mutex::default(),
        }));
        let mut answers = broker.listen(subject_of(asking.0.name)).await?;
        let questions = broker.listen("inkstone.wait.*".to_owned()).await?;
        let questions = questions.filter_map(async |(subject, payload)| read(&subject, &payload));
        let (hearing, stopping) = (asking.clone(), service.tasks.stopping());
        let hear = async move {
            while let Some((_, payload)) = answers.next().await {
                hearing.hear(&payload);
            }
        };
        service.tasks.critical("answers", async move {
            tokio::select! {
                () = stopping => {}
                () = hear => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        Ok((asking, questions.boxed()))
    }

    /// What the partition's owner tells; `None` when it tells nothing in time.
    pub(crate) async fn ask(&self, partition: Partition, about: About) -> Option<Figures> {
        let (id, answered) = self.enter()?;
        let to = self.0.name.to_string();
        let asked = match about {
            About::Task(waiter) => Asked {
                id,
                to,
                tenant: waiter.place.tenant.to_string(),
                lane: waiter.place.lane.to_string(),
                task: waiter.place.task.to_string(),
                at: waiter.at,
                cost: waiter.cost,
                limit: waiter.limit,
            },
            About::Tenant(tenant) => Asked {
                id,
                to,
                tenant: tenant.to_string(),
                lane: String::new(),
                task: String::new(),
                at: At::End,
                cost: 0,
                limit: None,
            },
        };
        // Plain data: there is nothing in it that JSON has no words for.
        let payload = serde_json::to_vec(&asked).unwrap_or_default();
        let subject = format!("inkstone.wait.{partition}");
        self.0.broker.tell(subject, payload.into()).await;
        let answer = tokio::time::timeout(PATIENCE, answered).await;
        self.open().asked.remove(&id);
        answer.ok()?.ok()?
    }

    fn enter(&self) -> Option<(u64, oneshot::Receiver<Option<Figures>>)> {
        let mut open = self.open();
        // Those whose askers have gone away are not waited for.
        if open.asked.len() >= MAX_OPEN {
            open.asked.retain(|_, answer| !answer.is_closed());
        }
        if open.asked.len() >= MAX_OPEN || !open.pace.lets_in(Instant::now()) {
            return None;
        }
        open.last += 1;
        let id = open.last;
        let (answer, answered) = oneshot::channel();
        open.asked.insert(id, answer);
        Some((id, answered))
    }

    fn hear(&self, payload: &[u8]) {
        let Ok(told) = serde_json::from_slice::<Told>(payload) else {
            return;
        };
        if let Some(answer) = self.open().asked.remove(&told.id) {
            // Whoever asked may be gone.
            let _ = answer.send(told.figures());
        }
    }

    /// Answers another's question.
    pub(crate) async fn answer(&self, question: &Question, figures: Option<Figures>) {
        let told = Told::new(question.id, figures);
        let payload = serde_json::to_vec(&told).unwrap_or_default();
        let subject = subject_of(question.to);
        self.0.broker.tell(subject, payload.into()).await;
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Every change leaves it whole.
        self.0.open.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn subject_of(name: TaskId) -> String {
    format!("inkstone.told.{name}")
}

fn read(subject: &str, payload: &[u8]) -> Option<(Partition, Question)> {
    let partition = subject.rsplit('.').next()?.parse().ok()?;
    let asked: Asked = serde_json::from_slice(payload).ok()?;
    let question = Question {
        id: asked.id,
        to: asked.to.parse().ok()?,
        about: asked.about()?,
    };
    Some((partition, question))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_written_and_what_is_none_is_left_alone() {
        let (to, task) = (TaskId::random(), TaskId::random());
        let asked = Asked {
            id: 7,
            to: to.to_string(),
            tenant: "acme".to_owned(),
            lane: "standard-image".to_owned(),
            task: task.to_string(),
            at: At::Sequence(9),
            cost: 5,
            limit: None,
        };
        let payload = serde_json::to_vec(&asked).unwrap();
        let (partition, question) = read("inkstone.wait.3", &payload).unwrap();
        assert_eq!((partition, question.id, question.to), (3, 7, to));
        let About::Task(waiter) = question.about else {
            panic!("{question:?}");
        };
        assert_eq!((waiter.place.task, waiter.at), (task, At::Sequence(9)));
        assert!(read("inkstone.wait.x", &payload).is_none());
        assert!(read("inkstone.wait.3", b"{}").is_none());
        let of_tenant = Asked {
            lane: String::new(),
            task: String::new(),
            ..asked
        };
        let payload = serde_json::to_vec(&of_tenant).unwrap();
        let (_, question) = read("inkstone.wait.3", &payload).unwrap();
        assert_eq!(question.about, About::Tenant("acme".parse().unwrap()));
        let half = Asked {
            task: task.to_string(),
            ..of_tenant
        };
        let payload = serde_json::to_vec(&half).unwrap();
        assert!(read("inkstone.wait.3", &payload).is_none());
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let figures = |position, wait_ms: Option<u64>| Figures {
            position,
            wait: wait_ms.map(Duration::from_millis),
        };
        for figures in [
            None,
            Some(figures(7, None)),
            Some(figures(0, Some(0))),
            Some(figures(9, Some(1234))),
        ] {
            let payload = serde_json::to_vec(&Told::new(3, figures)).unwrap();
            let told: Told = serde_json::from_slice(&payload).unwrap();
            assert_eq!((told.id, told.figures()), (3, figures));
        }
    }

    #[test]
    fn so_many_are_asked_a_second_and_no_more() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let let_in = (0..2 * MAX_RATE).filter(|_| pace.lets_in(now)).count();
        assert_eq!(let_in, MAX_RATE as usize);
        assert!(pace.lets_in(now + Duration::from_secs(1)));
    }
}
