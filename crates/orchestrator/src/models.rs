//! The registry's models as last heard, and which version of one a task gets.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use contract::TaskId;
use contract::registry::registry_service_client::RegistryServiceClient;
use contract::registry::{Model, ModelVersion, WatchModelsRequest};
use lifecycle::{Check, Tasks};
use rpc::Peer;
use tokio::sync::watch;

/// Between attempts to hear from the registry again.
const RECONNECT: Duration = Duration::from_secs(1);

/// A live copy of the registry's list. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Models {
    list: watch::Receiver<Arc<Vec<Model>>>,
}

impl Models {
    /// Follows the registry for as long as the service runs. What was last heard stays good while the registry is away.
    pub(crate) fn follow(peer: Peer, tasks: &Tasks, check: Check) -> Self {
        let (sender, list) = watch::channel(Arc::default());
        let stopping = tasks.stopping();
        tasks.critical("models", async move {
            tokio::select! {
                () = stopping => {}
                () = keep_following(peer, &sender, &check) => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        Self { list }
    }

    /// The models as last heard.
    pub(crate) fn all(&self) -> Arc<Vec<Model>> {
        self.list.borrow().clone()
    }
}

async fn keep_following(peer: Peer, sender: &watch::Sender<Arc<Vec<Model>>>, check: &Check) {
    loop {
        let mut client = rpc::with_limits!(RegistryServiceClient::new(peer.clone()));
        let problem = match client
            .watch_models(rpc::streaming(WatchModelsRequest {}))
            .await
        {
            Ok(stream) => hear(stream.into_inner(), sender, check).await,
            Err(status) => status.message().to_owned(),
        };
        if sender.borrow().is_empty() {
            check.fail(format!("no models heard of from the registry: {problem}"));
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn hear(
    mut stream: tonic::Streaming<contract::registry::WatchModelsResponse>,
    sender: &watch::Sender<Arc<Vec<Model>>>,
    check: &Check,
) -> String {
    loop {
        match stream.message().await {
            Ok(Some(news)) => {
                let none = news.models.is_empty();
                sender.send_replace(Arc::new(news.models));
                if none {
                    check.fail("the registry has no models");
                } else {
                    check.pass();
                }
            }
            Ok(None) => return "the registry ended the stream".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

/// The model of this name or alias.
pub(crate) fn find<'a>(models: &'a [Model], name: &str) -> Option<&'a Model> {
    let named = |model: &&Model| model.name == name;
    let aliased = |model: &&Model| model.aliases.iter().any(|alias| alias == name);
    models
        .iter()
        .find(named)
        .or_else(|| models.iter().find(aliased))
}

/// The version that a task gets: a hash of its id into the weights, so that every retry of the task stays on one
/// version. `None` when no version takes new tasks.
pub(crate) fn choose_version(model: &Model, task: TaskId) -> Option<&ModelVersion> {
    let total: u64 = model.versions.iter().map(|v| u64::from(v.weight)).sum();
    let hash = digest::digest(&digest::SHA256, task.to_string().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_ref()[..8]);
    let mut point = u64::from_be_bytes(first).checked_rem(total)?;
    model.versions.iter().find(|version| {
        let weight = u64::from(version.weight);
        let here = point < weight;
        point = point.saturating_sub(weight);
        here
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(weights: &[u32]) -> Model {
        let version = |(i, &weight): (usize, &u32)| ModelVersion {
            version: i.to_string(),
            weight,
            ..ModelVersion::default()
        };
        Model {
            name: "m".to_owned(),
            aliases: vec!["other".to_owned()],
            versions: weights.iter().enumerate().map(version).collect(),
            ..Model::default()
        }
    }

    #[test]
    fn a_task_keeps_its_version_and_weight_zero_gets_none() {
        let model = model(&[0, 70, 30]);
        let mut counts = [0; 3];
        for _ in 0..2000 {
            let task = TaskId::random();
            let chosen = choose_version(&model, task).unwrap();
            assert_eq!(choose_version(&model, task), Some(chosen));
            counts[chosen.version.parse::<usize>().unwrap()] += 1;
        }
        assert_eq!(counts[0], 0);
        assert!((1250..1550).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn a_model_without_traffic_has_no_version() {
        assert!(choose_version(&model(&[0, 0]), TaskId::random()).is_none());
        assert!(choose_version(&model(&[]), TaskId::random()).is_none());
    }

    #[test]
    fn a_model_is_found_by_name_and_by_alias() {
        let models = [model(&[1])];
        assert!(find(&models, "m").is_some());
        assert!(find(&models, "other").is_some());
        assert!(find(&models, "else").is_none());
    }
}
