//! A job as bytes. All that cannot be computed again from the request is in them, under a checksum.
//!
//! Layout, little endian: magic (8 bytes), version (2), model digest (32), then the request, the steps done and the
//! latents and the history as [`write`] has them, then SHA-256 of everything before it (32).

use crate::error::ResumeError;
use crate::job::Request;
use crate::noise::Generator;
use crate::scheduler::{History, SchedulerKind};
use crate::sha256;

const MAGIC: &[u8; 8] = b"INKSNAP\n";
const VERSION: u16 = 2;
const CHECKSUM: usize = 32;
const HEAD: usize = 8 + 2;

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) model: [u8; 32],
    pub(crate) request: Request,
    pub(crate) done: u32,
    pub(crate) latents: Vec<f32>,
    pub(crate) history: History,
}

/// The bytes.
pub(crate) fn write(snapshot: &Snapshot) -> Vec<u8> {
    let Snapshot {
        model,
        request,
        done,
        latents,
        history,
    } = snapshot;
    let pictures = 2 + history.kept.len();
    let small = 256 + request.prompt.len() + Generator::BYTES;
    let mut out = Vec::with_capacity(small + 4 * pictures * latents.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(model);
    for number in [request.width, request.height, request.steps, *done] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&request.guidance_scale.to_le_bytes());
    out.extend_from_slice(&request.seed.to_le_bytes());
    let kind = request
        .scheduler
        .and_then(|kind| SchedulerKind::ALL.iter().position(|other| *other == kind));
    out.push(kind.map_or(0, |index| index as u8 + 1));
    put_bytes(&mut out, request.prompt.as_bytes());
    out.push(u8::from(request.negative_prompt.is_some()));
    put_bytes(
        &mut out,
        request
            .negative_prompt
            .as_deref()
            .unwrap_or_default()
            .as_bytes(),
    );
    put_floats(&mut out, latents);
    put_floats(&mut out, &history.denoised);
    out.push(history.kept.len() as u8);
    for kept in &history.kept {
        put_floats(&mut out, kept);
    }
    put_bytes(&mut out, &history.noise.to_bytes());
    let checksum = sha256::digest(&out);
    out.extend_from_slice(&checksum);
    out
}

/// What the bytes say. Nothing is allocated beyond the length of `bytes`.
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

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
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

    fn snapshot(mut self) -> Option<Snapshot> {
        let model = self.array()?;
        let [width, height, steps, done] = [
            self.number()?,
            self.number()?,
            self.number()?,
            self.number()?,
        ];
        let guidance_scale = f32::from_le_bytes(self.array()?);
        let seed = u64::from_le_bytes(self.array()?);
        let scheduler = match self.array::<1>()?[0] {
            0 => None,
            index => Some(*SchedulerKind::ALL.get(usize::from(index) - 1)?),
        };
        let prompt = self.text()?;
        let has_negative = match self.array::<1>()?[0] {
            0 => false,
            1 => true,
            _ => return None,
        };
        let negative = self.text()?;
        let negative_prompt = has_negative.then_some(negative);
        let request = Request {
            prompt,
            negative_prompt,
            width,
            height,
            steps,
            guidance_scale,
            seed,
            scheduler,
        };
        let (latents, denoised) = (self.floats()?, self.floats()?);
        let kept = (0..self.array::<1>()?[0])
            .map(|_| self.floats())
            .collect::<Option<_>>()?;
        let history = History {
            denoised,
            kept,
            noise: Generator::from_bytes(self.bytes()?)?,
        };
        self.0.is_empty().then_some(Snapshot {
            model,
            request,
            done,
            latents,
            history,
        })
    }
}
