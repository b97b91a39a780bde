//! `inkstone demo`: everything, for one picture.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use contract::v1::SubmitTask;

use crate::cli::DemoArgs;
use crate::client::Client;
use crate::error::CliError;
use crate::follow::PATIENCE;
use crate::generate;
use crate::out::say;
use crate::place::Place;
use crate::platform::{Options, Platform};

/// Of a file name made from a prompt.
const MAX_NAME: usize = 60;

pub(crate) async fn run(data: &Path, args: &DemoArgs) -> Result<(), CliError> {
    let began = Instant::now();
    let output = args.folder.join(file_name(&args.prompt));
    let folder = &args.folder;
    std::fs::create_dir_all(folder).map_err(CliError::file("make", folder))?;
    generate::check_output(&output)?;
    let options = Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        models: Vec::new(),
        sync_always: false,
        // Only what goes wrong: the demo is about the picture.
        log: "warn".to_owned(),
        otlp_endpoint: String::new(),
    };
    // A folder of its own, so that a demo and a running platform do not meet.
    let interrupted = lifecycle::shutdown_signal().map_err(CliError::Runtime)?;
    let platform = tokio::select! {
        started = Platform::start(Place::at(&data.join("demo")), &options) => started.map_err(of_demo)?,
        () = interrupted => return Err(CliError::Interrupted),
    };
    let up = began.elapsed();
    say!(
        "five services and nats-server up in {:.1} s",
        up.as_secs_f32()
    );
    let drawn = draw(&platform, &args.prompt, &output).await;
    platform.stop().await;
    let drawn = drawn?;
    generate::tell(&drawn);
    say!("total {:.1} s", began.elapsed().as_secs_f32());
    say!("");
    say!(
        "next: make up     the platform stays up; it prints its address, a key, and lines to copy"
    );
    say!("      make demo PROMPT=\"a rocket, flat style\"");
    Ok(())
}

/// An error of the platform's start without advice that is good for `inkstone up` alone.
fn of_demo(error: CliError) -> CliError {
    match error {
        CliError::NoModels { .. } => CliError::NoDemoModel,
        error => error,
    }
}

async fn draw(
    platform: &Platform,
    prompt: &str,
    output: &Path,
) -> Result<generate::Drawn, CliError> {
    let client = Client::new(&platform.running.gateway, platform.key.clone(), None)?;
    let request = SubmitTask {
        prompt: prompt.to_owned(),
        ..SubmitTask::default()
    };
    generate::draw(&client, request, output, PATIENCE).await
}

/// `a 3d panda!` → `a-3d-panda.png`.
fn file_name(prompt: &str) -> PathBuf {
    let words = prompt
        .to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("-");
    let name: String = words.chars().take(MAX_NAME).collect();
    let name = if name.is_empty() {
        "picture".to_owned()
    } else {
        name
    };
    PathBuf::from(name + ".png")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_without_its_model_is_not_told_of_an_option_that_it_lacks() {
        let data = PathBuf::from(".inkstone/demo");
        let said = of_demo(CliError::NoModels { data }).to_string();
        assert!(said.contains("`inkstone up --model FOLDER`"), "{said}");
        assert!(matches!(of_demo(CliError::NoKey), CliError::NoKey));
    }

    #[test]
    fn a_prompt_of_any_kind_gives_a_plain_file_name() {
        assert_eq!(
            file_name("A 3D panda, on/yellow!"),
            Path::new("a-3d-panda-on-yellow.png")
        );
        assert_eq!(file_name("熊猫"), Path::new("picture.png"));
        assert_eq!(file_name("../../etc"), Path::new("etc.png"));
    }
}
