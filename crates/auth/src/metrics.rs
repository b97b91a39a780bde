//! What auth counts.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const AUTHENTICATIONS: &str = "inkstone_auth_authentications_total";
const SECONDS: &str = "inkstone_auth_authenticate_seconds";
const KEYS: &str = "inkstone_auth_active_keys";

const TO_REWRAP: &str = "inkstone_auth_records_to_rewrap";
const INSTANCES: &str = "inkstone_auth_instances";
const LEASED: &str = "inkstone_auth_leased_keys";

/// Says what each metric is.
pub(crate) fn describe() {
    describe_counter!(
        AUTHENTICATIONS,
        "Authentications by kind of proof and outcome"
    );
    describe_histogram!(SECONDS, "Seconds that an authentication took");
    describe_gauge!(
        KEYS,
        "Keys that are accepted at present, as this instance sees it"
    );
    describe_gauge!(
        INSTANCES,
        "Instances that share the keys' rates, as this one sees it"
    );
    describe_gauge!(
        LEASED,
        "Keys whose rate this instance holds a share of just now"
    );
    describe_gauge!(
        TO_REWRAP,
        "Records still wrapped by an old key-encryption key, or by one that is not here"
    );
}

/// One authentication. `proof` and `outcome` are of short closed lists.
pub(crate) fn authenticated(proof: &'static str, outcome: &'static str, took: Duration) {
    counter!(AUTHENTICATIONS, "proof" => proof, "outcome" => outcome).increment(1);
    histogram!(SECONDS).record(took.as_secs_f64());
}

/// How many keys are accepted.
pub(crate) fn active_keys(count: usize) {
    gauge!(KEYS).set(count as f64);
}

/// How many records of a bucket are still wrapped by another key.
pub(crate) fn to_rewrap(bucket: &'static str, count: usize) {
    gauge!(TO_REWRAP, "bucket" => bucket).set(count as f64);
}

/// How many instances share the keys' rates, and how many keys this one holds a share of.
pub(crate) fn leases(instances: usize, keys: usize) {
    gauge!(INSTANCES).set(instances as f64);
    gauge!(LEASED).set(keys as f64);
}
