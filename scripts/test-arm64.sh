#!/usr/bin/env bash
# The engine on arm64 where there is no such machine: cross-compiled, its tests run by QEMU, which takes about 20 minutes on two cores.
# Debian 12, as root: the standard library for arm64 comes with Debian's newest compiler (rustc-web), the rest with the cross compiler.
# On an arm64 machine `cargo nextest run -p diffusion` does the same without all this.
set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=aarch64-unknown-linux-gnu
PACKAGES=(rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6:arm64 qemu-user)

missing() {
    local package
    for package in "${PACKAGES[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || return 0
    done
    return 1
}

if missing; then
    command -v apt-get >/dev/null || { echo "test-arm64: needs Debian's packages: ${PACKAGES[*]}" >&2; exit 1; }
    [ "$(id -u)" = 0 ] || { echo "test-arm64: run it as root once, or install: ${PACKAGES[*]} (after dpkg --add-architecture arm64)" >&2; exit 1; }
    dpkg --add-architecture arm64
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"
fi

# Debian's, whose standard library is there for both; the toolchain file asks rustup for another.
export RUSTC=/usr/bin/rustc
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/arm64"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Without a prefix for libraries: those of libc6:arm64 are where the programs look. (With the cross compiler's libc threads never start in QEMU 7.2.)
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64

"$RUSTC" --version
cargo test --locked --target "$TARGET" -p diffusion "$@"
