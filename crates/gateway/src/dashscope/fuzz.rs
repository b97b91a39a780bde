//! This dialect's readers, for [`crate::fuzz`].

use contract::Failure;

use super::list::{ListQuery, wanted};
use super::request::{Form, decode};
use crate::fuzz::{Target, checked, read, target};
use crate::json::Fields;

pub(crate) fn targets() -> [Target; 1] {
    [target("DashScope JSON", REQUESTS, request)]
}

const REQUESTS: &[&str] = &[
    r#"{"model":"m","input":{"prompt":"a cat","negative_prompt":"dog"},"parameters":{"size":"64*64","n":2,"seed":7,
       "style":"<anime>","steps":4,"guidance_scale":2.5,"scheduler":"euler","style_tags":["a"],"watermark":false}}"#,
    r#"{"model":"m","input":{"messages":[{"role":"user","content":[{"text":"a cat"}]}]},"parameters":{"size":"64*96"}}"#,
    r#"{"input":{"prompt":"a cat"}}"#,
];

fn request(input: &[u8]) -> Result<(), Failure> {
    let task = |form| checked(&decode(Fields::parse(input)?, form, String::new())?.task);
    task(Form::Prompt).or_else(|_| task(Form::Messages))
}

/// The query of a list.
pub(crate) fn query(input: &[u8]) -> Result<(), Failure> {
    wanted(read::<ListQuery>(input)?).map(|_| ())
}
