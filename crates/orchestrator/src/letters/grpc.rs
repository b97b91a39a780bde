//! Decode, call, encode.

use contract::Failure;
use contract::orchestrator as api;
use contract::orchestrator::dead_letter_service_server::DeadLetterService;
use contract::task::DeadLetter;
use task_log::{Letter, LetterId, LetterKind};
use tonic::{Request, Response, Status};

use super::Letters;
use super::page::Asked;
use crate::error::CallError;

fn status(error: CallError) -> Status {
    Failure::from(error).into()
}

fn id(text: &str) -> Result<LetterId, Failure> {
    let id = text.parse();
    id.map_err(|problem: &str| Failure::invalid("id", problem))
}

fn encode(letter: Letter, payload: bool) -> api::DeadLetterInfo {
    let Letter { id, mut says, .. } = letter;
    let payload_size = says.payload.len() as u64;
    if !payload {
        says = DeadLetter {
            payload: Vec::new(),
            ..says
        };
    }
    let kind = match id.kind() {
        LetterKind::Task => api::DeadLetterKind::Task,
        LetterKind::Intake => api::DeadLetterKind::Intake,
        LetterKind::Webhook => api::DeadLetterKind::Webhook,
    };
    api::DeadLetterInfo {
        id: id.to_string(),
        kind: kind.into(),
        letter: Some(says),
        payload_size,
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
        let id = id(&request.into_inner().id)?;
        let letter = self.get(&id).await.map_err(status)?;
        let letter = Some(encode(letter, true));
        Ok(Response::new(api::GetDeadLetterResponse { letter }))
    }

    async fn retry_dead_letter(
        &self,
        request: Request<api::RetryDeadLetterRequest>,
    ) -> Result<Response<api::RetryDeadLetterResponse>, Status> {
        let id = id(&request.into_inner().id)?;
        let retried = self.retry(&id).await.map_err(status)?;
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
        let id = id(&request.into_inner().id)?;
        let removed = self.remove(&id).await.map_err(status)?;
        let letter = removed.map(|letter| encode(letter, false));
        Ok(Response::new(api::RemoveDeadLetterResponse { letter }))
    }
}
