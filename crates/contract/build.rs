//! Compiles `proto/` with protox (no protoc to install) into prost messages and tonic services.

use std::path::Path;

use prost::Message as _;

/// What callers may see.
const PUBLIC: &[&str] = &["inkstone/v1/image.proto", "inference/v2/inference.proto"];

const INTERNAL: &[&str] = &[
    "inkstone/task/v1/task.proto",
    "inkstone/auth/v1/auth.proto",
    "inkstone/orchestrator/v1/dead_letter.proto",
    "inkstone/orchestrator/v1/orchestrator.proto",
    "inkstone/registry/v1/registry.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked at run time: a build script compiled in another checkout that shares the cache must not look there.
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile([PUBLIC, INTERNAL].concat(), [&root])?;
    let public = protox::compile(PUBLIC, [&root])?;
    let out = std::env::var("OUT_DIR")?;
    let file = Path::new(&out).join("public_descriptors.bin");
    std::fs::write(file, public.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(true)
        .compile_fds(descriptors)?;
    Ok(())
}
