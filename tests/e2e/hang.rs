//! A thread of the engine that does not come back, under `inkstone up`.

use std::collections::BTreeMap;

use crate::audit::{SOON, recorded, until};
use crate::command_line::Up;

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_whose_engine_hangs_begins_anew_and_the_task_ends_once() {
    let folder = tempfile::tempdir().unwrap();
    let hang = folder.path().join("hang");
    let picture = folder.path().join("a.png").display().to_string();
    let mut up = Up::start_on_its_port(&[
        SOON,
        ("INKSTONE_GPU_WORKER__ENGINE__KIND", "simulated"),
        ("INKSTONE_GPU_WORKER__ENGINE__SIMULATED__STEP", "50ms"),
        (
            "INKSTONE_GPU_WORKER__ENGINE__SIMULATED__HANG_FILE",
            hang.to_str().unwrap(),
        ),
        ("INKSTONE_GPU_WORKER__ENGINE__STEP_TIMEOUT", "2s"),
        ("INKSTONE_GPU_WORKER__WORKER__ACK_WAIT", "3s"),
    ]);
    std::fs::write(&hang, "").unwrap();
    let draw = ["generate", "a cat", "--steps", "20", "--patience", "5m"];
    let drawn = up.inkstone(&[&draw[..], &["-o", picture.as_str()]].concat());
    let told = String::from_utf8(drawn.stderr).unwrap();
    assert!(drawn.status.success(), "{told}\n{}", up.log());
    assert!(told.contains("away"), "{told}");
    assert!(!hang.exists());

    // The same process, begun anew.
    until("it says so", || up.ups() == 2).await;
    assert!(up.runs());
    let log = up.log();
    for part in ["does not come back", "beginning anew"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    let task = told.lines().next().unwrap().replace("task ", "");
    let record = |event: &str| ((task.clone(), event.to_owned()), 1_u32);
    let once: BTreeMap<_, _> = [record("submitted"), record("done")].into();
    let objects = up.data.path().join("objects/audit");
    until("all is recorded", || recorded(&objects).len() >= 2).await;
    assert_eq!(recorded(&objects), once);
    assert!(up.interrupt().success());
}
