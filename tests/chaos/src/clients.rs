//! Callers, over HTTP, each with manners of its own. Whatever they ask and hear goes into the history.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, ErrorKind};
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

/// Of these, one in so many must begin within so many seconds less one: about as long as they wait, so that deadlines race with begins.
const EXPIRES: u64 = 6;
const LONGEST_EXPIRY: u64 = 16;

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

/// What an answer says besides its body.
#[derive(Default)]
struct Told {
    status: Option<u16>,
    retry_after: bool,
    /// There was none, because the connection was refused or ended.
    broken: bool,
}

impl Told {
    fn by(answer: &ureq::http::Response<ureq::Body>) -> Self {
        Self {
            status: Some(answer.status().as_u16()),
            retry_after: answer.headers().contains_key("retry-after"),
            broken: false,
        }
    }

    fn none(error: &ureq::Error) -> Self {
        let broken = match error {
            ureq::Error::Io(error) => error.kind() != ErrorKind::TimedOut,
            ureq::Error::Json(error) => error.is_io() || error.is_eof(),
            ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed => true,
            _ => false,
        };
        Self {
            broken,
            ..Self::default()
        }
    }
}

/// Of the `id` of an event: how many there were.
fn number(id: &str) -> Option<u64> {
    id.split_once('-')?.0.parse().ok()
}

/// Whether reading ended because we read no longer than so.
fn is_late(error: &std::io::Error) -> bool {
    let inner = error.get_ref();
    let inner = inner.and_then(|inner| inner.downcast_ref::<ureq::Error>());
    error.kind() == ErrorKind::TimedOut || matches!(inner, Some(ureq::Error::Timeout(_)))
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
                let mut picture = self.picture(&[12, 30], &[1, 2]);
                if self.random.once_in(EXPIRES) {
                    let seconds = self.random.between(1, LONGEST_EXPIRY);
                    picture["expires_after_seconds"] = seconds.into();
                }
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
        let since = self.history.now();
        let answer = request.send_json(picture);
        let read = answer.and_then(|mut answer| {
            let told = Told::by(&answer);
            Ok((told, answer.body_mut().read_json::<Value>()?))
        });
        let (told, body) = match read {
            Ok(read) => read,
            Err(error) => {
                self.trouble("submit", since, Told::none(&error));
                let why = error.to_string();
                self.note(What::Unanswered { why });
                return None;
            }
        };
        if told.status == Some(202)
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
        let status = told.status.unwrap_or_default();
        self.trouble("submit", since, told);
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
        let since = self.history.now();
        let told = match cancel.call() {
            Ok(answer) => Told::by(&answer),
            Err(error) => Told::none(&error),
        };
        let well = told.status == Some(200);
        if well {
            self.note(What::Cancelled {
                task: task.to_owned(),
            });
        } else {
            self.trouble("cancel", since, told);
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
        let since = self.history.now();
        let read = get.call().and_then(|mut answer| {
            let told = Told::by(&answer);
            Ok((told, answer.body_mut().read_json::<Value>()?))
        });
        match read {
            Ok((told, body)) if told.status == Some(200) => return Some(body),
            Ok((told, _)) => self.trouble("poll", since, told),
            Err(error) => self.trouble("poll", since, Told::none(&error)),
        }
        None
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
            let since = self.history.now();
            match request.call() {
                // The end was seen.
                Ok(answer) if answer.status() == 204 => return,
                Ok(answer) if answer.status() == 200 => {
                    if self.read(task, answer, since, &mut last) {
                        return;
                    }
                }
                Ok(answer) => self.trouble("stream", since, Told::by(&answer)),
                Err(error) => self.trouble("stream", since, Told::none(&error)),
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Reads a stream until it ends; true when nothing more is to be read of this task.
    fn read(
        &self,
        task: &str,
        answer: ureq::http::Response<ureq::Body>,
        since: u64,
        last: &mut Option<String>,
    ) -> bool {
        let (mut comes_back, mut says_so) = (last.as_deref().and_then(number), false);
        for line in BufReader::new(answer.into_body().into_reader()).lines() {
            let line = match line {
                Ok(line) => line,
                // Our own limit on one stream.
                Err(error) if is_late(&error) => return false,
                Err(_) => break,
            };
            if let Some(id) = line.strip_prefix("id:") {
                let id = id.trim();
                if let Some(next) = number(id)
                    && let Some(last) = comes_back.take()
                {
                    let task = task.to_owned();
                    self.note(What::Resumed { task, last, next });
                }
                *last = Some(id.to_owned());
            } else if line
                .strip_prefix("event:")
                .is_some_and(|e| matches!(e.trim(), "reconnect" | "error"))
            {
                says_so = true;
            } else if let Some(data) = line.strip_prefix("data:")
                && let Ok(body) = serde_json::from_str::<Value>(data.trim())
                && self.saw(task, &body)
            {
                return true;
            }
            if self.stopped() {
                return true;
            }
        }
        if !says_so {
            // It ended, and did not say that it is to be opened again.
            self.trouble("stream", since, Told::default());
        }
        false
    }

    fn trouble(&self, request: &str, since_ms: u64, told: Told) {
        self.note(What::Trouble {
            request: request.to_owned(),
            since_ms,
            status: told.status,
            retry_after: told.retry_after,
            broken: told.broken,
        });
    }

    /// Does nothing for so many milliseconds at most.
    fn rest(&mut self, most: u64) {
        let time = self.random.between(0, most);
        std::thread::sleep(Duration::from_millis(time));
    }
}
