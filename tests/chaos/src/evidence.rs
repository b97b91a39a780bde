//! What lies there at the end of a run: in the log, in the object store, and on the days of its tenants.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit::{Chain, Event, Head};
use messaging::Broker;
use serde_json::Value;
use storage::sha256_hex;

use crate::checker::{Evidence, Left, Object};
use crate::cluster::Cluster;
use crate::error::ChaosError;
use crate::history::History;
use crate::recorder;

/// Longer than an orchestrator keeps what it has set aside of a day and does not use.
const PUT_BACK: Duration = Duration::from_secs(7);
/// Times that it is looked whether all has been put back.
const LOOKS: usize = 6;

/// All of it but what a run knows of itself.
///
/// # Errors
/// When the broker or a file cannot be read.
pub(crate) async fn gather(
    broker: &Broker,
    cluster: &Cluster,
    history: &History,
) -> Result<Evidence, ChaosError> {
    let mut objects = BTreeMap::new();
    let root = cluster.objects();
    let pictures = root.join("images");
    if pictures.is_dir() {
        read_objects(&root, &pictures, &mut objects)?;
    }
    let charged = charged(broker).await?;
    // Some seconds after the last end: what a worker removes then is gone.
    let mut left = Left::default();
    look_beside(&root, &root, &mut left)?;
    audited(&root.join("audit"), &mut left)?;
    Ok(Evidence {
        log: recorder::log(broker).await?,
        objects,
        charged,
        left: Some(left),
        entries: history.entries(),
        ..Evidence::default()
    })
}

fn read_objects(
    root: &Path,
    folder: &Path,
    objects: &mut BTreeMap<String, Object>,
) -> Result<(), ChaosError> {
    let file = |source| ChaosError::File {
        path: folder.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(file)? {
        let path = entry.map_err(file)?.path();
        if path.is_dir() {
            read_objects(root, &path, objects)?;
            continue;
        }
        let bytes = std::fs::read(&path).map_err(file)?;
        let key = path.strip_prefix(root).unwrap_or(&path);
        let object = Object {
            sha256: sha256_hex(&bytes),
            bytes: bytes.len() as u64,
        };
        objects.insert(key.display().to_string(), object);
    }
    Ok(())
}

/// What lies in a folder; services still write and remove there.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, ChaosError> {
    let file = |source| ChaosError::File {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(file)
}

/// Probes, drafts and checkpoints below a folder.
fn look_beside(root: &Path, folder: &Path, left: &mut Left) -> Result<(), ChaosError> {
    for path in listed(folder)? {
        if path.is_dir() {
            look_beside(root, &path, left)?;
            continue;
        }
        let key = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
        let draft = key.rsplit_once('#');
        if draft.is_some_and(|(_, number)| number.bytes().all(|b| b.is_ascii_digit())) {
            left.drafts += 1;
        } else if key.starts_with("probe-") {
            left.probes += 1;
        } else if let Some(("checkpoints", key)) = key.split_once('/')
            && let Some((task, _)) = key.split_once('/')
        {
            left.checkpoints.insert(task.to_owned());
        }
    }
    Ok(())
}

/// Reads the files of the audit chain as one, as `inkstone audit verify` does.
fn audited(folder: &Path, left: &mut Left) -> Result<(), ChaosError> {
    let mut files = Vec::new();
    for day in listed(folder)? {
        files.extend(listed(&day)?);
    }
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "jsonl")
    });
    // A name begins with its first record's number, in twenty digits.
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    let mut chain = Chain::after(Head::genesis());
    for path in files {
        let data = std::fs::read(&path).map_err(|source| ChaosError::File {
            path: path.clone(),
            source,
        })?;
        let mut gap = None;
        let checked = audit::file::check(&mut chain, &data, |line| {
            if let Event::Gap { from, to, why } = line.content.event {
                gap = Some(format!("places {from} to {to} are a gap ({why})"));
            }
        });
        let wrong = checked.err().map(|error| lifecycle::chain(&error)).or(gap);
        if let Some(wrong) = wrong {
            left.broken = Some(format!("{}: {wrong}", path.display()));
            break;
        }
    }
    left.records = chain.head().sequence;
    Ok(())
}

/// Pictures that each tenant was charged for, once what was set aside and not used has been put back.
async fn charged(broker: &Broker) -> Result<BTreeMap<String, u64>, ChaosError> {
    let mut last = None;
    for _ in 0..LOOKS {
        let charged = used(broker).await?;
        if last.as_ref() == Some(&charged) {
            return Ok(charged);
        }
        last = Some(charged);
        tokio::time::sleep(PUT_BACK).await;
    }
    Ok(last.unwrap_or_default())
}

/// Pictures that are used or set aside of each tenant's days just now.
///
/// # Errors
/// When the broker does not answer.
pub(crate) async fn used(broker: &Broker) -> Result<BTreeMap<String, u64>, ChaosError> {
    let kept = Duration::from_secs(3 * 24 * 3600);
    let bucket = broker.bucket::<Value>("USAGE", kept).await?;
    let mut charged: BTreeMap<String, u64> = BTreeMap::new();
    // <day>.<policy>.<tenant>; a run may go over midnight.
    for (key, used) in bucket.all().await? {
        let tenant = key.rsplit('.').next().unwrap_or(&key).to_owned();
        *charged.entry(tenant).or_default() += used["images"].as_u64().unwrap_or(0);
    }
    Ok(charged)
}
