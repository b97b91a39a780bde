//! A store whose disk is really full: the worker runs where a small file system is mounted for it alone, and fails as the kernel has it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use contract::task::{StoredImage, done};
use e2e::small_disk::{self, NEEDS_NAMESPACES, NEEDS_UNSHARE, unshared};
use task_log::TaskRef;

use crate::support::{Platform, files, request, until};

/// Room for pictures beside the model's files.
const ROOM: u64 = 1 << 20;
/// Mounts a file system of `$1` bytes at `$3`, with a copy of `$2` in it, and becomes `$4`.
const SCRIPT: &str = r#"mount -t tmpfs -o "size=$1" tmpfs "$3" && cp -r "$2/." "$3/" && exec "$4""#;

/// A worker in a mount namespace of its own, killed when dropped.
struct Confined {
    process: Child,
    log: PathBuf,
    /// The store as it is seen from here.
    store: PathBuf,
}

/// `program` behind the script.
fn confined(platform: &Platform, program: &str) -> Command {
    let objects = platform.folder.path().join("objects");
    let sizes = files(&objects)
        .into_iter()
        .map(|file| fs::metadata(file).unwrap().len());
    let size = sizes.sum::<u64>() + ROOM;
    let mut command = unshared(SCRIPT);
    command
        .arg(size.to_string())
        .arg(objects)
        .arg(store_of(platform))
        .arg(program);
    command
}

fn store_of(platform: &Platform) -> PathBuf {
    platform.folder.path().join("small")
}

impl Confined {
    fn start(platform: &Platform) -> Self {
        let store = store_of(platform);
        fs::create_dir(&store).unwrap();
        let tried = confined(platform, "true")
            .stderr(Stdio::piped())
            .output()
            .expect(NEEDS_UNSHARE);
        assert!(
            tried.status.success(),
            "{NEEDS_NAMESPACES}: {}",
            String::from_utf8_lossy(&tried.stderr)
        );
        let log = platform.folder.path().join("confined.log");
        let url = format!("file://{}", store.display());
        let settings = [("storage.url", &*url), ("output.patience", "500ms")];
        let process = confined(platform, env!("CARGO_BIN_EXE_inkstone-gpu-worker"))
            .envs(platform.environment(&settings))
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", process.id()));
        Self {
            store: root.join(store.strip_prefix("/").unwrap()),
            process,
            log,
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Where the store keeps an image.
    fn file(&self, image: &StoredImage) -> PathBuf {
        self.store.join(&image.key)
    }

    /// Whole files of a task's pictures, or what is taken for such.
    fn pictures(&self, task: &TaskRef) -> Vec<PathBuf> {
        let id = task.task.to_string();
        let is_its = |file: &Path| {
            let name = file.file_name().unwrap().to_string_lossy();
            name.starts_with(&id) && name.ends_with(".png")
        };
        let mut found = self.listed("images");
        found.retain(|file| is_its(file));
        found
    }

    fn listed(&self, kind: &str) -> Vec<PathBuf> {
        files(&self.store.join(kind))
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The only picture of a task that succeeds.
async fn picture(platform: &Platform, task: &TaskRef) -> StoredImage {
    let done = platform.done(task).await;
    assert_eq!(done.attempt, 1, "a full disk is no fault of the task's");
    let Some(done::Outcome::Succeeded(mut success)) = done.outcome else {
        panic!("{:?}", done.outcome);
    };
    assert_eq!(success.images.len(), 1);
    success.images.remove(0)
}

#[tokio::test]
async fn a_task_whose_picture_finds_the_disk_full_waits_and_succeeds_with_whole_bytes_once_there_is_room()
 {
    let platform = Platform::start().await;
    let worker = Confined::start(&platform);
    // The engine is there, and what it stores lies on the small disk alone.
    let before = platform.submit(request("a cat", 1, 2)).await;
    let first = picture(&platform, &before).await;
    assert_eq!(worker.pictures(&before), [worker.file(&first)]);
    assert!(platform.objects("images").is_empty());

    let filler = small_disk::fill(&worker.store);
    let task = platform.submit(request("a dog", 2, 2)).await;
    until("it is put off", async || {
        let runs = platform.record(&task).await.view().runs;
        runs.last().is_some_and(|run| run.end == "handed_back")
    })
    .await;
    assert_eq!(platform.record(&task).await.done, None);
    assert!(worker.pictures(&task).is_empty());
    let log = worker.log();
    assert!(log.contains("No space left on device"), "{log}");

    fs::remove_file(filler).unwrap();
    let image = picture(&platform, &task).await;
    let data = fs::read(worker.file(&image)).unwrap();
    assert_eq!(storage::sha256_hex(&data), image.sha256);
    let seen = imaging::inspect(&data).unwrap();
    assert_eq!((seen.width, seen.height), (128, 128));
    let data = fs::read(worker.file(&first)).unwrap();
    assert_eq!(storage::sha256_hex(&data), first.sha256, "it stayed whole");
    let left = worker.listed("images");
    assert_eq!(left.len(), 2, "no draft is left: {left:?}");
    platform.work_is_settled().await;
}
