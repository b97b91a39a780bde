//! HTTP to addresses that callers name, never into private networks.
//!
//! A picture to begin from and a webhook are URLs that a stranger has chosen, and this process stands in a network where
//! strangers do not. So a URL is checked as text ([`Egress::check_url`]: scheme, port, no credentials, no address that is not
//! public), its name is resolved here, every address that comes back is checked (`address.rs`), and the connection is made to
//! one of exactly these: between check and connection nobody resolves again, so a name that changes its mind gains nothing.
//! The name still goes into `Host` and the TLS handshake. Redirects are not followed, proxies of the environment are not used,
//! connections are not kept, answers are not unpacked.
//!
//! Everything is bounded: the time for all of a request, its wait for a turn included; the bytes of an answer, by what it
//! announces and then by what comes; requests at once, in all and to one host; look-ups at once.

mod address;
mod error;
mod resolve;
mod rules;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use reqwest::{Client, Response};
use settings::Millis;

pub use address::{Network, ParseNetworkError, is_public};
pub use error::{EgressError, EgressSetupError};
pub use reqwest::Url;

use resolve::{Lookup, Resolver};
use rules::Rules;
use turns::Turns;

/// What is read of the answer to a [`post`](Egress::post), in bytes.
pub const MAX_ANSWER_BYTES: usize = 4096;
/// The longest that an answer may ask to be left alone.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of requests to addresses that callers name, under `[egress]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressSettings {
    /// Whether there are such requests at all.
    pub enabled: bool,
    /// Refuses `http://`.
    pub https_only: bool,
    /// Networks that are not public and may be reached all the same.
    pub allow: Vec<Network>,
    /// Networks that must not be reached although they are public; stronger than `allow`.
    pub deny: Vec<Network>,
    /// A file with root certificates (PEM) besides the system's; empty for none.
    pub ca_file: String,
    /// For the look-up of a name, the connection and the TLS handshake.
    pub connect_timeout: Millis,
    /// For all of a request. Callers of this crate may ask for less.
    pub timeout: Millis,
    /// Requests at once.
    pub max_concurrent: u32,
    /// Requests at once to one host.
    pub max_per_host: u32,
}

impl EgressSettings {
    /// The first setting that cannot work, and what would: its key and the rule.
    ///
    /// # Errors
    /// When there is one.
    pub fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        const SOME: &str = "must be at least 1";
        const TIME: &str = "must be longer than nothing";
        let counts = [
            ("egress.max_concurrent", self.max_concurrent),
            ("egress.max_per_host", self.max_per_host),
        ];
        let times = [
            ("egress.connect_timeout", self.connect_timeout),
            ("egress.timeout", self.timeout),
        ];
        let none = counts.iter().find(|(_, count)| *count == 0);
        let never = times.iter().find(|(_, time)| time.duration().is_zero());
        let wrong = none.map(|(key, _)| (*key, SOME));
        match wrong.or(never.map(|(key, _)| (*key, TIME))) {
            Some(wrong) => Err(wrong),
            None => Ok(()),
        }
    }
}

/// How much of an answer is taken, and for how long it is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the body.
    pub max_bytes: u64,
    /// For all of the request; `timeout` of the settings holds as well.
    pub timeout: Duration,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What the server says that it is.
    pub content_type: Option<String>,
    /// The body, whole.
    pub bytes: Bytes,
}

/// The answer to what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status, a redirect's included: none is followed.
    pub status: StatusCode,
    /// How long the server asks to be left alone: `Retry-After` in seconds, a day at most. A date is not read.
    pub retry_after: Option<Duration>,
    /// The beginning of the body, [`MAX_ANSWER_BYTES`] at most. The rest is not read.
    pub body_start: Bytes,
}

/// Requests to addresses that callers name. Cheap to clone.
#[derive(Clone)]
pub struct Egress {
    shared: Arc<Shared>,
}

struct Shared {
    rules: Arc<Rules>,
    /// None when it is switched off.
    client: Option<Client>,
    turns: Turns,
    timeout: Duration,
}

impl Egress {
    /// Reads the root certificates; nothing is connected yet.
    ///
    /// # Errors
    /// When there are no root certificates, or `ca_file` cannot be read.
    pub fn new(settings: &EgressSettings) -> Result<Self, EgressSetupError> {
        Self::with_lookup(settings, resolve::system())
    }

    fn with_lookup(settings: &EgressSettings, lookup: Lookup) -> Result<Self, EgressSetupError> {
        let rules = Arc::new(Rules::new(settings));
        let client = match settings.enabled {
            true => Some(client(
                settings,
                Resolver::new(settings, rules.clone(), lookup),
            )?),
            false => None,
        };
        let shared = Shared {
            rules,
            client,
            turns: Turns::new(settings.max_concurrent, settings.max_per_host),
            timeout: settings.timeout.duration(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Whether a request to this URL would be made, as far as its text tells. Nothing is looked up.
    ///
    /// # Errors
    /// [`EgressError::Off`], [`EgressError::Url`] or [`EgressError::NotPublic`].
    pub fn check_url(&self, text: &str) -> Result<Url, EgressError> {
        if self.shared.client.is_none() {
            return Err(EgressError::Off);
        }
        self.shared.rules.check(text)
    }

    /// Fetches what lies at a URL, whole.
    ///
    /// # Errors
    /// The URL is not one to go to, its server is not reached, answers with another status than 200, too slowly or too much.
    pub async fn get(&self, url: &str, limits: Limits) -> Result<Fetched, EgressError> {
        let url = self.check_url(url)?;
        let host = host(&url);
        let fetch = async {
            let answer = self.ask(&host, |client| client.get(url.clone())).await?;
            if answer.status() != StatusCode::OK {
                let status = answer.status().as_u16();
                return Err(EgressError::Status {
                    host: host.clone(),
                    status,
                });
            }
            let content_type = text(answer.headers(), &header::CONTENT_TYPE).map(str::to_owned);
            let bytes = whole(answer, &host, limits.max_bytes).await?;
            Ok(Fetched {
                content_type,
                bytes,
            })
        };
        counted("get", self.in_time(&host, limits.timeout, fetch).await)
    }

    /// Sends `body` to a URL.
    ///
    /// # Errors
    /// The URL is not one to go to, its server is not reached, or does not answer in time. A status that says no is an
    /// [`Answer`].
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Answer, EgressError> {
        let url = self.check_url(url)?;
        let host = host(&url);
        let send = async {
            let request = |client: &Client| client.post(url.clone()).headers(headers).body(body);
            let answer = self.ask(&host, request).await?;
            Ok(Answer {
                status: answer.status(),
                retry_after: retry_after(answer.headers()),
                body_start: start(answer).await,
            })
        };
        counted("post", self.in_time(&host, timeout, send).await)
    }

    /// One request up to the head of its answer.
    async fn ask(
        &self,
        host: &str,
        request: impl FnOnce(&Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, EgressError> {
        let client = self.shared.client.as_ref().ok_or(EgressError::Off)?;
        let sent = request(client).send().await;
        sent.map_err(|error| EgressError::of(host, error))
    }

    /// Waits for a turn and does `work`, for `timeout` at most.
    async fn in_time<T>(
        &self,
        host: &str,
        timeout: Duration,
        work: impl Future<Output = Result<T, EgressError>>,
    ) -> Result<T, EgressError> {
        let limit = timeout.min(self.shared.timeout);
        let mut began = false;
        let turn_and_work = async {
            let _turn = self.shared.turns.take(host).await;
            began = true;
            work.await
        };
        let done = tokio::time::timeout(limit, turn_and_work).await;
        let host = || host.to_owned();
        done.unwrap_or_else(|_| {
            Err(match began {
                true => EgressError::TimedOut {
                    host: host(),
                    limit,
                },
                false => EgressError::Busy { host: host() },
            })
        })
    }
}

fn client(settings: &EgressSettings, resolver: Resolver) -> Result<Client, EgressSetupError> {
    let mut builder = Client::builder()
        .user_agent(concat!("inkstone/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(settings.connect_timeout.duration())
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .dns_resolver(Arc::new(resolver))
        // A connection that stayed would be to an address that was checked some time ago.
        .pool_max_idle_per_host(0)
        .http1_only()
        // What comes is counted; what is unpacked from it would not be. Off already, unless another crate switches it on.
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .https_only(settings.https_only);
    if !settings.ca_file.is_empty() {
        let path = std::path::PathBuf::from(&settings.ca_file);
        let read = std::fs::read(&path);
        let pem = read.map_err(|source| EgressSetupError::ReadCaFile {
            path: path.clone(),
            source,
        })?;
        let roots = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|source| EgressSetupError::CaFile { path, source })?;
        builder = builder.tls_certs_merge(roots);
    }
    builder.build().map_err(EgressSetupError::Client)
}

/// The body of an answer, unless it is longer than `max_bytes`.
async fn whole(mut answer: Response, host: &str, max_bytes: u64) -> Result<Bytes, EgressError> {
    let too_large = || EgressError::TooLarge {
        host: host.to_owned(),
        limit: max_bytes,
    };
    let announced = answer.content_length();
    if announced.is_some_and(|bytes| bytes > max_bytes) {
        return Err(too_large());
    }
    let mut body = Vec::with_capacity(announced.and_then(|n| usize::try_from(n).ok()).unwrap_or(0));
    while let Some(chunk) = answer
        .chunk()
        .await
        .map_err(|error| EgressError::of(host, error))?
    {
        if body.len() as u64 + chunk.len() as u64 > max_bytes {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// The first bytes of an answer's body; where it breaks off, what there is.
async fn start(mut answer: Response) -> Bytes {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        let room = MAX_ANSWER_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_ANSWER_BYTES {
            break;
        }
    }
    body.into()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, &header::RETRY_AFTER)?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The host of a URL that was checked, so it has one.
fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

fn counted<T>(call: &'static str, done: Result<T, EgressError>) -> Result<T, EgressError> {
    let outcome = match &done {
        Ok(_) => "answered",
        Err(error) => error.word(),
    };
    metrics::counter!("inkstone_egress_requests_total", "call" => call, "outcome" => outcome)
        .increment(1);
    done
}

#[cfg(test)]
mod tests;
