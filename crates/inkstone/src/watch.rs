//! `inkstone watch`: what happens to a task, line by line, until it has ended.

use std::path::Path;

use contract::v1::{Task, TaskPhase};

use crate::cli::WatchArgs;
use crate::client::{Client, phase, wait};
use crate::error::CliError;
use crate::follow::{BACK, Follow, Heard, PATIENCE, away};
use crate::generate::not_succeeded;
use crate::out;
use crate::progress::say;

/// Fails when the task ends otherwise than with pictures.
pub(crate) async fn run(data: &Path, args: &WatchArgs) -> Result<(), CliError> {
    let client = Client::find(data, &args.server)?;
    let patience = args.patience.unwrap_or(PATIENCE);
    let follow = Follow::new(&client, &args.task, patience);
    let ended = follow
        .until_the_end(|heard| tell(client.url(), &heard))
        .await?;
    match ended.phase() {
        TaskPhase::Succeeded => Ok(()),
        _ => Err(not_succeeded(&ended)),
    }
}

fn tell(url: &str, heard: &Heard<'_>) {
    match *heard {
        Heard::Task(task) => {
            for line in lines(url, task) {
                out::say!("{line}");
            }
        }
        Heard::Steps(step, steps) => out::say!("step {step}/{steps}"),
        Heard::Away(error) => say(&away(error)),
        Heard::Back => say(BACK),
    }
}

fn lines(url: &str, task: &Task) -> Vec<String> {
    let mut lines = vec![format!("{}{}", phase(task), wait(task))];
    let images = task.images.iter();
    lines.extend(images.map(|image| format!("  {url}{}", image.path)));
    lines
}

#[cfg(test)]
mod tests {
    use contract::v1::ImageInfo;

    use super::*;

    #[test]
    fn a_wait_is_told_as_often_as_the_platform_tells_it_and_pictures_with_their_address() {
        let mut task = Task {
            queue_position: Some(2),
            estimated_wait_ms: Some(1500),
            ..Task::default()
        };
        task.set_phase(TaskPhase::Queued);
        let told = lines("http://h", &task);
        assert_eq!(told, ["queued, 2 before it, begins in about 2 s"]);
        task.estimated_wait_ms = Some(3_725_000);
        let long = "queued, 2 before it, begins in about 1 h 2 min";
        assert_eq!(lines("http://h", &task), [long]);
        task.estimated_wait_ms = Some(0);
        assert_eq!(
            lines("http://h", &task),
            ["queued, 2 before it, begins at once"]
        );
        task.queue_position = Some(1);
        task.estimated_wait_ms = None;
        assert_eq!(lines("http://h", &task), ["queued, 1 before it"]);
        let image = ImageInfo {
            path: "/v1/tasks/t/images/0".to_owned(),
            ..ImageInfo::default()
        };
        let mut task = Task {
            images: vec![image],
            ..Task::default()
        };
        task.set_phase(TaskPhase::Succeeded);
        let told = lines("http://h", &task);
        assert_eq!(told, ["succeeded", "  http://h/v1/tasks/t/images/0"]);
    }
}
