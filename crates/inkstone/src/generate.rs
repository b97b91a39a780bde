//! `inkstone generate`: submit, show progress, fetch, write.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use contract::v1::{
    GetImageRequest, OutputFormat, PromptSyntax, SubmitRequest, SubmitTask, Task, TaskPhase,
};
use rustix::fs::{Access, access};

use crate::cli::GenerateArgs;
use crate::client::{Client, phase};
use crate::error::CliError;
use crate::follow::{Follow, PATIENCE};
use crate::out::{complain, say};
use crate::progress::Progress;

/// Pictures that were drawn and written.
pub(crate) struct Drawn {
    pub(crate) task: Task,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) took: Duration,
}

pub(crate) async fn run(data: &Path, args: &GenerateArgs) -> Result<(), CliError> {
    let request = request(args)?;
    check_output(&args.output)?;
    let client = Client::find(data, &args.server)?;
    let patience = args.patience.unwrap_or(PATIENCE);
    let drawn = draw(&client, request, &args.output, patience).await?;
    tell(&drawn);
    Ok(())
}

/// Says what was drawn and where it is.
pub(crate) fn tell(drawn: &Drawn) {
    let request = drawn.task.request.clone().unwrap_or_default();
    for (file, image) in drawn.files.iter().zip(&drawn.task.images) {
        say!(
            "{}  {}×{} · seed {} · {} {} · {} steps · {:.2} s",
            file.display(),
            image.width,
            image.height,
            image.seed,
            request.model,
            drawn.task.model_version,
            request.steps,
            drawn.took.as_secs_f32(),
        );
    }
}

fn request(args: &GenerateArgs) -> Result<SubmitTask, CliError> {
    let (width, height) = args.size.unwrap_or_default();
    let mut request = SubmitTask {
        model: args.model.clone(),
        prompt: args.prompt.clone(),
        negative_prompt: args.negative.clone(),
        width,
        height,
        images: args.n,
        seed: args.seed,
        // 0 is the model's.
        steps: args.steps.unwrap_or_default(),
        guidance_scale: args.guidance,
        guidance_rescale: args.guidance_rescale,
        visible_label: args.visible_label,
        ..SubmitTask::default()
    };
    let extension = args
        .output
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    request.set_output_format(match extension.to_lowercase().as_str() {
        "jpg" | "jpeg" => OutputFormat::Jpeg,
        "webp" => OutputFormat::Webp,
        "png" | "" => OutputFormat::Png,
        _ => {
            let path = args.output.clone();
            return Err(CliError::Extension { path });
        }
    });
    request.set_scheduler(args.scheduler.unwrap_or_default());
    if args.weighted {
        request.set_prompt_syntax(PromptSyntax::Weighted);
    }
    Ok(request)
}

/// Draws and writes to `output`. Ctrl-C cancels the task before it gives up.
pub(crate) async fn draw(
    client: &Client,
    request: SubmitTask,
    output: &Path,
    patience: Duration,
) -> Result<Drawn, CliError> {
    let began = Instant::now();
    let interrupted = lifecycle::shutdown_signal().map_err(CliError::Runtime)?;
    let submit = client.request(SubmitRequest {
        task: Some(request),
    })?;
    let task = client.call(client.service().submit(submit)).await?.task;
    let task = task.ok_or(CliError::Answer("a submission without a task"))?;
    let mut progress = Progress::of(&task.id);
    let follow = Follow::of(client, &task, patience);
    let ended = tokio::select! {
        ended = follow.until_the_end(|heard| progress.tell(heard)) => Some(ended),
        () = interrupted => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            progress.cancelling();
            client.cancel(&task.id).await
        }
    };
    progress.finish();
    let ended = ended?;
    if ended.phase() != TaskPhase::Succeeded {
        return Err(not_succeeded(&ended));
    }
    let mut files = Vec::new();
    for image in &ended.images {
        let fetch = client.request(GetImageRequest {
            task_id: ended.id.clone(),
            index: image.index,
        })?;
        let data = client.call(client.service().get_image(fetch)).await?.data;
        let path = numbered(output, image.index, ended.images.len());
        write(&path, &data).inspect_err(|_| kept(&ended.id))?;
        files.push(path);
    }
    Ok(Drawn {
        task: ended,
        files,
        took: began.elapsed(),
    })
}

/// Says where pictures still are that could not be written.
fn kept(task: &str) {
    complain!("task {task} was drawn; its pictures stay at the platform: GET /v1/tasks/{task}");
}

pub(crate) fn not_succeeded(task: &Task) -> CliError {
    let reason = task
        .error
        .as_ref()
        .map(|e| format!(": {} [{}]", e.message, e.code));
    let phase = phase(task);
    CliError::Ended {
        task: task.id.clone(),
        cancelled: task.phase() == TaskPhase::Cancelled,
        how: match task.phase() {
            TaskPhase::Cancelled => "was cancelled".to_owned(),
            _ => format!("{phase}{}", reason.unwrap_or_default()),
        },
    }
}

/// `cat.png` for one picture; `cat-0.png`, `cat-1.png`, … for several.
fn numbered(output: &Path, index: u32, of: usize) -> PathBuf {
    if of == 1 {
        return output.to_owned();
    }
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let extension = output
        .extension()
        .map(|e| format!(".{}", e.to_string_lossy()));
    output.with_file_name(format!("{stem}-{index}{}", extension.unwrap_or_default()))
}

/// Before anything is drawn: what cannot be written would be drawn, and charged, for nobody. A folder is not made: one that is not there
/// is misspelt more often than wished.
pub(crate) fn check_output(output: &Path) -> Result<(), CliError> {
    // Elsewhere this is the standard output, which here has the line about the picture.
    if output.as_os_str() == "-" {
        return Err(CliError::OutputStream);
    }
    if output.is_dir() {
        let path = output.to_owned();
        return Err(CliError::OutputFolder { path });
    }
    let folder = output.parent().filter(|f| !f.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(CliError::file("look into", folder)(error));
        }
        _ => {
            return Err(CliError::NoOutputFolder {
                output: output.to_owned(),
                folder: folder.to_owned(),
            });
        }
    }
    let permitted = match output.exists() {
        true => access(output, Access::WRITE_OK),
        false => access(folder, Access::WRITE_OK | Access::EXEC_OK),
    };
    permitted.map_err(|error| CliError::file("write", output)(error.into()))
}

fn write(path: &Path, data: &[u8]) -> Result<(), CliError> {
    check_output(path)?;
    std::fs::write(path, data).map_err(CliError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_no_place_for_a_picture_and_neither_is_one_that_is_not_there() {
        let root = tempfile::tempdir().unwrap();
        let refused = check_output(root.path()).unwrap_err().to_string();
        assert!(refused.contains("is a folder"), "{refused}");
        let refused = check_output(Path::new("-")).unwrap_err().to_string();
        assert!(refused.contains("into a file"), "{refused}");
        check_output(Path::new("./-")).unwrap();
        let output = root.path().join("a/b/cat.png");
        let refused = check_output(&output).unwrap_err().to_string();
        let folder = root.path().join("a/b").display().to_string();
        assert!(refused.contains(&folder), "{refused}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        check_output(&output).unwrap();
        write(&output, b"x").unwrap();
        assert!(check_output(&output.join("cat.png")).is_err());
    }

    #[test]
    fn several_pictures_are_numbered_before_the_extension() {
        assert_eq!(
            numbered(Path::new("a/cat.png"), 0, 1),
            Path::new("a/cat.png")
        );
        assert_eq!(
            numbered(Path::new("a/cat.png"), 2, 3),
            Path::new("a/cat-2.png")
        );
        assert_eq!(numbered(Path::new("cat"), 1, 3), Path::new("cat-1"));
    }
}
