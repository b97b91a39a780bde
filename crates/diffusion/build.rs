//! Compiles the kernels to PTX, in builds with the feature `cuda` alone: `OUT_DIR/NAME.ptx` of `kernels/NAME.cu`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: [&str; 3] = ["attention", "elementwise", "norm"];
/// The oldest GPUs that the kernels run on: those with bf16 tensor cores and copies that run beside. The driver compiles PTX
/// for the GPU that it finds.
const ARCHITECTURE: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = nvcc();
    for name in KERNELS {
        compile(
            &nvcc,
            &Path::new("kernels").join(format!("{name}.cu")),
            &out.join(format!("{name}.ptx")),
        );
    }
}

/// The compiler: `NVCC`, or that of the toolkit at `CUDA_HOME` or `CUDA_PATH`, or the one on the path.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(env::var_os)
        .map(|home| Path::new(&home).join("bin").join("nvcc"))
        .find(|nvcc| nvcc.is_file())
        .unwrap_or_else(|| "nvcc".into())
}

fn compile(nvcc: &Path, source: &Path, to: &Path) {
    let output = Command::new(nvcc)
        .args(["-ptx", "-arch", ARCHITECTURE, "-std=c++17", "-O3", "-o"])
        .args([to, source])
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "cannot run {}: {error}; scripts/cuda/install.sh installs it",
                nvcc.display()
            )
        });
    assert!(
        output.status.success(),
        "{} failed on {}:\n{}",
        nvcc.display(),
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}
