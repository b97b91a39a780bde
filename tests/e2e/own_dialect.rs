//! Our own dialect: streams that go on, feedback, and lists with filters.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use e2e::{LIMIT, Platform, SECOND, agent};
use serde_json::{Value, json};

use crate::{long_picture, short_picture};

/// A caller with a key.
struct Caller {
    url: String,
    bearer: String,
}

/// An event as a client reads it.
#[derive(Debug, Default)]
struct Event {
    name: String,
    id: String,
    /// Milliseconds.
    retry: Option<u64>,
    data: Value,
}

impl Event {
    /// How many there were, as its id says.
    fn number(&self) -> u64 {
        self.id.split_once('-').unwrap().0.parse().unwrap()
    }
}

impl Caller {
    fn of(platform: &Platform) -> Self {
        Self::at(platform, "gateway")
    }

    fn at(platform: &Platform, gateway: &str) -> Self {
        Self {
            url: platform.url_of(gateway),
            bearer: platform.authorization(),
        }
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let place = format!("{}{path}", self.url);
        let (status, body) = e2e::get(&place, &[("authorization", &self.bearer)]).unwrap();
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = agent()
            .post(format!("{}{path}", self.url))
            .header("authorization", &self.bearer)
            .send_json(body);
        let mut answer = answer.unwrap();
        let status = answer.status().as_u16();
        (status, answer.body_mut().read_json().unwrap())
    }

    /// The status of a stream of events, and the id and data of each that it has.
    fn events(&self, task: &str, last: Option<&str>) -> (u16, Vec<(String, Value)>) {
        let mut events = Vec::new();
        let status = self.follow(task, last, |event| events.push((event.id, event.data)));
        (status, events)
    }

    /// The status of a stream of events; `each` has those that it holds as they come, until it ends.
    fn follow(&self, task: &str, last: Option<&str>, mut each: impl FnMut(Event)) -> u16 {
        let mut request = agent()
            .get(format!("{}/v1/tasks/{task}/events", self.url))
            .header("authorization", &self.bearer);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.call().unwrap();
        let status = answer.status().as_u16();
        let mut event = Event::default();
        let lines = BufReader::new(answer.into_body().into_reader()).lines();
        for line in lines.map_while(Result::ok) {
            let Some((field, value)) = line.split_once(':') else {
                // A blank line ends an event; one behind a comment ends none.
                if !event.name.is_empty() {
                    each(std::mem::take(&mut event));
                }
                continue;
            };
            let value = value.trim();
            match field {
                "event" => value.clone_into(&mut event.name),
                "id" => value.clone_into(&mut event.id),
                "retry" => event.retry = Some(value.parse().unwrap()),
                "data" => event.data = serde_json::from_str(value).unwrap(),
                _ => {}
            }
        }
        status
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_behind_the_last_event_that_was_seen() {
    let platform = Platform::start().await;
    let caller = Caller::of(&platform);
    let task = platform.submit(short_picture()).await.unwrap().id;
    let (status, events) = caller.events(&task, None);
    assert_eq!(status, 200);
    let (last, end) = events.last().unwrap();
    assert_eq!(end["phase"], "succeeded");
    let count = events.len();
    assert!(last.starts_with(&format!("{count}-")), "{last}");
    // Whoever saw the end has nothing to come back for, …
    let (status, again) = caller.events(&task, Some(last));
    assert_eq!((status, again.len()), (204, 0));
    // … and whoever saw less hears of the rest, under numbers that go on.
    let (status, rest) = caller.events(&task, Some(&events[0].0));
    assert_eq!((status, rest.len()), (200, 1));
    assert!(rest[0].0.starts_with("2-"), "{rest:?}");
    assert_eq!(&rest[0].1, end);
    // An id of somebody else's make is none.
    let (status, whole) = caller.events(&task, Some("77"));
    assert_eq!((status, whole.len()), (200, 1));
    assert!(whole[0].0.starts_with("1-"), "{whole:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_gateway_that_stops_says_so_and_another_gateway_goes_on_behind_its_last_event()
 {
    let drain = ("INKSTONE_GATEWAY__HTTP__DRAIN", "200ms");
    let mut platform = Platform::start_with(&[drain]).await;
    for instance in SECOND {
        platform.run(instance);
        platform.wait_ready(instance);
    }
    let picture = contract::v1::SubmitTask {
        images: 4,
        ..long_picture()
    };
    let task = platform.submit(picture).await.unwrap().id;
    let (first, second) = (Caller::of(&platform), Caller::at(&platform, "gateway-2"));
    let (sender, events) = mpsc::channel();
    let followed = task.clone();
    let reading = std::thread::spawn(move || {
        // Nobody listens any more where the test has failed.
        first.follow(&followed, None, |event| drop(sender.send(event)))
    });
    let mut seen: Vec<Event> = Vec::new();
    while seen.last().is_none_or(|event| event.name != "progress") {
        seen.push(events.recv_timeout(LIMIT).unwrap());
    }
    assert!(platform.terminate("gateway"), "{}", platform.log("gateway"));
    assert_eq!(reading.join().unwrap(), 200);
    seen.extend(events);
    let hint = seen.pop().unwrap();
    assert_eq!(hint.name, "reconnect", "{hint:?}");
    assert_eq!(hint.retry, Some(2_000));
    assert_eq!(hint.data["code"], "unavailable");
    assert_eq!(hint.data["task_id"], task);
    assert!(seen.iter().all(|event| event.name != "error"), "{seen:?}");

    let mut rest = Vec::new();
    let status = second.follow(&task, Some(&hint.id), |event| rest.push(event));
    assert_eq!(status, 200);
    let all: Vec<&Event> = seen.iter().chain([&hint]).chain(&rest).collect();
    // None is missing and none comes twice, …
    for (event, number) in all.iter().zip(1..) {
        assert_eq!(event.number(), number, "{event:?}");
    }
    // … and no state of the task is shown again.
    let states: Vec<_> = all.iter().filter(|event| event.name == "task").collect();
    let different: HashSet<_> = states.iter().map(|event| event.data.to_string()).collect();
    assert_eq!(different.len(), states.len(), "{states:?}");
    let end = rest.last().unwrap();
    assert_eq!(end.data["phase"], "succeeded", "{end:?}");
    assert_eq!(second.events(&task, Some(&end.id)).0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_rated_and_tasks_found_by_filters_a_page_at_a_time() {
    let platform = Platform::start_with(&[("INKSTONE_GPU_WORKER__WORKER__SLOTS", "1")]).await;
    let caller = Caller::of(&platform);
    let mut done = Vec::new();
    for _ in 0..3 {
        let task = platform.submit(short_picture()).await.unwrap();
        platform.wait_ended(&task.id).await;
        done.insert(0, task.id);
    }
    let waiting = platform.submit(long_picture()).await.unwrap().id;
    let feedback = json!({"rating": 4, "comment": "the whiskers", "tags": ["sharp"]});
    let (status, rated) = caller.post(&format!("/v1/tasks/{}/feedback", done[0]), &feedback);
    assert_eq!((status, &rated["feedback"]["rating"]), (200, &json!(4)));
    let (_, read) = caller.get(&format!("/v1/tasks/{}", done[0]));
    assert_eq!(read["feedback"]["comment"], "the whiskers");
    let (status, problem) = caller.post(&format!("/v1/tasks/{waiting}/feedback"), &feedback);
    assert_eq!((status, &problem["code"]), (409, &json!("not_ready")));
    let ids = |page: &Value| -> Vec<String> {
        let tasks = page["data"].as_array().unwrap().iter();
        tasks
            .map(|task| task["id"].as_str().unwrap().to_owned())
            .collect()
    };
    // Two of the three that have ended, and the third behind them.
    let filters = "/v1/tasks?model=inkstone-demo&phase=succeeded&page_size=2";
    let (mut found, mut place) = (Vec::new(), filters.to_owned());
    loop {
        let (status, page) = caller.get(&place);
        assert_eq!(status, 200, "{page}");
        assert!(ids(&page).len() <= 2);
        found.extend(ids(&page));
        let Some(next) = page["next_page_token"].as_str() else {
            break;
        };
        place = format!("{filters}&page_token={next}");
        // With other filters, what the token says would mean something else.
        let (status, problem) = caller.get(&format!("/v1/tasks?phase=failed&page_token={next}"));
        assert_eq!((status, &problem["field"]), (400, &json!("page_token")));
    }
    assert_eq!(found, done);
    let (_, first) = caller.get(&format!("/v1/tasks/{}", done[2]));
    let submitted = first["submitted_at"].as_str().unwrap();
    let (_, none) = caller.get(&format!("/v1/tasks?created_before={submitted}"));
    assert_eq!(ids(&none), Vec::<String>::new());
    let (_, all) = caller.get(&format!("/v1/tasks?created_after={submitted}&limit=100"));
    assert_eq!(ids(&all).len(), 4);
    let (status, problem) = caller.get("/v1/tasks?modle=x");
    assert_eq!((status, &problem["field"]), (400, &json!("modle")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_sent_whole_and_its_head_and_what_is_known_already_without_reading_it() {
    let platform = Platform::start().await;
    let task = platform.submit(short_picture()).await.unwrap().id;
    platform.wait_ended(&task).await;
    let stored = platform.picture(&task, 0);
    let file = std::fs::read(&stored).unwrap();
    let place = format!("{}/v1/tasks/{task}/images/0", platform.url());
    let ask = |method: &str, known: &str| {
        let request = hyper::Request::builder()
            .method(method)
            .uri(&place)
            .header("authorization", platform.authorization())
            .header("if-none-match", known);
        let mut answer = agent().run(request.body(()).unwrap()).unwrap();
        let body = answer.body_mut().read_to_vec().unwrap();
        (answer.status().as_u16(), answer.headers().clone(), body)
    };
    let (status, whole, body) = ask("GET", "\"other\"");
    assert_eq!((status, body == file), (200, true));
    let tag = whole["etag"].to_str().unwrap().to_owned();
    assert_eq!(whole["content-length"], file.len().to_string());
    let (status, head, body) = ask("HEAD", "\"other\"");
    assert_eq!((status, body.len()), (200, 0));
    for name in [
        "etag",
        "content-length",
        "content-type",
        "cache-control",
        "content-disposition",
    ] {
        assert_eq!(head[name], whole[name], "{name}");
    }
    // Where the file is gone, whoever has it hears so all the same: it is not asked for.
    std::fs::remove_file(&stored).unwrap();
    for method in ["GET", "HEAD"] {
        let (status, known, body) = ask(method, &format!("\"x\", W/{tag}"));
        assert_eq!((status, body.len()), (304, 0), "{method}");
        assert_eq!(known["etag"], tag.as_str());
        assert_eq!(ask(method, "\"other\"").0, 404, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_use_a_model_by_an_alias_only_is_told_no_other_name_of_it_in_any_dialect() {
    let platform = Platform::start().await;
    let key = platform.create_key("test-", "acme").await;
    let caller = Caller {
        bearer: format!("Bearer {}", key.bearer),
        ..Caller::of(&platform)
    };
    let began = Instant::now();
    let mut models = caller.get("/v1/models");
    while models.0 == 401 {
        assert!(began.elapsed() < LIMIT, "the key is not known");
        tokio::time::sleep(Duration::from_millis(20)).await;
        models = caller.get("/v1/models");
    }
    assert_eq!(models.1["data"][0]["id"], "t2i-basic", "{models:?}");
    // One that leaves the model open, and one that names it.
    let open = json!({"prompt": "a 3d cat", "steps": 2});
    let submitted = caller.post("/v1/tasks", &open);
    assert_eq!(submitted.1["model"], "t2i-basic", "{submitted:?}");
    let prompt = json!({"name": "PROMPT", "datatype": "BYTES", "shape": [1], "data": ["a 3d cat"]});
    let steps = json!({"name": "STEPS", "datatype": "INT32", "shape": [1], "data": [2]});
    let inputs = json!({"inputs": [prompt, steps]});
    let drawn = caller.post("/v2/models/t2i-basic/infer", &inputs);
    assert_eq!(drawn.1["model_name"], "t2i-basic", "{drawn:?}");
    let listed = caller.get("/v1/tasks?model=t2i-basic");
    assert_eq!(listed.1["data"].as_array().unwrap().len(), 2, "{listed:?}");
    let polled = caller.get("/api/v1/tasks");
    assert_eq!(polled.1["data"][0]["model_name"], "t2i-basic", "{polled:?}");
    for (status, answer) in [models, submitted, drawn, listed, polled] {
        assert!(status < 300, "{status} {answer}");
        assert!(!answer.to_string().contains("inkstone-demo"), "{answer}");
    }
}
