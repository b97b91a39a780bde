//! The XMP packet (ISO 16684-1) that carries the label.
//!
//! Writing makes one fixed form. Reading is not an XML parser: it walks the tags of a packet, once and without
//! recursion, and looks for the one property that matters, as an attribute or as an element.

use std::borrow::Cow;

use crate::label::Label;
use crate::{EncodeError, InspectError};

/// The longest packet we write, in bytes: what fits one JPEG APP1 segment (65,535 with its own length field) after
/// the signature. The other formats hold more; one limit for all keeps a label from depending on the format.
pub(crate) const MAX_WRITTEN: usize = 65_535 - 2 - JPEG_SIGNATURE.len();
/// The longest packet we read, in bytes: editors store histories and thumbnails in theirs.
pub(crate) const MAX_READ: usize = 1 << 20;

/// What an APP1 segment with XMP begins with (XMP specification, part 3).
pub(crate) const JPEG_SIGNATURE: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// The keyword of the PNG text chunk with XMP (XMP specification, part 3).
pub(crate) const PNG_KEYWORD: &str = "XML:com.adobe.xmp";

/// The namespace that TC260 assigned, and the property in it.
const NAMESPACE: &str = "http://www.tc260.org.cn/ns/AIGC/1.0/";
const PROPERTY: &str = "AIGC";

/// The packet for `label`, at most [`MAX_WRITTEN`] bytes.
pub(crate) fn write(label: &Label) -> Result<String, EncodeError> {
    let json = serde_json::to_string(label)
        .map_err(EncodeError::Label)?
        // The two characters that JSON allows as they are and XML 1.0 does not allow at all.
        .replace('\u{fffe}', "\\ufffe")
        .replace('\u{ffff}', "\\uffff");
    let packet = format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n\
         <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n\
         <rdf:Description rdf:about=\"\" xmlns:TC260=\"{NAMESPACE}\" TC260:{PROPERTY}=\"{}\"/>\n\
         </rdf:RDF>\n\
         </x:xmpmeta>\n\
         <?xpacket end=\"r\"?>",
        escape(&json)
    );
    if packet.len() > MAX_WRITTEN {
        return Err(EncodeError::LabelLength {
            bytes: packet.len(),
            limit: MAX_WRITTEN,
        });
    }
    Ok(packet)
}

/// The label in a packet, if it has one.
pub(crate) fn read(packet: &[u8]) -> Result<Option<Label>, InspectError> {
    if packet.len() > MAX_READ {
        return Err(InspectError::MetadataLength {
            bytes: packet.len(),
            limit: MAX_READ,
        });
    }
    let text =
        std::str::from_utf8(packet).map_err(|_| InspectError::Metadata("it is not UTF-8"))?;
    let Some(value) = find_property(text)? else {
        return Ok(None);
    };
    serde_json::from_str(&unescape(value)?)
        .map(Some)
        .map_err(InspectError::Label)
}

/// The property's value, still escaped.
fn find_property(mut rest: &str) -> Result<Option<&str>, InspectError> {
    // Namespaces are scoped in XML; the prefix declared last is scope enough for a property that stands at most once.
    let mut prefix = None;
    while let Some(start) = rest.find('<') {
        rest = &rest[start..];
        let skip = [
            ("<!--", "-->"),
            ("<![CDATA[", "]]>"),
            ("<?", "?>"),
            ("<!", ">"),
        ]
        .into_iter()
        .find(|(opening, _)| rest.starts_with(opening));
        if let Some((opening, closing)) = skip {
            let end = rest[opening.len()..]
                .find(closing)
                .ok_or(InspectError::Metadata("a comment or instruction is open"))?;
            rest = &rest[opening.len() + end + closing.len()..];
            continue;
        }
        let tag = Tag::parse(&rest[1..])?;
        for (name, value) in tag.attributes() {
            if let Some(declared) = name.strip_prefix("xmlns:")
                && value == NAMESPACE
            {
                prefix = Some(declared);
            }
        }
        rest = tag.rest;
        let Some(prefix) = prefix else { continue };
        let ours = |name: &str| name.split_once(':') == Some((prefix, PROPERTY));
        if let Some((_, value)) = tag.attributes().find(|(name, _)| ours(name)) {
            return Ok(Some(value));
        }
        if ours(tag.name) {
            let text = rest.find('<').map_or(rest, |end| &rest[..end]);
            return Ok((!text.trim().is_empty()).then_some(text));
        }
    }
    Ok(None)
}

/// One tag, cut into its name and its attributes.
struct Tag<'a> {
    name: &'a str,
    attributes: &'a str,
    rest: &'a str,
}

impl<'a> Tag<'a> {
    /// `text` begins after the `<`.
    fn parse(text: &'a str) -> Result<Self, InspectError> {
        let mut quote = None;
        // A `>` inside a quoted value does not end the tag.
        let end = text.bytes().position(|byte| match (quote, byte) {
            (Some(open), _) => {
                if byte == open {
                    quote = None;
                }
                false
            }
            (None, b'"' | b'\'') => {
                quote = Some(byte);
                false
            }
            (None, _) => byte == b'>',
        });
        let end = end.ok_or(InspectError::Metadata("a tag is open"))?;
        let inside = text[..end].trim_end_matches('/');
        let name_end = inside
            .find(|c: char| c.is_ascii_whitespace())
            .unwrap_or(inside.len());
        Ok(Self {
            name: &inside[..name_end],
            attributes: &inside[name_end..],
            rest: &text[end + 1..],
        })
    }

    /// Names and values, values still escaped. Ends at the first thing that is no attribute.
    fn attributes(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut rest = self.attributes;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_once('=')?;
            let after = after.trim_ascii_start();
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (value, after) = after[1..].split_once(quote)?;
            rest = after;
            Some((name.trim_ascii(), value))
        })
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn unescape(text: &str) -> Result<Cow<'_, str>, InspectError> {
    const UNKNOWN: InspectError = InspectError::Metadata("it uses an unknown entity");
    if !text.contains('&') {
        return Ok(Cow::Borrowed(text));
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        let (entity, after) = after.split_once(';').ok_or(UNKNOWN)?;
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let number = entity.strip_prefix('#').ok_or(UNKNOWN)?;
                let code = match number.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => number.parse(),
                };
                code.ok().and_then(char::from_u32).ok_or(UNKNOWN)?
            }
        });
        rest = after;
    }
    plain.push_str(rest);
    Ok(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(packet: &str) -> Result<Option<String>, InspectError> {
        Ok(read(packet.as_bytes())?.map(|label| label.content_producer))
    }

    #[test]
    fn another_producers_packet_is_read_as_attribute_or_element_under_any_prefix() {
        let attribute = format!(
            "<x:xmpmeta><!-- <a> --><d xmlns:q='{NAMESPACE}' other:AIGC='no' q:AIGC = '{{\"Label\":\"1\",\
             \"ContentProducer\":\"a > b &#x26; &apos;&#99;&apos;\",\"More\":[1]}}' /></x:xmpmeta>"
        );
        assert_eq!(
            read_text(&attribute).unwrap().as_deref(),
            Some("a > b & 'c'")
        );
        let element = format!(
            "<d xmlns:q=\"{NAMESPACE}\"><q:AIGC>{{\"Label\":\"1\",\"ContentProducer\":\"c\"}}</q:AIGC></d>"
        );
        assert_eq!(read_text(&element).unwrap().as_deref(), Some("c"));
    }

    #[test]
    fn a_packet_of_another_namespace_has_no_label() {
        let packet = "<d xmlns:TC260='http://example.org/' TC260:AIGC='{\"Label\":\"1\"}'/>";
        assert_eq!(read_text(packet).unwrap(), None);
        assert_eq!(read_text("").unwrap(), None);
        assert_eq!(read_text("no tags").unwrap(), None);
    }

    #[test]
    fn broken_packets_are_errors() {
        let with = |value: &str| format!("<d xmlns:q='{NAMESPACE}' q:AIGC='{value}'/>");
        for packet in [
            "<d",
            "<!-- ",
            "<d a='",
            &with("{"),
            &with("&nope;"),
            &with("&#xD800;"),
        ] {
            assert!(read_text(packet).is_err(), "{packet}");
        }
        assert!(read(&[0xff, 0xfe]).is_err());
        assert!(matches!(
            read(&vec![b' '; MAX_READ + 1]),
            Err(InspectError::MetadataLength { .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives_writing_and_reading(producer: String, id: String) {
            let label = Label {
                label: "1".into(),
                content_producer: producer,
                produce_id: id,
                reserved_code1: "\u{fffe}\u{ffff}\0\n\t\"'<&>]]>".into(),
                content_propagator: String::new(),
                propagate_id: String::new(),
                reserved_code2: String::new(),
            };
            let packet = write(&label).unwrap();
            let allowed = packet
                .chars()
                .all(|c| c == '\n' || c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}'));
            proptest::prop_assert!(allowed);
            proptest::prop_assert_eq!(read(packet.as_bytes()).unwrap(), Some(label));
        }

        #[test]
        fn no_text_makes_reading_panic(text in r#"([<>/='"&;:! ?-]|xmlns:q|http://www.tc260.org.cn/ns/AIGC/1.0/|q:AIGC|é|\{|CDATA\[|.){0,60}"#) {
            let _ = read(text.as_bytes());
        }
    }
}
