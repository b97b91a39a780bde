//! Reads a model folder: which files there are, whether they can be a model, and their digests.
//!
//! All of it blocks, and runs off the runtime's threads.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde_json::Value;

use crate::error::RegistryError;
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::record::{ArtifactRecord, Candidate, VersionRecord, version_digest};

const INDEX_FILE: &str = "model_index.json";
/// Files and folders that one model may have.
const MAX_ENTRIES: usize = 512;
const MAX_DEPTH: usize = 8;
const MAX_PATH_BYTES: usize = 200;
/// `inkstone.json` and `model_index.json`, each.
const MAX_JSON_BYTES: u64 = 64 * 1024;
/// What the safetensors format allows for its header.
const MAX_HEADER_BYTES: u64 = 100 * 1024 * 1024;
/// For people, not for workers.
const LEFT_OUT: &[&str] = &["md", "png"];
const READ_BYTES: usize = 256 * 1024;

/// A version as its folder has it, and where its files are.
#[derive(Debug, Clone)]
pub(crate) struct ModelFolder {
    /// What may be published.
    pub candidate: Candidate,
    /// Where each artifact's file is, in the artifacts' order.
    pub files: Vec<PathBuf>,
}

struct Found {
    /// Relative, `/`-separated.
    path: String,
    file: PathBuf,
    size: u64,
}

impl ModelFolder {
    /// Reads and checks the folder, and hashes every file in it. Blocks: about a second for 500 MB.
    ///
    /// # Errors
    /// The first thing that is missing, damaged or not allowed, with its path.
    pub(crate) fn read(folder: &Path) -> Result<Self, RegistryError> {
        let root = folder.canonicalize().map_err(RegistryError::read(folder))?;
        if !root.is_dir() {
            return Err(RegistryError::folder(folder, "is not a folder"));
        }
        let mut walk = Walk {
            root: root.clone(),
            entries: 0,
            found: Vec::new(),
        };
        let path = root.join(MANIFEST_FILE);
        let manifest = Manifest::parse(&path, &walk.read_json(&path)?)?;
        let path = root.join(INDEX_FILE);
        let index = walk.read_json(&path)?;
        walk.folder(&root, "", 0)?;
        let mut found = walk.found;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        check_components(&path, &index, &found)?;
        let mut artifacts = Vec::with_capacity(found.len());
        for file in &found {
            check_weights(file)?;
            artifacts.push(ArtifactRecord {
                path: file.path.clone(),
                sha256: sha256(&file.file, file.size)?,
                size_bytes: file.size,
            });
        }
        let profile = manifest.profile();
        let candidate = Candidate {
            model: manifest.name,
            description: manifest.description,
            aliases: manifest.aliases,
            version: VersionRecord {
                version: manifest.version,
                weight: 0,
                digest: version_digest(&artifacts),
                artifacts,
                profile,
                created_at_ms: 0,
            },
        };
        let files = found.into_iter().map(|f| f.file).collect();
        Ok(Self { candidate, files })
    }
}

struct Walk {
    root: PathBuf,
    entries: usize,
    found: Vec<Found>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), RegistryError> {
        if depth > MAX_DEPTH {
            let problem = format!("lies more than {MAX_DEPTH} folders deep");
            return Err(RegistryError::folder(folder, problem));
        }
        for entry in fs::read_dir(folder).map_err(RegistryError::read(folder))? {
            let entry = entry.map_err(RegistryError::read(folder))?;
            let file = entry.path();
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                let problem = format!("has more than {MAX_ENTRIES} files and folders in it");
                return Err(RegistryError::folder(&self.root, problem));
            }
            let name = entry.file_name();
            // Caches and version control of those who made the folder.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let name = name.to_str().filter(|n| plain(n)).ok_or_else(|| {
                RegistryError::folder(
                    &file,
                    "has more in its name than a-z, A-Z, 0-9, '.', '_' and '-'",
                )
            })?;
            let path = format!("{prefix}{name}");
            if path.len() > MAX_PATH_BYTES {
                let problem = format!("has a path of more than {MAX_PATH_BYTES} bytes");
                return Err(RegistryError::folder(&file, problem));
            }
            let meta = self.resolve(&file)?;
            if meta.is_dir() {
                self.folder(&file, &format!("{path}/"), depth + 1)?;
            } else if !left_out(name) {
                let size = meta.len();
                self.found.push(Found { path, file, size });
            }
        }
        Ok(())
    }

    /// What an entry is; a link only when it is one to a file in this folder.
    fn resolve(&self, file: &Path) -> Result<Metadata, RegistryError> {
        let meta = fs::symlink_metadata(file).map_err(RegistryError::read(file))?;
        if meta.is_dir() || meta.is_file() {
            return Ok(meta);
        }
        if !meta.is_symlink() {
            return Err(RegistryError::folder(
                file,
                "is neither a file nor a folder",
            ));
        }
        let target = file.canonicalize().map_err(RegistryError::read(file))?;
        if !target.starts_with(&self.root) {
            return Err(RegistryError::folder(
                file,
                "is a link that leaves the folder",
            ));
        }
        let meta = fs::metadata(&target).map_err(RegistryError::read(file))?;
        if !meta.is_file() {
            // It could be its own parent.
            return Err(RegistryError::folder(
                file,
                "is a link to something that is not a file",
            ));
        }
        Ok(meta)
    }

    fn read_json(&self, path: &Path) -> Result<Vec<u8>, RegistryError> {
        // Opening a pipe would wait for its writer.
        if !self.resolve(path)?.is_file() {
            return Err(RegistryError::folder(path, "is not a file"));
        }
        let file = File::open(path).map_err(RegistryError::read(path))?;
        let mut text = Vec::new();
        let mut limited = file.take(MAX_JSON_BYTES + 1);
        limited
            .read_to_end(&mut text)
            .map_err(RegistryError::read(path))?;
        if text.len() as u64 > MAX_JSON_BYTES {
            let problem = format!("has more than {MAX_JSON_BYTES} bytes");
            return Err(RegistryError::folder(path, problem));
        }
        Ok(text)
    }
}

fn plain(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn left_out(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| LEFT_OUT.contains(&e))
}

/// Every component that `model_index.json` names must have a folder with something in it.
fn check_components(index: &Path, text: &[u8], found: &[Found]) -> Result<(), RegistryError> {
    let components: BTreeMap<String, Value> = serde_json::from_slice(text)
        .map_err(|error| RegistryError::folder(index, format!("is damaged: {error}")))?;
    for (name, value) in components {
        // `"unet": ["diffusers", "UNet2DConditionModel"]`; an absent component is `[null, null]`.
        let present = value
            .as_array()
            .is_some_and(|a| a.iter().any(Value::is_string));
        let prefix = format!("{name}/");
        if present && !found.iter().any(|f| f.path.starts_with(&prefix)) {
            let problem = format!("names the component {name}, but the folder {name} has no files");
            return Err(RegistryError::folder(index, problem));
        }
    }
    Ok(())
}

/// A safetensors file says in its header how long it is. A download that was cut short, or a pointer that a version
/// control system left in the file's place, is found here rather than by a worker.
///
/// Source: <https://huggingface.co/docs/safetensors/index#format>.
fn check_weights(found: &Found) -> Result<(), RegistryError> {
    if !found.path.ends_with(".safetensors") {
        return Ok(());
    }
    let path = &found.file;
    let damaged = |problem: &str| {
        let size = found.size;
        RegistryError::folder(
            path,
            format!("is damaged: it has {size} bytes, and {problem}"),
        )
    };
    let mut file = BufReader::new(File::open(path).map_err(RegistryError::read(path))?);
    let mut length = [0; 8];
    if file.read_exact(&mut length).is_err() {
        return Err(damaged("a safetensors file has 8 at least"));
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length + 8 > found.size {
        return Err(damaged("its header does not fit"));
    }
    let header: BTreeMap<String, Value> = serde_json::from_reader(file.take(length))
        .map_err(|_| damaged("its header is not JSON"))?;
    let end = |tensor: &Value| tensor["data_offsets"][1].as_u64();
    let data = header.values().filter_map(end).max().unwrap_or(0);
    let expected = data.saturating_add(8 + length);
    if expected != found.size {
        return Err(damaged(&format!("its header says {expected}")));
    }
    Ok(())
}

fn sha256(path: &Path, size: u64) -> Result<String, RegistryError> {
    let mut file = File::open(path).map_err(RegistryError::read(path))?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer).map_err(RegistryError::read(path))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        total += read as u64;
    }
    if total != size {
        return Err(RegistryError::folder(path, "was changed while it was read"));
    }
    Ok(hex::encode(hash.finish().as_ref()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Half a model: enough for the registry, which does not load it.
    fn model() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("unet")).unwrap();
        let manifest = serde_json::json!({
            "name": "small", "version": "1",
            "defaults": {"width": 128, "height": 128, "steps": 12, "guidance_scale": 2.0},
            "limits": {"min_side": 64, "max_side": 256, "multiple": 32, "max_steps": 100,
                       "max_guidance_scale": 20.0}
        });
        fs::write(root.join(MANIFEST_FILE), manifest.to_string()).unwrap();
        let index =
            r#"{"_class_name": "X", "unet": ["diffusers", "U"], "image_encoder": [null, null]}"#;
        fs::write(root.join(INDEX_FILE), index).unwrap();
        fs::write(root.join("unet/model.safetensors"), weights()).unwrap();
        fs::write(root.join("README.md"), "for people").unwrap();
        fs::write(root.join(".cache"), "for nobody").unwrap();
        folder
    }

    fn weights() -> Vec<u8> {
        let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&[0; 4]);
        bytes
    }

    fn refusal(folder: &Path) -> String {
        let error = ModelFolder::read(folder).unwrap_err();
        contract::Failure::from(error).message
    }

    #[test]
    fn a_model_is_its_files_without_those_for_people() {
        let folder = model();
        let read = ModelFolder::read(folder.path()).unwrap();
        let artifacts = &read.candidate.version.artifacts;
        let paths: Vec<&str> = artifacts.iter().map(|a| a.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "inkstone.json",
                "model_index.json",
                "unet/model.safetensors"
            ]
        );
        assert_eq!(artifacts[2].sha256, storage::sha256_hex(&weights()));
        assert_eq!(read.files.len(), 3);
    }

    #[test]
    fn a_link_within_the_folder_is_followed_and_one_that_leaves_it_is_refused() {
        let folder = model();
        let link = folder.path().join("unet/link.safetensors");
        symlink("model.safetensors", &link).unwrap();
        let read = ModelFolder::read(folder.path()).unwrap();
        assert_eq!(read.files.len(), 4);
        fs::remove_file(&link).unwrap();
        symlink("/etc/passwd", &link).unwrap();
        let message = refusal(folder.path());
        assert!(
            message.contains("link.safetensors") && message.contains("leaves"),
            "{message}"
        );
    }

    #[test]
    fn a_link_to_a_folder_is_refused_so_that_no_walk_goes_in_circles() {
        let folder = model();
        symlink("..", folder.path().join("unet/up")).unwrap();
        assert!(refusal(folder.path()).contains("not a file"));
    }

    #[test]
    fn weights_cut_short_are_refused_with_the_file_named() {
        let folder = model();
        let whole = weights();
        for end in [0, 5, 20, whole.len() - 1] {
            fs::write(folder.path().join("unet/model.safetensors"), &whole[..end]).unwrap();
            let message = refusal(folder.path());
            assert!(
                message.contains("unet/model.safetensors is damaged"),
                "{message}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = model();
        fs::remove_file(folder.path().join("unet/model.safetensors")).unwrap();
        assert!(refusal(folder.path()).contains("component unet"));
        fs::remove_file(folder.path().join(INDEX_FILE)).unwrap();
        assert!(refusal(folder.path()).contains(INDEX_FILE));
        fs::remove_file(folder.path().join(MANIFEST_FILE)).unwrap();
        assert!(refusal(folder.path()).contains(MANIFEST_FILE));
        assert!(refusal(Path::new("/nowhere/model")).contains("/nowhere/model"));
    }

    #[test]
    fn names_and_numbers_of_files_are_limited() {
        let folder = model();
        let odd = folder.path().join("unet/a b");
        fs::write(&odd, "").unwrap();
        assert!(refusal(folder.path()).contains("a b"));
        fs::remove_file(odd).unwrap();
        for i in 0..MAX_ENTRIES {
            fs::write(folder.path().join(format!("unet/{i}")), "").unwrap();
        }
        assert!(refusal(folder.path()).contains("512"));
    }

    #[test]
    fn a_manifest_of_any_size_is_not_read() {
        let folder = model();
        let huge = vec![b' '; MAX_JSON_BYTES as usize + 1];
        fs::write(folder.path().join(MANIFEST_FILE), huge).unwrap();
        assert!(refusal(folder.path()).contains("65536"));
    }
}
