//! What a list asks for, and the tokens that lead from one page to the next. Pure.

use std::time::SystemTime;

use aws_lc_rs::digest;
use contract::Failure;
use contract::limits::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MAX_PHASES};
use contract::orchestrator::ListRequest;
use contract::v1::TaskPhase;
use contract::words::{PHASES, all};
use prost::Message as _;
use task_log::Wanted;

/// Hexadecimal digits of the filters' digest in a token: enough to notice a token of another list, which is no secret.
const DIGEST_CHARS: usize = 8;

/// One page, as it is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) wanted: Wanted,
    pub(crate) size: usize,
    /// Where the page before ended.
    pub(crate) before: Option<u64>,
    filters: String,
}

impl Asked {
    /// Reads a request.
    ///
    /// # Errors
    /// An invalid argument that names the field.
    pub(crate) fn read(request: &ListRequest) -> Result<Self, Failure> {
        let size = match request.page_size {
            0 => DEFAULT_PAGE_SIZE,
            size if size <= MAX_PAGE_SIZE => size,
            size => {
                let text = format!("page_size must be at most {MAX_PAGE_SIZE}, not {size}");
                return Err(Failure::invalid("page_size", text));
            }
        };
        let wanted = wanted(request)?;
        let filters = filters(request);
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(sequence(token, &filters).ok_or_else(|| {
                let text = "page_token is not one that a page with these filters gave";
                Failure::invalid("page_token", text)
            })?),
        };
        Ok(Self {
            wanted,
            size: size as usize,
            before,
            filters,
        })
    }

    /// The token of the page that begins before `sequence`.
    pub(crate) fn token(&self, sequence: u64) -> String {
        format!("{sequence}-{}", self.filters)
    }
}

fn sequence(token: &str, filters: &str) -> Option<u64> {
    let (sequence, of) = token.split_once('-')?;
    (of == filters).then(|| sequence.parse().ok())?
}

fn wanted(request: &ListRequest) -> Result<Wanted, Failure> {
    if request.phases.len() > MAX_PHASES {
        let text = format!("phases must be at most {MAX_PHASES}");
        return Err(Failure::invalid("phases", text));
    }
    let mut phases = Vec::new();
    for &number in std::iter::once(&request.phase).chain(&request.phases) {
        let phase = TaskPhase::try_from(number).map_err(|_| {
            let words = all(PHASES);
            let text = format!("phase has no value {number} in this version; there are {words}");
            Failure::invalid("phase", text)
        })?;
        if phase != TaskPhase::Unspecified && !phases.contains(&phase) {
            phases.push(phase);
        }
    }
    let (after, before) = (request.created_after, request.created_before);
    let after = after.map(|time| SystemTime::try_from(time).map_err(|_| no_time("created_after")));
    let before =
        before.map(|time| SystemTime::try_from(time).map_err(|_| no_time("created_before")));
    let (after, before) = (after.transpose()?, before.transpose()?);
    if let (Some(after), Some(before)) = (after, before)
        && after >= before
    {
        let text = "created_before must be later than created_after";
        return Err(Failure::invalid("created_before", text));
    }
    Ok(Wanted {
        model: request.model.clone(),
        phases,
        after,
        before,
    })
}

fn no_time(field: &str) -> Failure {
    Failure::invalid(field, format!("{field} is no time"))
}

/// What a token is bound to: the request without what changes from page to page.
fn filters(request: &ListRequest) -> String {
    let bare = ListRequest {
        page_size: 0,
        page_token: String::new(),
        assertion: String::new(),
        ..request.clone()
    };
    let digest = digest::digest(&digest::SHA256, &bare.encode_to_vec());
    hex::encode(&digest.as_ref()[..DIGEST_CHARS / 2])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(request: &ListRequest) -> Option<String> {
        Asked::read(request).err().and_then(|failure| failure.field)
    }

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn a_token_is_good_for_the_list_that_gave_it_and_for_no_other() {
        let request = ListRequest {
            tenant: "acme".to_owned(),
            model: "demo".to_owned(),
            ..ListRequest::default()
        };
        let token = Asked::read(&request).unwrap().token(7);
        // The size of a page is no filter, nor how it is shown whose tasks they are.
        let next = ListRequest {
            page_token: token.clone(),
            page_size: 5,
            assertion: "another".to_owned(),
            ..request.clone()
        };
        assert_eq!(Asked::read(&next).unwrap().before, Some(7));
        let others = [
            ListRequest {
                model: String::new(),
                ..next.clone()
            },
            ListRequest {
                tenant: "bcme".to_owned(),
                ..next.clone()
            },
            ListRequest {
                phase: TaskPhase::Failed.into(),
                ..next.clone()
            },
            ListRequest {
                created_after: at(1),
                ..next
            },
        ];
        for other in others {
            assert_eq!(field(&other).as_deref(), Some("page_token"), "{other:?}");
        }
        for nonsense in ["7", "x", "-", "7-", "-7", &token[1..]] {
            let request = ListRequest {
                page_token: nonsense.to_owned(),
                ..request.clone()
            };
            assert_eq!(field(&request).as_deref(), Some("page_token"), "{nonsense}");
        }
    }

    #[test]
    fn phases_add_up_and_what_cannot_be_is_named() {
        let request = ListRequest {
            phase: TaskPhase::Failed.into(),
            phases: vec![TaskPhase::Queued.into(), TaskPhase::Failed.into(), 0],
            ..ListRequest::default()
        };
        let asked = Asked::read(&request).unwrap();
        assert_eq!(asked.wanted.phases, [TaskPhase::Failed, TaskPhase::Queued]);
        assert_eq!(asked.size, DEFAULT_PAGE_SIZE as usize);
        let with = |change: fn(&mut ListRequest)| {
            let mut request = ListRequest::default();
            change(&mut request);
            field(&request)
        };
        assert_eq!(with(|r| r.page_size = 101).as_deref(), Some("page_size"));
        assert_eq!(with(|r| r.phases = vec![9]).as_deref(), Some("phase"));
        assert_eq!(with(|r| r.phases = vec![1; 99]).as_deref(), Some("phases"));
        let backwards = ListRequest {
            created_after: at(5),
            created_before: at(5),
            ..ListRequest::default()
        };
        assert_eq!(field(&backwards).as_deref(), Some("created_before"));
    }

    proptest! {
        #[test]
        fn no_token_makes_the_reader_panic(page_token in "\\PC{0,30}", seconds: i64, nanos: i32) {
            let time = prost_types::Timestamp { seconds, nanos };
            let _ = Asked::read(&ListRequest {
                page_token,
                created_after: Some(time),
                ..ListRequest::default()
            });
        }
    }
}
