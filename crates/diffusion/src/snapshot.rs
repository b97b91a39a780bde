//! A job as bytes. All that cannot be computed again from the request is in them, under a checksum.
//!
//! Layout, little endian: magic (8 bytes), version (2), model digest (32); then, each with its length in bytes before
//! it (8), the request as JSON, the state of its random numbers, the latents, the last estimate of the finished
//! picture, what the solver keeps, and what the steps need of a picture that the job began from; the evaluations done (4);
//! then SHA-256 of everything before it (32).

use crate::error::ResumeError;
use crate::given::{Given, Known};
use crate::job::Request;
use crate::noise::Generator;
use crate::scheduler::History;
use crate::sha256;

const MAGIC: &[u8; 8] = b"INKSNAP\n";
const VERSION: u16 = 3;
const CHECKSUM: usize = 32;
const HEAD: usize = 8 + 2;
/// The most tensors that a solver keeps.
const MOST_KEPT: u32 = 8;

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) model: [u8; 32],
    pub(crate) request: Request,
    pub(crate) done: u32,
    pub(crate) latents: Vec<f32>,
    pub(crate) history: History,
    pub(crate) given: Given,
}

/// The bytes.
pub(crate) fn write(snapshot: &Snapshot) -> Vec<u8> {
    let Snapshot {
        model,
        request,
        done,
        latents,
        history,
        given,
    } = snapshot;
    let tensors = 2 + history.kept.len();
    let mut out = Vec::with_capacity(4096 + request.prompt.len() + 4 * latents.len() * tensors);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(model);
    // Strings and finite numbers always have a JSON form; without one the snapshot is refused when it is read.
    put_bytes(&mut out, &serde_json::to_vec(request).unwrap_or_default());
    put_bytes(&mut out, &history.noise.to_bytes());
    put_floats(&mut out, latents);
    put_floats(&mut out, &history.denoised);
    out.extend_from_slice(&(history.kept.len() as u32).to_le_bytes());
    for tensor in &history.kept {
        put_floats(&mut out, tensor);
    }
    put_floats(&mut out, &given.beside);
    out.push(u8::from(given.known.is_some()));
    if let Some(known) = &given.known {
        for tensor in [&known.latents, &known.noise, &known.mask] {
            put_floats(&mut out, tensor);
        }
    }
    out.extend_from_slice(&done.to_le_bytes());
    let checksum = sha256::digest(&out);
    out.extend_from_slice(&checksum);
    out
}

/// What the bytes say. Nothing is allocated beyond a small multiple of the length of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Result<Snapshot, ResumeError> {
    let damaged = |reason| ResumeError::Damaged { reason };
    if bytes.len() < HEAD + CHECKSUM || !bytes.starts_with(MAGIC) {
        return Err(damaged("it does not begin as one"));
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != VERSION {
        return Err(ResumeError::Version {
            found: version,
            known: VERSION,
        });
    }
    let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
    if sha256::digest(body) != checksum {
        return Err(damaged("the checksum is wrong"));
    }
    Reader(&body[HEAD..])
        .snapshot()
        .ok_or_else(|| damaged("its fields do not fit"))
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_floats(out: &mut Vec<u8>, values: &[f32]) {
    out.extend_from_slice(&(values.len() as u64 * 4).to_le_bytes());
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(u64::from_le_bytes(self.array()?)).ok()?;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn floats(&mut self) -> Option<Vec<f32>> {
        let (values, rest) = self.bytes()?.as_chunks::<4>();
        rest.is_empty().then(|| {
            values
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect()
        })
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn given(&mut self) -> Option<Given> {
        let beside = self.floats()?;
        let known = match self.array::<1>()? {
            [0] => None,
            [1] => Some(Known {
                latents: self.floats()?,
                noise: self.floats()?,
                mask: self.floats()?,
            }),
            _ => return None,
        };
        Some(Given { beside, known })
    }

    fn snapshot(mut self) -> Option<Snapshot> {
        let model = self.array()?;
        let request = serde_json::from_slice(self.bytes()?).ok()?;
        let noise = Generator::from_bytes(self.bytes()?)?;
        let (latents, denoised) = (self.floats()?, self.floats()?);
        let kept = (0..self.number().filter(|count| *count <= MOST_KEPT)?)
            .map(|_| self.floats())
            .collect::<Option<_>>()?;
        let given = self.given()?;
        let done = self.number()?;
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        let history = History {
            denoised,
            kept,
            noise,
        };
        let sound = finite(&latents)
            && finite(&history.denoised)
            && history.kept.iter().all(|tensor| finite(tensor))
            && finite(&given.beside)
            && (given.known.iter())
                .all(|known| finite(&known.latents) && finite(&known.noise) && finite(&known.mask));
        (self.0.is_empty() && sound).then_some(Snapshot {
            model,
            request,
            done,
            latents,
            history,
            given,
        })
    }
}
