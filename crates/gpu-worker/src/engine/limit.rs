//! How much memory there is for the engine, when nobody has said so.
//!
//! What the operating system would give now without swapping (`MemAvailable`), and no more than is left of any control
//! group that this process is in, of either version. With a GPU, what is free of the GPU's. A part of it is left to the rest
//! of the process.

use std::fmt;
use std::path::{Path, PathBuf};

use diffusion::GpuMemory;

use super::memory::Bytes;

/// Of what there is, what the engine takes: the rest is for files in the making, answers and the runtime.
const TENTHS: u64 = 9;

/// Memory that there is, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Available {
    pub(crate) bytes: u64,
    pub(crate) source: Source,
}

/// Who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The setting.
    Setting,
    /// `/proc/meminfo`.
    MemAvailable(u64),
    /// What is left of a control group.
    ControlGroup(PathBuf, u64),
    /// The GPU's driver: so much is free.
    Gpu(u64),
    /// Nobody: this is no Linux.
    Nobody,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting => f.write_str("engine.memory_limit"),
            Self::MemAvailable(bytes) => {
                write!(f, "nine tenths of MemAvailable, {}", Bytes(*bytes))
            }
            Self::ControlGroup(path, bytes) => write!(
                f,
                "nine tenths of what is left of the control group {}, {}",
                path.display(),
                Bytes(*bytes)
            ),
            Self::Gpu(bytes) => {
                write!(f, "nine tenths of the GPU's free memory, {}", Bytes(*bytes))
            }
            Self::Nobody => f.write_str("the system does not say how much there is"),
        }
    }
}

/// What the engine may take of this machine, as far as it can be told.
pub(crate) fn of_this_machine() -> Available {
    from(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

/// What the engine may take of a GPU.
pub(crate) fn of_gpu(memory: GpuMemory) -> Available {
    Available {
        bytes: memory.free / 10 * TENTHS,
        source: Source::Gpu(memory.free),
    }
}

fn from(proc: &Path, groups: &Path) -> Available {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let available = read(proc.join("meminfo")).and_then(|text| field(&text, "MemAvailable:"));
    let machine = available.map(|kib| {
        let bytes = kib.saturating_mul(1024);
        (bytes, Source::MemAvailable(bytes))
    });
    let membership = read(proc.join("self/cgroup")).unwrap_or_default();
    let left = folders(&membership, groups).into_iter().filter_map(|path| {
        let left = left_of(&path)?;
        Some((left, Source::ControlGroup(path, left)))
    });
    match left.chain(machine).min_by_key(|&(bytes, _)| bytes) {
        Some((bytes, source)) => Available {
            bytes: bytes / 10 * TENTHS,
            source,
        },
        None => Available {
            bytes: u64::MAX,
            source: Source::Nobody,
        },
    }
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The folders of the process's control groups that can limit its memory, and of those around them.
fn folders(membership: &str, groups: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let root = match controllers {
            "" => groups.to_owned(),
            named if named.split(',').any(|one| one == "memory") => groups.join("memory"),
            _ => continue,
        };
        // In a container the path may be that of the world outside: then only the root is there.
        let inner = root.join(path.trim_start_matches('/'));
        let around = inner.ancestors().take_while(|one| one.starts_with(&root));
        folders.extend(around.map(Path::to_owned));
    }
    folders
}

/// What a control group may still take. The page cache that it holds counts as free: it goes when memory is wanted.
fn left_of(group: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // "max" is no number.
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
    let cache = read("memory.stat").and_then(|text| {
        field(&text, "inactive_file ").or_else(|| field(&text, "total_inactive_file "))
    });
    let used = used.unwrap_or(0).saturating_sub(cache.unwrap_or(0));
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24602340 kB\nMemFree:         3300000 kB\n\
                           MemAvailable:   20971520 kB\nBuffers:          100000 kB\n";

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(meminfo: &str, membership: &str) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.file("proc/meminfo", meminfo);
            machine.file("proc/self/cgroup", membership);
            machine
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn available(&self) -> Available {
            from(&self.0.path().join("proc"), &self.0.path().join("cgroup"))
        }
    }

    #[test]
    fn without_a_control_group_it_is_what_the_machine_has_free() {
        let machine = Machine::new(MEMINFO, "0::/user.slice\n");
        machine.file("cgroup/user.slice/memory.max", "max\n");
        let available = machine.available();
        assert_eq!(available.bytes, (20 << 30) / 10 * 9);
        assert_eq!(
            available.source.to_string(),
            "nine tenths of MemAvailable, 20.0 GiB"
        );
    }

    #[test]
    fn the_tightest_control_group_around_the_process_counts() {
        let machine = Machine::new(MEMINFO, "0::/pods/worker\n");
        machine.file("cgroup/pods/worker/memory.max", "8589934592\n");
        machine.file("cgroup/pods/memory.max", "4294967296\n");
        machine.file("cgroup/pods/memory.current", "3221225472\n");
        machine.file(
            "cgroup/pods/memory.stat",
            "anon 1\ninactive_file 1073741824\n",
        );
        let available = machine.available();
        assert_eq!(available.bytes, (2u64 << 30) / 10 * 9);
        let said = available.source.to_string();
        assert!(
            said.contains("cgroup/pods") && said.ends_with("2.0 GiB"),
            "{said}"
        );
    }

    #[test]
    fn groups_of_version_1_count_too_and_those_of_other_controllers_do_not() {
        let machine = Machine::new(MEMINFO, "5:cpu,cpuacct:/a\n4:memory:/outside/a\n");
        machine.file("cgroup/memory/memory.limit_in_bytes", "1073741824\n");
        machine.file("cgroup/memory/memory.usage_in_bytes", "0\n");
        assert_eq!(machine.available().bytes, (1u64 << 30) / 10 * 9);
    }

    #[test]
    fn of_a_gpu_it_is_what_others_leave() {
        let available = of_gpu(GpuMemory {
            free: 20 << 30,
            total: 24 << 30,
            used: 0,
            peak: 0,
        });
        assert_eq!(available.bytes, (20 << 30) / 10 * 9);
        assert_eq!(
            available.source.to_string(),
            "nine tenths of the GPU's free memory, 20.0 GiB"
        );
    }

    #[test]
    fn where_nobody_says_there_is_no_limit() {
        let machine = Machine(tempfile::tempdir().unwrap());
        assert_eq!(machine.available().bytes, u64::MAX);
    }

    #[test]
    fn nonsense_is_no_limit() {
        let machine = Machine::new("MemAvailable: lots\n", "nonsense\n0::\n");
        machine.file("cgroup/memory.max", "-1\n");
        assert_eq!(machine.available().source, Source::Nobody);
    }

    #[test]
    fn something_is_known_of_this_machine() {
        assert!(of_this_machine().bytes > 0);
    }
}
