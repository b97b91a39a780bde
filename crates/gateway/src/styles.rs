//! A style that a dialect has of its own, and that is kept as one more of the style tags.

use contract::Failure;
use contract::limits::MAX_STYLE_TAGS;

/// The style tags of a request, with its `style` as the last.
///
/// # Errors
/// An invalid argument that names `style`, where as many tags as there may be leave it no place. Tags that are too many by themselves are
/// refused with the other limits, by their own name and number.
pub(crate) fn with_style(
    mut tags: Vec<String>,
    style: Option<&str>,
) -> Result<Vec<String>, Failure> {
    let Some(style) = style else {
        return Ok(tags);
    };
    if tags.len() == MAX_STYLE_TAGS {
        let message = format!(
            "style must be left out beside {MAX_STYLE_TAGS} style_tags: it is kept as one of them, and there may be no more"
        );
        return Err(Failure::invalid("style", message));
    }
    if tags.len() < MAX_STYLE_TAGS {
        tags.push(style.to_owned());
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use contract::{v1, validate};

    use super::*;

    fn tags(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("tag {i}")).collect()
    }

    #[test]
    fn a_style_is_the_last_tag_and_is_named_where_it_is_the_one_too_many() {
        let most = MAX_STYLE_TAGS;
        assert_eq!(with_style(tags(most), None).unwrap(), tags(most));
        let kept = with_style(tags(most - 1), Some("vivid")).unwrap();
        assert_eq!((kept.len(), kept[most - 1].as_str()), (most, "vivid"));
        let refused = with_style(tags(most), Some("vivid")).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("style"));
        assert!(
            refused.message.contains("beside 16 style_tags"),
            "{refused}"
        );
    }

    #[test]
    fn tags_that_are_too_many_without_a_style_are_told_with_their_own_number() {
        let task = v1::SubmitTask {
            prompt: "p".to_owned(),
            style_tags: with_style(tags(MAX_STYLE_TAGS + 1), Some("vivid")).unwrap(),
            ..v1::SubmitTask::default()
        };
        let refused = validate(&task).unwrap_err();
        assert_eq!(refused.message, "style_tags must be at most 16, not 17");
    }
}
