//! The words that Inkstone's services share.
//!
//! Services depend on this crate and never on each other: messages and gRPC services generated from
//! `proto/`, [typed ids](id), the [clock], the [words](words) for its enums, our own dialect's [JSON](json), what auth [asserts](assertion) of callers and the [keys](token_keys) that it signs with, the [limits] that hold for every
//! request and the [check](validate()) of them, what is [left](source) of the steps for a picture to begin from, and the one closed list of [error codes](error) with its mapping to gRPC and HTTP.
//! Nothing here talks to anything.

pub mod assertion;
pub mod clock;
pub mod error;
pub mod fleet;
pub mod id;
pub mod json;
pub mod limits;
mod policy;
pub mod proof;
pub mod source;
pub mod token_keys;
mod validate;
pub mod words;

pub use error::{ErrorCode, Failure};
pub use id::{AppKey, Lane, ModelName, TaskId, TenantId, VersionName};
pub use validate::{check_batch, validate, validate_feedback};

pub use proto::auth::v1 as auth;
pub use proto::inference;
pub use proto::orchestrator::v1 as orchestrator;
pub use proto::registry::v1 as registry;
pub use proto::task::v1 as task;
pub use proto::v1;

/// Generated from `proto/`. Nested as the protobuf packages are, because generated code refers to its
/// neighbours by relative path; use the short names (`contract::v1`, `contract::task`, …) instead.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    pub mod v1 {
        tonic::include_proto!("inkstone.v1");
    }
    /// The Open Inference Protocol, whose package has no version.
    pub mod inference {
        tonic::include_proto!("inference");
    }
    pub mod task {
        pub mod v1 {
            tonic::include_proto!("inkstone.task.v1");
        }
    }
    pub mod auth {
        pub mod v1 {
            tonic::include_proto!("inkstone.auth.v1");
        }
    }
    pub mod orchestrator {
        pub mod v1 {
            tonic::include_proto!("inkstone.orchestrator.v1");
        }
    }
    pub mod registry {
        pub mod v1 {
            tonic::include_proto!("inkstone.registry.v1");
        }
    }

    /// The encoded `FileDescriptorSet` of the public package, for gRPC reflection.
    pub const PUBLIC_DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
}

/// The present as a protobuf timestamp.
pub fn now() -> prost_types::Timestamp {
    clock::system_time().into()
}
