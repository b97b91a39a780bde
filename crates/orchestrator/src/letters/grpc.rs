//! Decode, call, encode.

use contract::Failure;
use contract::orchestrator as api;
use contract::orchestrator::dead_letter_service_server::DeadLetterService;
use contract::task::DeadLetter;
use task_log::{Found, Letter, LetterKind, LetterName, Undecodable};
use tonic::{Request, Response, Status};

use super::Letters;
use super::page::Asked;
use crate::error::CallError;

fn status(error: CallError) -> Status {
    Failure::from(error).into()
}

fn name(text: &str) -> Result<LetterName, Failure> {
    let name = text.parse();
    name.map_err(|problem: &str| Failure::invalid("id", problem))
}

fn encode(found: Found, payload: bool) -> api::DeadLetterInfo {
    let undecodable = found.is_err();
    let (id, kind, mut says) = match found {
        Ok(Letter { id, says, .. }) => (id.to_string(), Some(id.kind()), says),
        Err(found) => {
            let kind = found.id.as_ref().map(|id| id.kind());
            (found.sequence.to_string(), kind, as_letter(found))
        }
    };
    let payload_size = says.payload.len() as u64;
    if !payload {
        says = DeadLetter {
            payload: Vec::new(),
            ..says
        };
    }
    let kind = match kind {
        None => api::DeadLetterKind::Unspecified,
        Some(LetterKind::Task) => api::DeadLetterKind::Task,
        Some(LetterKind::Intake) => api::DeadLetterKind::Intake,
        Some(LetterKind::Webhook) => api::DeadLetterKind::Webhook,
    };
    api::DeadLetterInfo {
        id,
        kind: kind.into(),
        letter: Some(says),
        payload_size,
        undecodable,
    }
}

/// What is known of one that cannot be decoded.
fn as_letter(found: Undecodable) -> DeadLetter {
    let tenant = found.id.as_ref().map(|id| id.tenant().to_owned());
    DeadLetter {
        tenant: tenant.unwrap_or_default(),
        reason: format!("cannot be decoded: {}", found.problem),
        at: found.at.map(Into::into),
        subject: found.subject,
        payload: found.payload.into(),
        ..DeadLetter::default()
    }
}

#[tonic::async_trait]
impl DeadLetterService for Letters {
    async fn list_dead_letters(
        &self,
        request: Request<api::ListDeadLettersRequest>,
    ) -> Result<Response<api::ListDeadLettersResponse>, Status> {
        let asked = Asked::read(request.into_inner())?;
        let (page, next_page_token) = asked.fetch(&self.tasks.log).await.map_err(status)?;
        let letters = page.into_iter().map(|letter| encode(letter, false));
        Ok(Response::new(api::ListDeadLettersResponse {
            letters: letters.collect(),
            next_page_token,
        }))
    }

    async fn get_dead_letter(
        &self,
        request: Request<api::GetDeadLetterRequest>,
    ) -> Result<Response<api::GetDeadLetterResponse>, Status> {
        let name = name(&request.into_inner().id)?;
        let letter = self.get(&name).await.map_err(status)?;
        let letter = Some(encode(letter, true));
        Ok(Response::new(api::GetDeadLetterResponse { letter }))
    }

    async fn retry_dead_letter(
        &self,
        request: Request<api::RetryDeadLetterRequest>,
    ) -> Result<Response<api::RetryDeadLetterResponse>, Status> {
        let name = name(&request.into_inner().id)?;
        let retried = self.retry(&name).await.map_err(status)?;
        let task = retried.task.map(|task| task.to_string());
        Ok(Response::new(api::RetryDeadLetterResponse {
            task_id: task.unwrap_or_default(),
            existing: retried.existing,
        }))
    }

    async fn remove_dead_letter(
        &self,
        request: Request<api::RemoveDeadLetterRequest>,
    ) -> Result<Response<api::RemoveDeadLetterResponse>, Status> {
        let name = name(&request.into_inner().id)?;
        let removed = self.remove(&name).await.map_err(status)?;
        let letter = removed.map(|letter| encode(letter, false));
        Ok(Response::new(api::RemoveDeadLetterResponse { letter }))
    }
}
