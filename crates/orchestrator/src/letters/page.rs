//! A list of letters, page by page.

use std::time::SystemTime;

use contract::Failure;
use contract::orchestrator::{DeadLetterKind, ListDeadLettersRequest};
use task_log::{Found, Letter, LetterKind, TaskLog, WantedLetters};

use crate::error::CallError;

const DEFAULT_SIZE: u32 = 50;
const MAX_SIZE: u32 = 200;
/// Letters that one call looks at: those that are not wanted cost as much as those that are.
const MAX_LOOKED_AT: usize = 2000;

/// What a page is to hold.
#[derive(Debug)]
pub(super) struct Asked {
    wanted: WantedLetters,
    code: String,
    since: Option<SystemTime>,
    size: usize,
    from: Option<u64>,
}

impl Asked {
    /// Reads a request.
    ///
    /// # Errors
    /// An invalid argument that names the field.
    pub(super) fn read(request: ListDeadLettersRequest) -> Result<Self, Failure> {
        let kind = kind(&request)?;
        let tenant = match request.tenant.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error: contract::id::InvalidId| {
                Failure::invalid("tenant", error.to_string())
            })?),
        };
        let size = match request.page_size {
            0 => DEFAULT_SIZE,
            size if size <= MAX_SIZE => size,
            size => {
                let text = format!("page_size must be at most {MAX_SIZE}, not {size}");
                return Err(Failure::invalid("page_size", text));
            }
        };
        let from = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                let text = "page_token is not one that a page gave";
                Failure::invalid("page_token", text)
            })?),
        };
        let since = request.since.map(SystemTime::try_from).transpose();
        Ok(Self {
            wanted: WantedLetters { tenant, kind },
            code: request.code,
            since: since.map_err(|_| Failure::invalid("since", "since is no time"))?,
            size: size as usize,
            from,
        })
    }

    /// The page, and the token of the next.
    pub(super) async fn fetch(&self, log: &TaskLog) -> Result<(Vec<Found>, String), CallError> {
        let mut from = match (self.from, self.since) {
            (Some(from), _) => from,
            (None, None) => 1,
            (None, Some(since)) => match log.letters_since(&self.wanted, since).await? {
                Some(from) => from,
                None => return Ok(Default::default()),
            },
        };
        let (mut page, mut looked_at) = (Vec::new(), 0);
        loop {
            let (letters, next) = log.letters(&self.wanted, from).await?;
            let Some(next) = next else {
                return Ok((page, String::new()));
            };
            for letter in letters {
                looked_at += 1;
                // One that cannot be decoded has none.
                let has_code = |letter: &Letter| letter.says.code == self.code;
                let is_wanted = self.code.is_empty() || letter.as_ref().is_ok_and(has_code);
                if is_wanted && page.len() == self.size {
                    return Ok((page, place(&letter).to_string()));
                }
                if is_wanted {
                    page.push(letter);
                }
            }
            from = next;
            if looked_at >= MAX_LOOKED_AT {
                return Ok((page, from.to_string()));
            }
        }
    }
}

/// Where it lies.
pub(super) fn place(found: &Found) -> u64 {
    match found {
        Ok(letter) => letter.sequence,
        Err(undecodable) => undecodable.sequence,
    }
}

fn kind(request: &ListDeadLettersRequest) -> Result<Option<LetterKind>, Failure> {
    match DeadLetterKind::try_from(request.kind) {
        Ok(DeadLetterKind::Unspecified) => Ok(None),
        Ok(DeadLetterKind::Task) => Ok(Some(LetterKind::Task)),
        Ok(DeadLetterKind::Intake) => Ok(Some(LetterKind::Intake)),
        Ok(DeadLetterKind::Webhook) => Ok(Some(LetterKind::Webhook)),
        Err(_) => {
            let text = format!("kind has no value {} in this version", request.kind);
            Err(Failure::invalid("kind", text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let field = |change: fn(&mut ListDeadLettersRequest)| {
            let mut request = ListDeadLettersRequest::default();
            change(&mut request);
            Asked::read(request).err().and_then(|failure| failure.field)
        };
        assert_eq!(field(|_| {}), None);
        assert_eq!(field(|r| r.page_size = 201).as_deref(), Some("page_size"));
        assert_eq!(field(|r| r.kind = 9).as_deref(), Some("kind"));
        let tenant = field(|r| r.tenant = "a.*".to_owned());
        assert_eq!(tenant.as_deref(), Some("tenant"));
        let token = field(|r| r.page_token = "x".to_owned());
        assert_eq!(token.as_deref(), Some("page_token"));
    }
}
