//! Where weights are while a model draws.

/// Above this many bytes of weights in f32, [`Residency::Auto`] leaves them in their files.
const PACKED_AT_MOST: u64 = 1 << 30;

/// Where the weights are that the processor's kernels read, whatever the type. The pictures are the same, bit by bit. On
/// other devices weights are always in the device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// In memory, in f32 and in the order in which the kernels read them: the fastest, 4 bytes a parameter.
    Packed,
    /// In their files, which are mapped and must not change while the model lives. Each product widens and packs what it
    /// needs into a buffer of a few megabytes. The system keeps in its file cache what fits and shares it between
    /// processes.
    Mapped,
    /// Packed up to 1 GiB of f32, mapped above.
    #[default]
    Auto,
}

impl Residency {
    /// Whether weights of `parameters` numbers stay in their files.
    pub(crate) fn is_mapped(self, parameters: u64) -> bool {
        match self {
            Self::Packed => false,
            Self::Mapped => true,
            Self::Auto => parameters.saturating_mul(4) > PACKED_AT_MOST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_packs_up_to_a_gibibyte() {
        assert!(!Residency::Auto.is_mapped(1 << 28));
        assert!(Residency::Auto.is_mapped((1 << 28) + 1));
        assert!(Residency::Auto.is_mapped(u64::MAX));
        assert!(Residency::Mapped.is_mapped(1) && !Residency::Packed.is_mapped(u64::MAX));
    }
}
