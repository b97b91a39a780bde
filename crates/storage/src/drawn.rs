//! What workers have stored for tasks: how old it is, and which task it is of.

use std::time::SystemTime;

use contract::TaskId;
use futures::{Stream, TryStreamExt as _};
use object_store::path::Path;

use crate::{Key, Storage, StorageError, key};

/// What workers store for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What it has drawn.
    Picture,
    /// What it can go on from.
    Checkpoint,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Picture => key::IMAGES,
            Self::Checkpoint => key::CHECKPOINTS,
        }
    }
}

/// An object of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Its key.
    pub key: Key,
    /// The task.
    pub task: TaskId,
    /// When it was last written, by the store's clock.
    pub written: SystemTime,
    /// Bytes.
    pub size: u64,
}

impl Storage {
    /// All objects of a kind, in no order, as the store lists them: page by page. What is not of our making is left out.
    pub fn drawn(&self, kind: Kind) -> impl Stream<Item = Result<Drawn, StorageError>> + Send {
        let objects = self.store.list(Some(&Path::from(kind.folder())));
        let objects = objects.map_err(StorageError::List);
        objects.try_filter_map(|meta| async move {
            let key = Key::stored(meta.location.as_ref());
            let found = key.and_then(|key| key.task().zip(Some(key)));
            Ok(found.map(|(task, key)| Drawn {
                key,
                task,
                written: SystemTime::from(meta.last_modified),
                size: meta.size,
            }))
        })
    }
}
