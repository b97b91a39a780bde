//! What a file says about its origin.

use serde::{Deserialize, Serialize};

/// The implicit label of AI-generated content (GB 45438-2025): kept as JSON in a file's metadata, in XMP
/// under `TC260:AIGC`.
///
/// Reading is lenient where files of other producers are: every field but `Label` may be missing, further ones are
/// ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// `"1"`: AI-generated. `"2"`: possibly. `"3"`: suspected.
    #[serde(rename = "Label")]
    pub label: String,
    /// Who generated the content: a name or a code.
    #[serde(rename = "ContentProducer", default)]
    pub content_producer: String,
    /// The producer's own number for this content.
    #[serde(rename = "ProduceID", default)]
    pub produce_id: String,
    /// For the producer's security needs, such as a digest or a signature.
    #[serde(rename = "ReservedCode1", default)]
    pub reserved_code1: String,
    /// Who spread the content: a name or a code.
    #[serde(rename = "ContentPropagator", default)]
    pub content_propagator: String,
    /// The propagator's own number for this content.
    #[serde(rename = "PropagateID", default)]
    pub propagate_id: String,
    /// For the propagator's security needs.
    #[serde(rename = "ReservedCode2", default)]
    pub reserved_code2: String,
}
