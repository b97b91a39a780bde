//! What the tensors of a request say of each picture.

use contract::limits::{MAX_EXPIRES_AFTER_SECONDS, MAX_IMAGES};
use contract::words::{PROMPT_SYNTAXES, QUALITIES, SCHEDULERS, Words, all, meaning};
use contract::{Failure, v1};

use super::names;
use crate::json::shorten;
use crate::oip::model::{INPUTS, Kind};
use crate::oip::tensor::{Tensor, Values, invalid};

/// The inputs of a request, each known and of the batch's length or of one.
pub(super) struct Inputs<'a> {
    tensors: Vec<&'a Tensor>,
    pub(super) batch: usize,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(given: &'a [Tensor]) -> Result<Self, Failure> {
        let mut tensors: Vec<&Tensor> = Vec::with_capacity(INPUTS.len());
        for tensor in given {
            let shown = shorten(&tensor.name);
            if !INPUTS.iter().any(|input| input.name == tensor.name) {
                let names = names(INPUTS);
                let message = format!("there is no input {shown:?}; there are {names}");
                return Err(invalid(&shown, message));
            }
            if tensors.iter().any(|known| known.name == tensor.name) {
                return Err(invalid(&shown, format!("{shown} is given more than once")));
            }
            tensors.push(tensor);
        }
        let mut inputs = Self { tensors, batch: 0 };
        let prompt = inputs.find("PROMPT").ok_or_else(|| {
            Failure::invalid("PROMPT", "the input PROMPT is missing: what to draw")
        })?;
        inputs.batch = prompt.batch()?;
        if inputs.batch > MAX_IMAGES as usize {
            let batch = inputs.batch;
            let message = format!(
                "PROMPT must have at most {MAX_IMAGES} elements, whatever the model, not {batch}"
            );
            return Err(Failure::invalid("PROMPT", message));
        }
        for tensor in &inputs.tensors {
            let (name, given, batch) = (&tensor.name, tensor.batch()?, inputs.batch);
            if given != 1 && given != batch {
                let message = format!(
                    "{name} must have 1 element or as many as PROMPT, which has {batch}, not {given}"
                );
                return Err(invalid(name, message));
            }
        }
        Ok(inputs)
    }

    fn find(&self, name: &str) -> Option<&'a Tensor> {
        self.tensors.iter().find(|t| t.name == name).copied()
    }

    /// The request for picture `i`.
    pub(super) fn task(&self, i: usize) -> Result<v1::SubmitTask, Failure> {
        Ok(v1::SubmitTask {
            prompt: self.text("PROMPT", i)?.unwrap_or_default(),
            negative_prompt: self.text("NEGATIVE_PROMPT", i)?.unwrap_or_default(),
            width: self.small("WIDTH", i)?,
            height: self.small("HEIGHT", i)?,
            images: 1,
            seed: self
                .whole("SEED", i, i128::from(u64::MAX), None)?
                .map(|n| n as u64),
            steps: self.small("STEPS", i)?,
            guidance_scale: self.real("GUIDANCE_SCALE", i)?,
            guidance_rescale: self.real("GUIDANCE_RESCALE", i)?,
            scheduler: self
                .word("SCHEDULER", i, SCHEDULERS)?
                .unwrap_or_default()
                .into(),
            prompt_syntax: self
                .word("PROMPT_SYNTAX", i, PROMPT_SYNTAXES)?
                .unwrap_or_default()
                .into(),
            quality: self
                .word("QUALITY", i, QUALITIES)?
                .unwrap_or_default()
                .into(),
            expires_after_seconds: self.seconds("EXPIRES_AFTER_SECONDS", i)?,
            visible_label: self.whole("VISIBLE_LABEL", i, 1, None)? == Some(1),
            ..Default::default()
        })
    }

    fn text(&self, name: &str, i: usize) -> Result<Option<String>, Failure> {
        let Some(tensor) = self.find(name) else {
            return Ok(None);
        };
        let Values::Bytes(values) = &tensor.values else {
            return Err(wrong_kind(name));
        };
        let bytes = pick(values, i);
        let text = bytes.map(|bytes| std::str::from_utf8(bytes).map(str::to_owned));
        text.transpose().map_err(|error| {
            let place = error.valid_up_to();
            let message = format!("element {i} of {name} is not UTF-8 from byte {place} on");
            invalid(name, message)
        })
    }

    fn word<T: Copy>(&self, name: &str, i: usize, words: Words<T>) -> Result<Option<T>, Failure> {
        // Empty is how a batch leaves an element out.
        let Some(text) = self.text(name, i)?.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        meaning(words, &text).map(Some).ok_or_else(|| {
            let (words, shown) = (all(words), shorten(&text));
            invalid(
                name,
                format!("{name} must be one of {words}, not {shown:?}"),
            )
        })
    }

    /// A number up to `most`; in a refusal it is called `limit`, where one is known that is less.
    fn whole(
        &self,
        name: &str,
        i: usize,
        most: i128,
        limit: Option<&str>,
    ) -> Result<Option<i128>, Failure> {
        let Some(tensor) = self.find(name) else {
            return Ok(None);
        };
        let Values::Whole(values) = &tensor.values else {
            return Err(wrong_kind(name));
        };
        match pick(values, i) {
            Some(number) if !(0..=most).contains(number) => {
                let limit = limit.map_or_else(|| most.to_string(), str::to_owned);
                let message = format!("{name} must be 0 to {limit}, not {number}");
                Err(invalid(name, message))
            }
            number => Ok(number.copied()),
        }
    }

    /// As everywhere, 0 is the model's default. Its limit is not known here, and far below that of 32 bits, which would mislead.
    fn small(&self, name: &str, i: usize) -> Result<u32, Failure> {
        let limit = Some("the model's limit");
        let number = self.whole(name, i, i128::from(u32::MAX), limit)?;
        Ok(number.map_or(0, |n| n as u32))
    }

    fn seconds(&self, name: &str, i: usize) -> Result<u32, Failure> {
        let most = i128::from(MAX_EXPIRES_AFTER_SECONDS);
        let number = self.whole(name, i, most, None)?;
        Ok(number.map_or(0, |n| n as u32))
    }

    fn real(&self, name: &str, i: usize) -> Result<Option<f32>, Failure> {
        let Some(tensor) = self.find(name) else {
            return Ok(None);
        };
        match &tensor.values {
            Values::Real(values) => Ok(pick(values, i).map(|n| *n as f32)),
            Values::Whole(values) => Ok(pick(values, i).map(|n| *n as f32)),
            Values::Bytes(_) => Err(wrong_kind(name)),
        }
    }
}

/// The element for picture `i`; a tensor of one is for all.
fn pick<T>(values: &[T], i: usize) -> Option<&T> {
    values.get(if values.len() == 1 { 0 } else { i })
}

fn wrong_kind(name: &str) -> Failure {
    let input = INPUTS.iter().find(|input| input.name == name);
    let takes = match input.map(|input| input.kind) {
        Some(Kind::Text) | None => "BYTES",
        Some(Kind::Whole) => "a whole datatype such as INT32 or UINT64",
        Some(Kind::Real) => "FP32 or FP64",
    };
    invalid(name, format!("the datatype of {name} must be {takes}"))
}
