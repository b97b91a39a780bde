//! What the registry counts.

use messaging::Snapshot;

use crate::record::ModelRecord;

const MODELS: &str = "inkstone_registry_models";
const VERSIONS: &str = "inkstone_registry_versions";
const UPLOADED: &str = "inkstone_registry_uploaded_bytes_total";

/// Says what each metric is, and starts the counters at 0 so that they are there before the first event.
pub(crate) fn describe() {
    metrics::describe_gauge!(MODELS, "Models that are registered.");
    metrics::describe_gauge!(VERSIONS, "Versions of all models together.");
    metrics::describe_counter!(
        UPLOADED,
        metrics::Unit::Bytes,
        "Model files put into the object store."
    );
    metrics::counter!(UPLOADED).absolute(0);
}

/// What there is now.
pub(crate) fn models(all: &Snapshot<ModelRecord>) {
    let versions: usize = all.values().map(|model| model.versions.len()).sum();
    metrics::gauge!(MODELS).set(all.len() as f64);
    metrics::gauge!(VERSIONS).set(versions as f64);
}

/// A file of this many bytes was stored.
pub(crate) fn uploaded(bytes: u64) {
    metrics::counter!(UPLOADED).increment(bytes);
}
