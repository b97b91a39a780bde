//! What lies there at the end of a run: in the log, in the object store, and on the days of its tenants.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use messaging::Broker;
use serde_json::Value;
use storage::sha256_hex;

use crate::checker::{Evidence, Object};
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
    Ok(Evidence {
        log: recorder::log(broker).await?,
        objects,
        charged: charged(broker).await?,
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
