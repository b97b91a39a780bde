//! `inkstone doctor`: whether this machine and a running platform have what they need, and what to do if not.

use std::path::Path;

use contract::v1::{ListModelsRequest, ListRequest};

use crate::cli::ServerArgs;
use crate::client::Client;
use crate::error::CliError;
use crate::place::Place;

pub(crate) async fn run(data: &Path, server: &ServerArgs) -> Result<(), CliError> {
    let mut failed = 0;
    let mut report = |what: &str, result: Result<String, String>| match result {
        Ok(detail) => println!("  ok    {what:<12} {detail}"),
        Err(problem) => {
            failed += 1;
            println!("  FAIL  {what:<12} {problem}");
        }
    };
    let nats = nats_server::find().map_err(|e| e.to_string());
    report("nats-server", nats.map(|path| path.display().to_string()));
    let place = Place::at(data);
    let writable = std::fs::create_dir_all(place.folder())
        .and_then(|()| tempfile_in(place.folder()))
        .map_err(|e| format!("{} cannot be written: {e}", data.display()));
    report(
        "data folder",
        writable.map(|()| place.folder().display().to_string()),
    );
    match Client::find(data, server) {
        Ok(client) => {
            let url = client.url().to_owned();
            let models = client.request(ListModelsRequest {})?;
            let models = client.call(client.service().list_models(models)).await;
            let models = models.map_err(|e| format!("{url}: {e}"));
            report(
                "key",
                models
                    .as_ref()
                    .map(|_| format!("accepted by {url}"))
                    .map_err(Clone::clone),
            );
            let names = models.map(|answer| {
                let names: Vec<_> = answer.models.into_iter().map(|m| m.name).collect();
                names.join(", ")
            });
            report("models", names);
            let list = client.request(ListRequest::default())?;
            let list = client.call(client.service().list(list)).await;
            report(
                "task log",
                list.map(|_| "answers".to_owned())
                    .map_err(|e| e.to_string()),
            );
        }
        Err(error) => report("platform", Err(error.to_string())),
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(CliError::Unwell(failed))
    }
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!("doctor-{}", std::process::id()));
    std::fs::write(&path, "x")?;
    std::fs::remove_file(&path)
}
