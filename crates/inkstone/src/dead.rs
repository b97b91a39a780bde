//! `inkstone dead`: what was given up, on the orchestrator's own address.

use std::path::Path;
use std::time::SystemTime;

use contract::ErrorCode;
use contract::orchestrator::dead_letter_service_client::DeadLetterServiceClient;
use contract::orchestrator::{
    DeadLetterInfo, DeadLetterKind, GetDeadLetterRequest, ListDeadLettersRequest,
    RemoveDeadLetterRequest, RetryDeadLetterRequest,
};
use contract::task::{DeadLetter, WebhookDelivery};
use prost::Message as _;
use rpc::{Identity, Peer};
use serde_json::{Value, json};
use tonic::transport::Uri;

use crate::callee::Callee;
use crate::cli::TlsArgs;
use crate::client::service_peer;
use crate::error::CliError;
use crate::out::say;
use crate::place::Place;

/// Characters of a reason in a list, where each letter has a line; `show` has all of it.
const MAX_REASON: usize = 80;

/// Where the orchestrator's address can be given.
const ORCHESTRATOR_URL: &str = "--orchestrator-url";

#[derive(Debug, clap::Args)]
pub(crate) struct DeadArgs {
    /// The orchestrator's own address. Default: the one that runs on the data folder.
    #[arg(long, global = true, env = "INKSTONE_ORCHESTRATOR_URL")]
    orchestrator_url: Option<String>,
    /// Print JSON, for programs; it holds prompts.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DeadCommand {
    /// List dead letters, oldest first.
    #[command(after_help = crate::examples::DEAD)]
    List(ListArgs),
    /// Show one letter with what it holds a copy of. One that cannot be decoded has a number for its id.
    Show {
        /// Its id, as a list has it.
        id: String,
    },
    /// Try again what letters hold: a failed task is submitted again as a new one, a submission over NATS is taken in again, a webhook
    /// is told again. A letter is removed when that is stored.
    Retry {
        /// Their ids, as a list has them.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Remove letters that are of no use any more, at once. Nothing is tried again. One that is not there is no error.
    Remove {
        /// Their ids, as a list has them.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only this tenant's.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only of tasks, of submissions over NATS (intake), or of webhooks.
    #[arg(long)]
    kind: Option<Kind>,
    /// Only those with this code, such as attempts_exhausted; a list shows them.
    #[arg(long, default_value = "", hide_default_value = true)]
    code: String,
    /// Only those written since: a time (2026-01-02T03:04:05Z), or how long ago (90m, 2d).
    #[arg(long, value_parser = since)]
    since: Option<SystemTime>,
    /// How many at most, 1 to 200.
    #[arg(
        long,
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=200),
        allow_negative_numbers = true
    )]
    limit: u32,
    /// Go on where a list ended, with the same filters: what its last line says.
    #[arg(long, default_value = "", hide_default_value = true)]
    after: String,
}

impl ListArgs {
    /// What is said of a list that nothing is in.
    fn none(&self) -> &'static str {
        let texts = [&self.tenant, &self.code, &self.after];
        let all =
            self.kind.is_none() && self.since.is_none() && texts.iter().all(|text| text.is_empty());
        match all {
            true => "There are no dead letters.",
            false => "There are no such dead letters.",
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    Task,
    Intake,
    Webhook,
}

impl Kind {
    fn of_call(self) -> DeadLetterKind {
        match self {
            Self::Task => DeadLetterKind::Task,
            Self::Intake => DeadLetterKind::Intake,
            Self::Webhook => DeadLetterKind::Webhook,
        }
    }
}

fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.into());
    }
    let ago = text.parse::<::settings::Millis>();
    let time = ago
        .ok()
        .and_then(|ago| SystemTime::now().checked_sub(ago.duration()));
    time.ok_or_else(|| "since is a time such as 2026-01-02T03:04:05Z, or 90m or 2d ago".to_owned())
}

pub(crate) async fn run(data: &Path, tls: &TlsArgs, args: DeadArgs) -> Result<(), CliError> {
    let mut letters = Letters::of(data, tls, args.orchestrator_url)?;
    match args.command {
        DeadCommand::List(list) => letters.list(list, args.json).await,
        DeadCommand::Show { id } => letters.show(id, args.json).await,
        DeadCommand::Retry { ids } => {
            for id in ids {
                letters.retry(id, args.json).await?;
            }
            Ok(())
        }
        DeadCommand::Remove { ids } => {
            for id in ids {
                letters.remove(id, args.json).await?;
            }
            Ok(())
        }
    }
}

struct Letters {
    callee: Callee,
    service: DeadLetterServiceClient<Peer>,
}

impl Letters {
    fn of(data: &Path, tls: &TlsArgs, url: Option<String>) -> Result<Self, CliError> {
        let running = Place::at(data).running();
        let local = running.map(|running| running.orchestrator);
        let url = url.or(local.filter(|url| !url.is_empty()));
        let url = url.ok_or_else(|| CliError::NotRunning {
            data: data.to_owned(),
        })?;
        let callee = Callee::service(&url, ORCHESTRATOR_URL, tls);
        let peer = service_peer(&callee, Identity::Orchestrator, tls)?;
        let service = rpc::with_limits!(DeadLetterServiceClient::new(peer));
        Ok(Self { callee, service })
    }

    async fn list(&mut self, args: ListArgs, json: bool) -> Result<(), CliError> {
        let none = args.none();
        let request = ListDeadLettersRequest {
            tenant: args.tenant,
            kind: args
                .kind
                .map_or(DeadLetterKind::Unspecified, Kind::of_call)
                .into(),
            code: args.code,
            since: args.since.map(Into::into),
            page_size: args.limit,
            page_token: args.after,
        };
        let listed = self.service.list_dead_letters(rpc::idempotent(request));
        let listed = self.callee.call(listed).await?;
        let next = listed.next_page_token;
        if json {
            let letters: Vec<Value> = listed.letters.iter().map(as_json).collect();
            return print(&json!({ "letters": letters, "after": next }));
        }
        if listed.letters.is_empty() && next.is_empty() {
            say!("{none}");
            return Ok(());
        }
        say!("{:<54} {:<20} {:<22} REASON", "ID", "AT", "CODE");
        for info in &listed.letters {
            let letter = info.letter.clone().unwrap_or_default();
            let reason = beginning(one_line(&letter.reason));
            say!(
                "{:<54} {:<20} {:<22} {reason}",
                info.id,
                at(&letter),
                code(info, &letter)
            );
        }
        if !next.is_empty() {
            say!("There may be more: --after {next}");
        }
        Ok(())
    }

    async fn show(&mut self, id: String, json: bool) -> Result<(), CliError> {
        let request = rpc::idempotent(GetDeadLetterRequest { id });
        let found = self.callee.call(self.service.get_dead_letter(request));
        let info = found.await.map_err(of_letter)?.letter;
        let info = info.ok_or(CliError::Answer("a dead letter that is none"))?;
        if json {
            return print(&as_json(&info));
        }
        let letter = info.letter.clone().unwrap_or_default();
        let line = |name: &str, value: &str| {
            if !value.is_empty() {
                say!("{name:<9} {value}");
            }
        };
        line("id", &info.id);
        line("kind", kind(&info));
        line("tenant", &letter.tenant);
        line("task", &letter.task_id);
        line("url", &one_line(&url(&info).unwrap_or_default()));
        line("lane", &letter.lane);
        line("at", &at(&letter));
        line("code", code(&info, &letter));
        line("reason", &one_line(&letter.reason));
        line("key", &letter.app_key);
        line("subject", &one_line(&letter.subject));
        for (name, value) in &letter.headers {
            line("header", &one_line(&format!("{name}: {value}")));
        }
        line("payload", &payload(&letter));
        Ok(())
    }

    async fn retry(&mut self, id: String, json: bool) -> Result<(), CliError> {
        let request = RetryDeadLetterRequest { id: id.clone() };
        // Done twice it is done once.
        let retried = self.service.retry_dead_letter(rpc::idempotent(request));
        let retried = self.callee.call(retried).await.map_err(of_letter)?;
        let task = retried.task_id;
        if json {
            return print(&json!({ "id": id, "task_id": task, "existing": retried.existing }));
        }
        match (task.as_str(), retried.existing) {
            ("", _) => say!("{id}: the webhook is told again"),
            (task, false) => say!("{id}: submitted again as task {task}"),
            (task, true) => say!("{id}: had been submitted again as task {task}"),
        }
        Ok(())
    }

    async fn remove(&mut self, id: String, json: bool) -> Result<(), CliError> {
        let request = RemoveDeadLetterRequest { id: id.clone() };
        // Done twice it is done once.
        let removed = self.service.remove_dead_letter(rpc::idempotent(request));
        let removed = self.callee.call(removed).await?.letter;
        if json {
            let letter = removed.as_ref().map(as_json);
            return print(&json!({ "id": id, "removed": letter.is_some(), "letter": letter }));
        }
        match removed {
            Some(info) => say!("{id}: removed: {}", summary(&info)),
            None => say!(
                "{id}: was not there: it never was, has expired, or was tried again or removed"
            ),
        }
        Ok(())
    }
}

/// Why a call for one letter failed.
fn of_letter(error: CliError) -> CliError {
    match error {
        CliError::Refused(failure) if failure.code == ErrorCode::NotFound => {
            let reason = failure.message;
            CliError::NoSuchLetter { reason }
        }
        error => error,
    }
}

fn print(value: &Value) -> Result<(), CliError> {
    say!("{value:#}");
    Ok(())
}

fn kind(info: &DeadLetterInfo) -> &'static str {
    match info.kind() {
        DeadLetterKind::Unspecified => "unknown",
        DeadLetterKind::Task => "task",
        DeadLetterKind::Intake => "intake",
        DeadLetterKind::Webhook => "webhook",
    }
}

/// Its code; one that cannot be decoded has none.
fn code<'a>(info: &DeadLetterInfo, letter: &'a DeadLetter) -> &'a str {
    match info.undecodable {
        true => "undecodable",
        false => &letter.code,
    }
}

/// What a letter says, in a line.
fn summary(info: &DeadLetterInfo) -> String {
    let letter = info.letter.clone().unwrap_or_default();
    let reason = one_line(&letter.reason);
    let (kind, code, at) = (kind(info), code(info, &letter), at(&letter));
    format!("{kind}, {code}, {at}: {reason}")
}

/// Where a webhook was to be told, without what may be a secret there: a user's name and password, and the query.
fn url(info: &DeadLetterInfo) -> Option<String> {
    if info.kind() != DeadLetterKind::Webhook {
        return None;
    }
    let payload = info.letter.as_ref()?.payload.as_slice();
    let url = WebhookDelivery::decode(payload).ok()?.url;
    let url = url.parse::<Uri>().ok()?;
    let port = url.port_u16().map(|port| format!(":{port}"));
    let query = url.query().map_or("", |_| "?…");
    let (scheme, host) = (url.scheme_str()?, url.host()?);
    let (port, path) = (port.unwrap_or_default(), url.path());
    Some(format!("{scheme}://{host}{port}{path}{query}"))
}

fn at(letter: &DeadLetter) -> String {
    let at = letter.at.as_ref();
    let at = at.and_then(|at| jiff::Timestamp::from_second(at.seconds).ok());
    at.map(|at| at.to_string()).unwrap_or_default()
}

/// A text that came from outside, without what a terminal would obey.
fn one_line(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// As much of a line as a list shows.
fn beginning(line: String) -> String {
    match line.char_indices().nth(MAX_REASON) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// The payload for people: text where it is text.
fn payload(letter: &DeadLetter) -> String {
    let size = letter.payload.len();
    let is_text = |text: &&str| !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    match std::str::from_utf8(&letter.payload).ok().filter(is_text) {
        Some(text) => format!("{size} bytes: {}", one_line(text)),
        None => format!("{size} bytes, in hexadecimal with --json"),
    }
}

fn as_json(info: &DeadLetterInfo) -> Value {
    let letter = info.letter.clone().unwrap_or_default();
    let hex: String = letter.payload.iter().map(|b| format!("{b:02x}")).collect();
    let mut value = json!({
        "id": info.id,
        "kind": kind(info),
        "tenant": letter.tenant,
        "task_id": letter.task_id,
        "lane": letter.lane,
        "at": at(&letter),
        "code": letter.code,
        "reason": letter.reason,
        "app_key": letter.app_key,
        "subject": letter.subject,
        "headers": letter.headers,
        "payload_size": info.payload_size,
        "undecodable": info.undecodable,
    });
    if !hex.is_empty() {
        value["payload_hex"] = hex.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let time = since("2026-01-02T03:04:05Z").unwrap();
        let seconds = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert_eq!(seconds, 1_767_323_045);
        let ago = SystemTime::now()
            .duration_since(since("90m").unwrap())
            .unwrap();
        assert!(ago.abs_diff(Duration::from_secs(5400)) < Duration::from_secs(60));
        for bad in ["", "yesterday", "-1h", "2026-01-02"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_webhooks_letter_says_whom_it_was_for_and_keeps_secrets() {
        let letter = |kind: DeadLetterKind, url: &str| {
            let delivery = WebhookDelivery {
                url: url.to_owned(),
                ..WebhookDelivery::default()
            };
            let letter = DeadLetter {
                payload: delivery.encode_to_vec(),
                ..DeadLetter::default()
            };
            let mut info = DeadLetterInfo {
                letter: Some(letter),
                ..DeadLetterInfo::default()
            };
            info.set_kind(kind);
            info
        };
        let secret = "https://me:secret@example.com:8443/hook/1?token=secret";
        let shown = url(&letter(DeadLetterKind::Webhook, secret));
        let expected = "https://example.com:8443/hook/1?…";
        assert_eq!(shown.as_deref(), Some(expected));
        let plain = url(&letter(DeadLetterKind::Webhook, "https://example.com/h"));
        assert_eq!(plain.as_deref(), Some("https://example.com/h"));
        assert_eq!(url(&letter(DeadLetterKind::Task, secret)), None);
    }

    #[test]
    fn a_list_shows_the_beginning_of_a_long_reason() {
        let whole = "ä".repeat(MAX_REASON);
        assert_eq!(beginning(whole.clone()), whole);
        assert_eq!(beginning(format!("{whole}b")), format!("{whole}…"));
    }

    #[test]
    fn what_callers_wrote_moves_no_cursor() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        let letter = |payload: &[u8]| DeadLetter {
            payload: payload.to_vec(),
            ..DeadLetter::default()
        };
        assert_eq!(payload(&letter(b"{\"a\":\n1}")), "8 bytes: {\"a\":\\n1}");
        assert!(payload(&letter(b"\x1b[2J")).ends_with("--json"));
    }
}
