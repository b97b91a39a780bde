//! Tasks that nothing disturbs.

use contract::task::progress_event::Event;
use contract::v1::{OutputFormat, SubmitTask, TaskPhase};
use gpu_worker::WorkerRecord;
use messaging::Bucket;
use task_log::Update;

use crate::support::{MODEL, Platform, request, stop, until};

#[tokio::test]
async fn a_task_ends_with_pictures_whose_bytes_are_in_the_store() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[]).await;
    let request = SubmitTask {
        images: 2,
        partial_images: 2,
        ..request("a 3d cat on a blue background", 7, 12)
    };
    let task = platform.submit_only(request).await;
    let mut watch = platform
        .log
        .watch(&task.tenant, task.task)
        .await
        .unwrap()
        .unwrap();
    let record = platform.record(&task).await;
    platform
        .log
        .dispatch(&record.submitted, 1, 1)
        .await
        .unwrap();

    let (mut steps, mut previews) = (Vec::new(), Vec::new());
    while let Some(update) = watch.next().await.unwrap() {
        let Update::Progress(event) = update else {
            continue;
        };
        match event.event {
            Some(Event::Progress(progress)) => steps.push((progress.step, progress.steps)),
            Some(Event::Preview(preview)) => previews.push(preview),
            None => {}
        }
    }
    assert!(
        steps.windows(2).all(|pair| pair[0].0 <= pair[1].0),
        "{steps:?}"
    );
    assert!(!steps.is_empty());
    assert!(steps.iter().all(|&(_, steps)| steps == 24), "{steps:?}");
    assert!(!previews.is_empty());
    for preview in &previews {
        let seen = imaging::inspect(&preview.data).unwrap();
        assert_eq!((seen.width, seen.height), (128, 128));
    }

    let pictures = platform.pictures(&task).await;
    assert_eq!(pictures.len(), 2);
    for (index, (image, data)) in pictures.iter().enumerate() {
        assert_eq!(
            (image.index as usize, image.seed),
            (index, 7 + index as u64)
        );
        assert_eq!(image.sha256, storage::sha256_hex(data));
        let found = imaging::inspect(data).unwrap();
        assert_eq!((found.width, found.height), (image.width, image.height));
        let label = found.label.unwrap();
        assert_eq!(
            (label.label.as_str(), label.content_producer.as_str()),
            ("1", "inkstone")
        );
    }
    assert_ne!(pictures[0].1, pictures[1].1);
    let record = platform.record(&task).await;
    assert_eq!(
        (record.phase(), record.attempts()),
        (TaskPhase::Succeeded, 1)
    );
    platform.work_is_settled().await;
    assert!(platform.dead_letters().await.is_empty());
    stop(worker).await;
}

#[tokio::test]
async fn a_picture_so_small_that_it_is_encoded_at_once_is_stored_like_any_other() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[]).await;
    let request = SubmitTask {
        width: 64,
        height: 64,
        ..request("a 3d cat", 7, 2)
    };
    let task = platform.submit(request).await;
    let pictures = platform.pictures(&task).await;
    let (image, data) = &pictures[0];
    assert_eq!(image.sha256, storage::sha256_hex(data));
    let found = imaging::inspect(data).unwrap();
    assert_eq!((found.width, found.height), (64, 64));
    assert_eq!(found.label.unwrap().label, "1");
    stop(worker).await;
}

/// Where two pictures of one task's pixels differ: none, or all of it in the lower right quarter.
fn differ_in_the_corner(plain: &[u8], labelled: &[u8]) -> bool {
    let pixels = |file: &[u8]| imaging::decode(file, 1 << 20).unwrap();
    let ((width, height, plain), (.., labelled)) = (pixels(plain), pixels(labelled));
    let pairs = plain.chunks(3).zip(labelled.chunks(3)).enumerate();
    let other: Vec<usize> = pairs.filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
    for i in &other {
        let (x, y) = (i % width as usize, i / width as usize);
        assert!(x > width as usize / 3 && y > height as usize / 2, "{x} {y}");
    }
    !other.is_empty()
}

#[tokio::test]
async fn a_picture_has_a_label_to_be_seen_where_its_request_or_the_worker_says_so_and_is_the_same_elsewhere()
 {
    let platform = Platform::start().await;
    let asking = |visible_label| SubmitTask {
        visible_label,
        ..request("a red car", 3, 4)
    };
    let file = async |asked: bool| {
        let task = platform.submit(asking(asked)).await;
        platform.pictures(&task).await.remove(0).1
    };
    let worker = platform.worker(&[]).await;
    let (plain, labelled) = (file(false).await, file(true).await);
    assert!(differ_in_the_corner(&plain, &labelled));
    // As every file says it in its metadata. They are two pictures.
    let [one, other] = [&plain, &labelled].map(|file| {
        let label = imaging::inspect(file).unwrap().label.unwrap();
        assert_eq!(label.label, "1");
        label.produce_id
    });
    assert_ne!(one, other);
    stop(worker).await;
    let worker = platform.worker(&[("label.always_visible", "true")]).await;
    assert_eq!(file(false).await, labelled);
    stop(worker).await;
}

#[tokio::test]
async fn the_same_seed_twice_gives_the_same_bytes_whoever_shares_the_steps() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[]).await;
    let webp = |seed| SubmitTask {
        output_format: OutputFormat::Webp.into(),
        ..request("a red car", seed, 8)
    };
    let first = platform.pictures(&platform.submit(webp(3)).await).await;
    let (other, second) = (
        platform.submit(webp(4)).await,
        platform.submit(webp(3)).await,
    );
    assert_ne!(platform.pictures(&other).await[0].1, first[0].1);
    let second = platform.pictures(&second).await;
    assert_eq!(second[0].1, first[0].1);
    let image = &second[0].0;
    let name = format!("-0.{}.webp", &image.sha256[..16]);
    assert!(image.key.ends_with(&name), "{}", image.key);
    stop(worker).await;
}

#[tokio::test]
async fn a_worker_is_in_the_fleet_while_it_runs() {
    let platform = Platform::start().await;
    let worker = platform.worker(&[("worker.name", "painter")]).await;
    let age = std::time::Duration::from_secs(15);
    let fleet: Bucket<WorkerRecord> = platform.broker.bucket("WORKERS", age).await.unwrap();
    until("the record names the model", async || {
        let record = fleet.get("painter").await.unwrap();
        record.is_some_and(|entry| entry.value.models == [format!("{MODEL}/1")])
    })
    .await;
    stop(worker).await;
    assert_eq!(fleet.get("painter").await.unwrap(), None);
}

#[tokio::test]
async fn a_worker_that_stops_does_not_take_a_namesake_out_of_the_fleet() {
    let platform = Platform::start().await;
    let first = platform.worker(&[("worker.name", "painter")]).await;
    let age = std::time::Duration::from_secs(15);
    let fleet: Bucket<WorkerRecord> = platform.broker.bucket("WORKERS", age).await.unwrap();
    let slots = async || {
        let record = fleet.get("painter").await.unwrap();
        record.map(|entry| entry.value.slots)
    };
    until("it is there", async || slots().await.is_some()).await;
    let namesake = [("worker.name", "painter"), ("worker.slots", "7")];
    let second = platform.worker(&namesake).await;
    until("its namesake is", async || slots().await == Some(7)).await;
    stop(first).await;
    assert!(slots().await.is_some(), "it stays");
    stop(second).await;
}
