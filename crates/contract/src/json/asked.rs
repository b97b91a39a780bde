//! What a decoder asks for, learned by letting it read: a description that is made of this cannot differ from the decoder in the
//! fields that there are, their kinds or their words.

use std::sync::{Arc, Mutex, PoisonError};

use super::Fields;
use crate::Failure;

/// A field that a decoder asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Where it is: names joined by dots, `[]` behind the name of a list of objects.
    pub path: String,
    /// As what.
    pub kind: Kind,
}

/// What a field is read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// A list of texts.
    Texts,
    /// One of a closed list.
    Word(Vec<&'static str>),
    /// A list of such.
    Words(Vec<&'static str>),
    /// A truth value.
    Truth,
    /// A whole number of 32 bits.
    Small,
    /// A whole number of 64 bits.
    Large,
    /// A number.
    Number,
    /// Fields of its own.
    Object,
    /// A list of such.
    Objects,
    /// Not a field: the object at the path, which is empty for the whole, has no others.
    Closed,
}

/// Lets `decode` read `sample` and says what it asked for, each once, in the order asked. A part that is read only where it is there
/// has to be in the sample.
///
/// # Errors
/// When the sample is refused.
pub fn asked<T>(
    sample: &str,
    decode: impl FnOnce(Fields) -> Result<T, Failure>,
) -> Result<Vec<Asked>, Failure> {
    let mut fields = Fields::parse(sample.as_bytes())?;
    let listener = Listener::default();
    fields.listener = Some(listener.clone());
    decode(fields)?;
    let heard = listener.heard.lock();
    Ok(std::mem::take(
        &mut *heard.unwrap_or_else(PoisonError::into_inner),
    ))
}

/// Notes what is asked of some fields and of those inside them.
#[derive(Debug, Clone, Default)]
pub(super) struct Listener {
    heard: Arc<Mutex<Vec<Asked>>>,
    /// In front of each name: empty, or a path with its dot.
    within: String,
}

impl Listener {
    pub(super) fn hear(&self, name: &str, kind: Kind) {
        let path = format!("{}{name}", self.within);
        let path = path.trim_end_matches('.').to_owned();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !heard
            .iter()
            .any(|known| known.path == path && known.kind == kind)
        {
            heard.push(Asked { path, kind });
        }
    }

    /// For the fields inside `name`.
    pub(super) fn inside(&self, name: &str) -> Self {
        Self {
            heard: self.heard.clone(),
            within: format!("{}{name}.", self.within),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_decoder_asks_for_is_told_with_its_place_and_kind() {
        let decode = |mut fields: Fields| {
            fields.text("a")?;
            fields.word("b", &[("x", 1), ("y", 2)])?;
            let mut inner = fields.object("c")?;
            inner.large("d")?;
            inner.nothing_else(&["d"])?;
            for mut item in fields.objects("e")? {
                item.truth("f")?;
            }
            fields.nothing_else(&[])
        };
        let heard = asked(r#"{"e":[{},{}]}"#, decode).unwrap();
        let heard: Vec<_> = heard.iter().map(|a| (a.path.as_str(), &a.kind)).collect();
        let expected = [
            ("a", &Kind::Text),
            ("b", &Kind::Word(vec!["x", "y"])),
            ("c", &Kind::Object),
            ("c.d", &Kind::Large),
            ("c", &Kind::Closed),
            ("e", &Kind::Objects),
            ("e[].f", &Kind::Truth),
            ("", &Kind::Closed),
        ];
        assert_eq!(heard, expected);
    }

    #[test]
    fn a_sample_that_is_refused_is_an_error() {
        asked("{\"x\":1}", |fields| fields.nothing_else(&[])).unwrap_err();
    }
}
