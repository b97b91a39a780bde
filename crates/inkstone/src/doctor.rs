//! `inkstone doctor`: whether this machine and a running platform have what they need, and what to do if not.

use std::path::Path;

use contract::v1::{ListModelsRequest, ListRequest};

use crate::cli::ServerArgs;
use crate::client::Client;
use crate::error::CliError;
use crate::out::say;
use crate::place::Place;

pub(crate) async fn run(data: &Path, server: &ServerArgs) -> Result<(), CliError> {
    let mut failed = 0;
    let mut report = |what: &str, result: Result<String, String>| match result {
        Ok(detail) => say!("  ok    {what:<12} {detail}"),
        Err(problem) => {
            failed += 1;
            say!("  FAIL  {what:<12} {problem}");
        }
    };
    let nats = nats_server::find().map_err(|e| e.to_string());
    report("nats-server", nats.map(|path| path.display().to_string()));
    let place = Place::at(data);
    report("data folder", data_folder(&place));
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
        Err(error) => report("platform", Err(lifecycle::chain(&error))),
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(CliError::Unwell(failed))
    }
}

/// Whether the data folder can be written or, where it is not there yet, be made. Leaves nothing behind.
fn data_folder(place: &Place) -> Result<String, String> {
    let folder = place.folder();
    let is_there = |folder: &&Path| folder.try_exists().unwrap_or(true);
    let there = folder.ancestors().find(is_there).unwrap_or(folder);
    tempfile_in(there).map_err(|e| format!("{} cannot be written: {e}", there.display()))?;
    let shown = folder.display();
    Ok(match there == folder {
        true => shown.to_string(),
        false => format!("{shown} (not there yet; `inkstone up` makes it)"),
    })
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!("doctor-{}", std::process::id()));
    std::fs::write(&path, "x")?;
    std::fs::remove_file(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_is_looked_at_and_not_made() {
        let root = tempfile::tempdir().unwrap();
        let checked = |folder: &Path| data_folder(&Place::at(folder));
        assert!(!checked(root.path()).unwrap().contains("not there yet"));
        let missing = root.path().join("a/b");
        assert!(checked(&missing).unwrap().contains("not there yet"));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        let file = root.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(checked(&file).unwrap_err().contains("cannot be written"));
    }
}
