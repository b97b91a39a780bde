//! Callers, over HTTP, each with manners of its own. Whatever they ask and hear goes into the history.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::history::{History, What};
use crate::random::Random;

/// The tenant that has one task at a time.
pub(crate) const POLITE: &str = "polite";
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(20);
/// How long one stream of events is read before it is opened again.
const STREAM: Duration = Duration::from_secs(30);
/// Between two looks at a task.
const LOOK: Duration = Duration::from_millis(250);
/// After a request that failed.
const AGAIN: Duration = Duration::from_millis(500);
/// Tasks that the one with many has open.
const MANY: usize = 40;

/// How a caller behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Has many tasks open at all times, more than workers draw meanwhile.
    Flood,
    /// Has one, and waits for it.
    Polite,
    /// Cancels at random moments.
    Fickle,
    /// Names its submissions and repeats those whose answers were lost; some that were not, too.
    Keyed,
    /// Hangs on the stream of events and comes back when it breaks.
    Streaming,
}

/// The tenant that submits in peace, see [`crate::calm`].
pub(crate) const CALM: &str = "calm";

/// All of them, by their tenant's name.
pub(crate) const CALLERS: [(&str, Manner); 5] = [
    ("flood", Manner::Flood),
    (POLITE, Manner::Polite),
    ("fickle", Manner::Fickle),
    ("keyed", Manner::Keyed),
    ("streaming", Manner::Streaming),
];

/// One caller.
pub(crate) struct Caller {
    tenant: &'static str,
    bearer: String,
    gateways: Vec<String>,
    history: Arc<History>,
    random: Random,
    stop: Arc<AtomicBool>,
    agent: ureq::Agent,
    streams: ureq::Agent,
}

fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .build()
        .into()
}

fn ended(phase: &str) -> bool {
    matches!(phase, "succeeded" | "failed" | "cancelled")
}

impl Caller {
    /// One that has not begun, and ends when `stop` is true.
    pub(crate) fn new(
        tenant: &'static str,
        bearer: String,
        gateways: Vec<String>,
        history: Arc<History>,
        random: Random,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            tenant,
            bearer,
            gateways,
            history,
            random,
            stop,
            agent: agent(REQUEST),
            streams: agent(STREAM),
        }
    }

    /// Behaves so until it is told to stop, in a thread of its own.
    pub(crate) fn start(mut self, manner: Manner) -> std::io::Result<JoinHandle<()>> {
        let thread = std::thread::Builder::new().name(self.tenant.to_owned());
        thread.spawn(move || match manner {
            Manner::Flood => self.flood(),
            Manner::Polite => self.polite(),
            Manner::Fickle => self.fickle(),
            Manner::Keyed => self.keyed(),
            Manner::Streaming => self.streaming(),
        })
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, what: What) {
        self.history.note(self.tenant, what);
    }

    fn place(&mut self, path: &str) -> String {
        format!("{}{path}", self.random.pick(&self.gateways))
    }

    fn flood(&mut self) {
        let mut open = VecDeque::new();
        while !self.stopped() {
            if open.len() < MANY {
                let picture = self.picture(&[12, 30], &[1, 2]);
                match self.submit(&picture, None) {
                    Some(task) => open.push_back(task),
                    None => std::thread::sleep(AGAIN),
                }
            } else if open
                .front()
                .is_some_and(|task| self.has_ended(&task.clone()))
            {
                open.pop_front();
            } else {
                std::thread::sleep(LOOK);
            }
        }
    }

    fn polite(&mut self) {
        while !self.stopped() {
            let picture = self.picture(&[4], &[1]);
            if let Some(task) = self.submit(&picture, None) {
                self.wait(&task);
            }
            self.rest(1_000);
        }
    }

    fn fickle(&mut self) {
        while !self.stopped() {
            let picture = self.picture(&[20, 100], &[1, 2]);
            let Some(task) = self.submit(&picture, None) else {
                std::thread::sleep(AGAIN);
                continue;
            };
            self.rest(4_000);
            self.cancel(&task);
            self.wait(&task);
        }
    }

    fn keyed(&mut self) {
        let mut number = 0;
        while !self.stopped() {
            number += 1;
            let key = format!("order-{number}");
            let picture = self.picture(&[4, 20], &[1, 2]);
            let mut task = None;
            while task.is_none() && !self.stopped() {
                task = self.submit(&picture, Some(&key));
                std::thread::sleep(LOOK);
            }
            if self.random.once_in(3) {
                self.submit(&picture, Some(&key));
            }
            if let Some(task) = task {
                self.wait(&task);
            }
        }
    }

    fn streaming(&mut self) {
        while !self.stopped() {
            // Long enough to be put away and taken up again; the longest so long that without checkpoints more than a checkpoint allows
            // would be drawn again.
            let picture = self.picture(&[60, 100], &[2, 4, 10]);
            match self.submit(&picture, None) {
                Some(task) => self.watch(&task),
                None => std::thread::sleep(AGAIN),
            }
        }
    }

    /// One of few different pictures, so that many are the same and can be compared.
    fn picture(&mut self, steps: &[u32], images: &[u32]) -> Value {
        let prompts = [
            "a 3d cat on a blue background",
            "a 3d panda on a yellow background",
        ];
        json!({
            "prompt": *self.random.pick(&prompts),
            "seed": self.random.between(1, 4),
            "steps": *self.random.pick(steps),
            "images": *self.random.pick(images),
            "width": 64,
            "height": 64,
        })
    }

    /// Submits once; the task, if that was answered well.
    pub(crate) fn submit(&mut self, picture: &Value, key: Option<&str>) -> Option<String> {
        let (tenant, key) = (self.tenant.to_owned(), key.map(str::to_owned));
        let place = self.place("/v1/tasks");
        let mut request = self.agent.post(place).header("authorization", &self.bearer);
        if let Some(key) = &key {
            request = request.header("idempotency-key", key);
        }
        let asked = (tenant.clone(), key.clone());
        self.note(What::Submit {
            tenant: asked.0,
            key: asked.1,
        });
        let answer = request.send_json(picture);
        let read = answer.and_then(|mut answer| {
            let status = answer.status().as_u16();
            Ok((status, answer.body_mut().read_json::<Value>()?))
        });
        let (status, body) = match read {
            Ok(read) => read,
            Err(error) => {
                let why = error.to_string();
                self.note(What::Unanswered { why });
                return None;
            }
        };
        if status == 202
            && let Some(task) = body["id"].as_str()
        {
            let task = task.to_owned();
            self.note(What::Accepted {
                tenant,
                key,
                task: task.clone(),
            });
            return Some(task);
        }
        let code = body["code"].as_str().unwrap_or_default().to_owned();
        self.note(What::Refused { status, code });
        None
    }

    /// Cancels, as often as it takes.
    fn cancel(&mut self, task: &str) {
        while !self.stopped() && !self.try_to_cancel(task) {
            std::thread::sleep(AGAIN);
        }
    }

    /// Cancels once; true when that was answered well.
    pub(crate) fn try_to_cancel(&mut self, task: &str) -> bool {
        let place = self.place(&format!("/v1/tasks/{task}"));
        let cancel = self
            .agent
            .delete(place)
            .header("authorization", &self.bearer);
        let well = cancel.call().is_ok_and(|answer| answer.status() == 200);
        if well {
            self.note(What::Cancelled {
                task: task.to_owned(),
            });
        }
        well
    }

    /// Waits until a task has ended.
    fn wait(&mut self, task: &str) {
        while !self.stopped() && !self.has_ended(task) {
            std::thread::sleep(LOOK);
        }
    }

    /// Looks at a task once; true when it has ended.
    pub(crate) fn has_ended(&mut self, task: &str) -> bool {
        self.look(task).is_some_and(|body| self.saw(task, &body))
    }

    /// Whether a worker has a task, or had it.
    pub(crate) fn was_taken_up(&mut self, task: &str) -> bool {
        let body = self.look(task).unwrap_or_default();
        body["phase"]
            .as_str()
            .is_some_and(|phase| phase == "running" || ended(phase))
    }

    /// A task as it is shown; none where the answer was no good.
    fn look(&mut self, task: &str) -> Option<Value> {
        let place = self.place(&format!("/v1/tasks/{task}"));
        let get = self.agent.get(place).header("authorization", &self.bearer);
        let mut answer = get.call().ok()?;
        if answer.status() != 200 {
            return None;
        }
        answer.body_mut().read_json().ok()
    }

    /// Notes how a task was shown; true when it has ended.
    fn saw(&self, task: &str, body: &Value) -> bool {
        let phase = body["phase"].as_str().unwrap_or_default().to_owned();
        let ended = ended(&phase);
        let images = body["images"].as_array().into_iter().flatten();
        let digests = images.filter_map(|image| image["sha256"].as_str());
        let digests = digests.map(str::to_owned).collect();
        if ended {
            let task = task.to_owned();
            self.note(What::Seen {
                task,
                phase,
                digests,
            });
        }
        ended
    }

    /// Follows a task to its end, over as many streams as it takes.
    fn watch(&mut self, task: &str) {
        let mut last = None;
        while !self.stopped() {
            let place = self.place(&format!("/v1/tasks/{task}/events"));
            let mut request = self
                .streams
                .get(place)
                .header("authorization", &self.bearer);
            if let Some(last) = &last {
                request = request.header("last-event-id", last);
            }
            match request.call() {
                // The end was seen.
                Ok(answer) if answer.status() == 204 => return,
                Ok(answer) if answer.status() == 200 => {
                    let lines = BufReader::new(answer.into_body().into_reader()).lines();
                    for line in lines.map_while(Result::ok) {
                        if let Some(id) = line.strip_prefix("id:") {
                            last = Some(id.trim().to_owned());
                        } else if let Some(data) = line.strip_prefix("data:")
                            && let Ok(body) = serde_json::from_str::<Value>(data.trim())
                            && self.saw(task, &body)
                        {
                            return;
                        }
                        if self.stopped() {
                            return;
                        }
                    }
                }
                _ => {}
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Does nothing for so many milliseconds at most.
    fn rest(&mut self, most: u64) {
        let time = self.random.between(0, most);
        std::thread::sleep(Duration::from_millis(time));
    }
}
