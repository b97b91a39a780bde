//! `inkstone up`: everything, until Ctrl-C.

use std::path::Path;
use std::time::Instant;

use crate::cli::UpArgs;
use crate::error::CliError;
use crate::place::Place;
use crate::platform::{Options, Platform};

pub(crate) async fn run(data: &Path, args: &UpArgs) -> Result<(), CliError> {
    let began = Instant::now();
    let signal = lifecycle::shutdown_signal().map_err(CliError::Runtime)?;
    tokio::pin!(signal);
    let options = Options {
        listen: args.listen,
        models: args.models.clone(),
        sync_always: args.sync_always,
        log: args.log.clone(),
        otlp_endpoint: args.otlp_endpoint.clone(),
    };
    let mut platform = tokio::select! {
        started = Platform::start(Place::at(data), &options) => started?,
        // What has started so far goes down with the start that is dropped here, the broker included.
        () = &mut signal => return Ok(()),
    };
    banner(&platform, data, began);
    let failure = tokio::select! {
        () = &mut signal => None,
        failure = platform.keep() => Some(failure),
    };
    println!("stopping …");
    platform.stop().await;
    println!("stopped");
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

fn banner(platform: &Platform, data: &Path, began: Instant) {
    let url = &platform.running.gateway;
    println!();
    println!(
        "  Inkstone is up at {url}  ({:.1} s)",
        began.elapsed().as_secs_f32()
    );
    println!();
    println!("  key       {}   (in {}/key)", platform.key, data.display());
    for (service, admin) in &platform.running.admin {
        println!("  {service:<15} {admin}/metrics");
    }
    println!("  {:<15} {}", "nats-server", platform.running.broker);
    println!();
    // `make up` does not put it on the path.
    let own = std::env::current_exe().unwrap_or_else(|_| "inkstone".into());
    println!(
        "  next      {} generate \"a 3d cat on a blue background\" -o cat.png",
        own.display()
    );
    println!(
        "            curl {url}/v1/images/generations -H \"Authorization: Bearer $(cat {}/key)\" \\",
        data.display()
    );
    println!(
        "                 -H 'Content-Type: application/json' -d '{{\"prompt\":\"a 3d cat\"}}'"
    );
    println!("  stop      Ctrl-C");
    println!();
}
