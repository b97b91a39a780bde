//! Pictures that callers send for tasks to begin from: stored once, kept while a task may need them, gone afterwards; refused before
//! anything is stored.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use contract::v1::TaskPhase;
use e2e::{LIMIT, Platform, agent, get};
use serde_json::{Value, json};

const KEEP: Duration = Duration::from_secs(2);

/// POSTs JSON as the tenant `acme`: status and answer.
fn post(platform: &Platform, path: &str, body: &Value) -> (u16, Value) {
    let answer = agent()
        .post(format!("{}{path}", platform.url()))
        .header("authorization", platform.authorization())
        .header("x-dashscope-async", "enable")
        .send_json(body);
    let mut answer = answer.unwrap();
    let status = answer.status().as_u16();
    (status, answer.body_mut().read_json().unwrap())
}

/// A picture as a `data:` URL.
fn data_url(platform: &Platform) -> String {
    let wish = json!({"prompt": "a 3d cat", "steps": 2, "seed": 7});
    let (status, answer) = post(platform, "/v1/images/generations", &wish);
    assert_eq!(status, 200, "{answer}");
    let picture = answer["data"][0]["b64_json"].as_str().unwrap();
    format!("data:image/png;base64,{picture}")
}

/// The files that callers have sent.
fn inputs(platform: &Platform) -> Vec<PathBuf> {
    let folder = platform.objects().join("inputs/acme");
    let files = std::fs::read_dir(folder).into_iter().flatten();
    files.map(|file| file.unwrap().path()).collect()
}

fn sweeps(platform: &Platform) -> f64 {
    let (_, metrics) = get(&platform.metrics_url("orchestrator"), &[]).unwrap();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("inkstone_orchestrator_input_sweeps_total"));
    line.map_or(0.0, |line| {
        line.rsplit(' ').next().unwrap().parse().unwrap()
    })
}

async fn wait_until(what: &str, mut wanted: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !wanted() {
        assert!(Instant::now() < deadline, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_to_begin_from_is_stored_once_stays_while_a_task_needs_it_and_goes_then() {
    let keep = format!("{}s", KEEP.as_secs());
    let mut platform = Platform::start_with(&[
        ("INKSTONE_ORCHESTRATOR__INPUTS__KEEP", &keep),
        ("INKSTONE_ORCHESTRATOR__INPUTS__SWEEP_EVERY", "200ms"),
    ])
    .await;
    let picture = data_url(&platform);
    platform.kill("gpu-worker");
    let wish = json!({"model": "inkstone-demo", "input": {"prompt": "a 3d dog", "ref_img": picture},
        "parameters": {"ref_strength": 0.4, "steps": 4}});
    let synthesis = "/api/v1/services/aigc/text2image/image-synthesis";
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let (status, answer) = post(&platform, synthesis, &wish);
        assert_eq!(status, 200, "{answer}");
        tasks.push(answer["output"]["task_id"].as_str().unwrap().to_owned());
    }
    let files = inputs(&platform);
    let [file] = &files[..] else {
        panic!("{files:?}");
    };
    // It has expired, and sweeps have passed it by.
    let written = std::fs::metadata(file).unwrap().modified().unwrap();
    let expired = || written.elapsed().is_ok_and(|age| age > 2 * KEEP);
    wait_until("it has expired", expired).await;
    let before = sweeps(&platform);
    wait_until("swept twice more", || sweeps(&platform) >= before + 2.0).await;
    assert!(file.is_file(), "a task that has not ended needs it");

    platform.run("gpu-worker");
    for task in &tasks {
        let task = platform.wait_ended(task).await;
        assert_eq!(task.phase(), TaskPhase::Succeeded, "{task:?}");
    }
    wait_until("the picture is gone", || inputs(&platform).is_empty()).await;
}

/// Without a worker; pictures may be fetched from this machine.
async fn start_without_worker() -> Platform {
    Platform::start_services(
        &["auth", "model-registry", "orchestrator", "gateway"],
        &[
            ("INKSTONE_GATEWAY__EGRESS__ALLOW", "[\"127.0.0.1\"]"),
            ("INKSTONE_GATEWAY__EGRESS__HTTPS_ONLY", "false"),
        ],
        false,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_is_fetched_after_its_picture() {
    let platform = start_without_worker().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1024];
        let read = stream.read(&mut head).unwrap();
        let nothing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(nothing.as_bytes()).unwrap();
        (
            listener,
            String::from_utf8_lossy(&head[..read]).into_owned(),
        )
    });
    let wish = json!({"prompt": "a 3d dog", "images": [{"image_url": format!("{place}/cat.png")}],
        "mask": {"image_url": format!("{place}/mask.png")}});
    let (status, answer) = post(&platform, "/v1/images/edits", &wish);
    assert_eq!(status, 400, "{answer}");
    assert_eq!(answer["error"]["param"], "images", "{answer}");
    let (listener, asked) = server.join().unwrap();
    assert!(asked.starts_with("GET /cat.png "), "{asked}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "the mask was asked for as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_or_fetched_for_a_request_that_would_be_refused() {
    let platform = start_without_worker().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let place = format!("http://{}/cat.png", listener.local_addr().unwrap());
    for (change, param) in [
        (json!({"size": "100x100"}), "size"),
        (json!({"model": "another"}), "model"),
        (json!({"steps": 100_000}), "steps"),
        (json!({"strength": 0}), "strength"),
        (
            json!({"mask": {"image_url": "http://10.0.0.1/mask.png"}}),
            "mask",
        ),
    ] {
        let mut wish = json!({"prompt": "a 3d dog", "images": [{"image_url": place}]});
        wish.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let (status, answer) = post(&platform, "/v1/images/edits", &wish);
        assert!(matches!(status, 400 | 404), "{status}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }
    let knocked = listener.accept().is_ok();
    assert!(!knocked, "a picture was asked for");
    assert_eq!(inputs(&platform), Vec::<PathBuf>::new());
}
