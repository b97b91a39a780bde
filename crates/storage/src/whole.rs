//! A file that is opened and read whole in one turn on the blocking pool, where its reader takes it so. `object_store` takes one turn to
//! open a file and another to read it. Who writes one and wants to see what lies there has both done in one turn ([`ReadBack`]).

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use object_store::path::Path;
use object_store::{
    Attributes, Error, Extensions, GetOptions, GetResult, GetResultPayload, ObjectMeta, PutOptions,
    Result,
};

use crate::durable::failed;

/// The largest file that is read so, bytes.
const MAX_BYTES: u64 = 8 << 20;

/// How many bytes the reader of an object takes in one piece. A larger object comes as if this had not been said; so does each from a store
/// that knows nothing of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AtOnce(u64);

impl AtOnce {
    /// Asks for a whole object.
    pub(crate) fn ask(most: u64) -> GetOptions {
        let mut options = GetOptions::default();
        options.extensions.insert(Self(most.min(MAX_BYTES)));
        options
    }

    /// What was asked for; `None` where it is not a whole object, unconditionally.
    pub(crate) fn asked(options: &GetOptions) -> Option<Self> {
        let GetOptions {
            if_match: None,
            if_none_match: None,
            if_modified_since: None,
            if_unmodified_since: None,
            range: None,
            version: None,
            head: false,
            extensions,
        } = options
        else {
            return None;
        };
        extensions.get::<Self>().copied()
    }
}

/// What a writer asks for who wants to see what lies in the store. One that knows nothing of it only writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadBack;

/// What lay in the store when all of an object was written.
#[derive(Debug, Clone)]
pub(crate) struct Found(pub(crate) Bytes);

impl ReadBack {
    /// Asks for it.
    pub(crate) fn ask() -> PutOptions {
        let mut options = PutOptions::default();
        options.extensions.insert(Self);
        options
    }

    /// Takes the question away, so that reading is a request of its own.
    pub(crate) fn decline(options: &mut PutOptions) {
        options.extensions.remove::<Self>();
    }

    /// Reads a file that was just written, if that was asked for and it is no larger than what is read so.
    pub(crate) fn answer(
        options: &PutOptions,
        path: &FilePath,
        size: u64,
    ) -> io::Result<Extensions> {
        let mut found = Extensions::new();
        if options.extensions.get::<Self>().is_some() && size <= MAX_BYTES {
            found.insert(Found(fs::read(path)?.into()));
        }
        Ok(found)
    }
}

/// A file whose bytes come as one piece, or open when it is too large for that. All that is said of it is what `LocalFileSystem` says.
pub(crate) fn read(location: Path, path: PathBuf, most: AtOnce) -> Result<GetResult> {
    let mut file = File::open(&path).map_err(unopened(&path))?;
    let metadata = file.metadata().map_err(unopened(&path))?;
    if metadata.is_dir() {
        let folder = io::Error::new(io::ErrorKind::NotFound, "is directory");
        return Err(unopened(&path)(folder));
    }
    let meta = meta(location, &metadata)?;
    let size = meta.size;
    let payload = if size <= most.0 {
        // At most MAX_BYTES.
        let mut data = vec![0; size as usize];
        file.read_exact(&mut data).map_err(failed)?;
        GetResultPayload::Stream(stream::iter([Ok(Bytes::from(data))]).boxed())
    } else {
        GetResultPayload::File(file, path)
    };
    Ok(GetResult {
        payload,
        meta,
        range: 0..size,
        attributes: Attributes::default(),
        extensions: Default::default(),
    })
}

fn unopened(path: &FilePath) -> impl Fn(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => Error::NotFound {
            path: path.to_string_lossy().into_owned(),
            source: source.into(),
        },
        _ => failed(source),
    }
}

fn meta(location: Path, metadata: &Metadata) -> Result<ObjectMeta> {
    let (modified, size) = (metadata.modified().map_err(failed)?, metadata.len());
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let tag = format!("\"{:x}-{:x}-{size:x}\"", metadata.ino(), since.as_micros());
    Ok(ObjectMeta {
        location,
        last_modified: modified.into(),
        size,
        e_tag: Some(tag),
        version: None,
    })
}

#[cfg(test)]
mod tests {
    use object_store::local::LocalFileSystem;
    use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};

    use super::*;
    use crate::durable::Durable;

    /// The same folder, as it is opened here and as `object_store` does.
    fn scratch() -> (tempfile::TempDir, Durable, LocalFileSystem) {
        let folder = tempfile::tempdir().unwrap();
        let store = Durable::open(folder.path()).unwrap();
        let other = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        (folder, store, other)
    }

    #[tokio::test]
    async fn a_file_that_its_reader_takes_whole_comes_as_one_piece_and_a_larger_one_open() {
        let (_folder, store, other) = scratch();
        for (size, most, whole) in [(0, 0, true), (3, 3, true), (3, 2, false)] {
            let path = Path::from(format!("images/a/{size}"));
            let data = Bytes::from(vec![7; size]);
            let payload = PutPayload::from_bytes(data.clone());
            store.put(&path, payload).await.unwrap();
            let found = store.get_opts(&path, AtOnce::ask(most)).await.unwrap();
            let expected = other.get(&path).await.unwrap();
            assert_eq!(found.meta, expected.meta);
            assert_eq!(found.range, expected.range);
            assert_eq!(found.attributes, expected.attributes);
            let streamed = matches!(found.payload, GetResultPayload::Stream(_));
            assert_eq!(streamed, whole, "{size} bytes of at most {most}");
            assert_eq!(found.bytes().await.unwrap(), data);
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_back_where_the_writer_asks_and_the_store_does_not_decline() {
        let (_folder, store, other) = scratch();
        let path = Path::from("images/a/0");
        let put = async |store: &dyn ObjectStore, size: u64, options| {
            let data = Bytes::from(vec![7; size as usize]);
            let put = store.put_opts(&path, PutPayload::from_bytes(data.clone()), options);
            let put = put.await.unwrap();
            let found = put
                .extensions
                .get::<Found>()
                .map(|Found(found)| found.clone());
            assert!(found.as_ref().is_none_or(|found| *found == data));
            found.is_some()
        };
        assert!(put(&store, 0, ReadBack::ask()).await);
        assert!(put(&store, MAX_BYTES, ReadBack::ask()).await);
        assert!(!put(&store, MAX_BYTES + 1, ReadBack::ask()).await);
        assert!(!put(&store, 3, PutOptions::default()).await);
        assert!(!put(&other, 3, ReadBack::ask()).await);
        let mut declined = ReadBack::ask();
        ReadBack::decline(&mut declined);
        assert!(!put(&store, 3, declined).await);
    }

    #[tokio::test]
    async fn a_file_above_the_bound_is_left_open_whatever_its_reader_takes() {
        let (folder, store, _) = scratch();
        let file = File::create(folder.path().join("large")).unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        let path = Path::from("large");
        let found = store.get_opts(&path, AtOnce::ask(u64::MAX)).await.unwrap();
        assert!(matches!(found.payload, GetResultPayload::File(..)));
        let read = found.bytes().await.unwrap();
        assert_eq!(read.len() as u64, MAX_BYTES + 1);
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_and_a_folder_are_missing_under_the_same_name() {
        let (folder, store, other) = scratch();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        let missing = |found: Result<GetResult>| match found.map(drop).unwrap_err() {
            Error::NotFound { path, .. } => path,
            error => panic!("{error}"),
        };
        for path in [Path::from("images"), Path::from("images/a/0.png")] {
            let found = missing(store.get_opts(&path, AtOnce::ask(1)).await);
            assert_eq!(found, missing(other.get(&path).await));
        }
    }

    #[test]
    fn what_is_not_a_whole_object_is_not_read_so() {
        let all = AtOnce::ask(u64::MAX);
        assert_eq!(AtOnce::asked(&all).map(|most| most.0), Some(MAX_BYTES));
        let others = [
            GetOptions::default(),
            all.clone().with_head(true),
            all.clone().with_range(Some(0..1_u64)),
            all.with_if_match(Some("tag")),
        ];
        for options in others {
            assert!(AtOnce::asked(&options).is_none(), "{options:?}");
        }
    }
}
