//! A key-encryption key that a key management service holds: AWS KMS, or anything that speaks its protocol (JSON 1.1 over
//! HTTPS, `TrentService.Encrypt` and `Decrypt`, requests signed by Signature Version 4).
//!
//! Only data keys, 32 bytes each, go there, bound to their record by the encryption context. What comes back is kept for five
//! minutes, so that a request costs no call, and a service that is away for a while turns nobody away who was here lately.

mod sigv4;

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::{Client, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::key_encryption::{KekId, KeyEncryption, KeyEncryptionError, WrappedKey};
use crate::sealed::{Key, Sealed, Unsealable};
use crate::settings::KmsSettings;
use sigv4::{Credentials, Signed};

/// How long an unwrapped data key is kept.
const KEPT: Duration = Duration::from_secs(300);
/// How many are kept. More keys than that in use at once cost calls, not memory.
const MOST_KEPT: usize = 10_000;
/// Calls under way at once; KMS throttles those who ask for more.
const MAX_CALLS: usize = 32;
/// Attempts at one call, and the pause after the first that failed; each further one is four times as long.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longer than any answer that makes sense.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Of a refusal's own words, what is worth a log line.
const MAX_WORDS: usize = 300;

/// A call to the service that did not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KmsError {
    /// No answer.
    #[error("the key management service at {endpoint} does not answer {operation}")]
    Unreachable {
        endpoint: String,
        operation: &'static str,
        #[source]
        source: reqwest::Error,
    },
    /// It says no.
    #[error("the key management service answered {operation} with {status} {kind}: {words}")]
    Refused {
        operation: &'static str,
        status: u16,
        kind: String,
        words: String,
    },
    /// It says something else.
    #[error("the key management service's answer to {operation} makes no sense: {what}")]
    Answer {
        operation: &'static str,
        what: &'static str,
    },
}

impl KmsError {
    /// Whether another attempt may go better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, kind, .. } => {
                *status >= 500 || *status == 429 || kind.contains("Throttling")
            }
            Self::Answer { .. } => false,
        }
    }
}

/// What cannot be called at all.
#[derive(Debug, thiserror::Error)]
pub enum KmsSetupError {
    /// The endpoint is no URL with a host.
    #[error(
        "{0:?} (setting kms.endpoint) is not a URL such as https://kms.eu-central-1.amazonaws.com"
    )]
    Endpoint(String),
    /// There is nobody to sign as.
    #[error(
        "the key management service needs credentials: set kms.access_key_id and kms.secret_access_key, or \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    Credentials,
    /// TLS, mostly.
    #[error("no HTTPS client can be made")]
    Client(#[source] reqwest::Error),
}

/// A key that the service holds.
pub(crate) struct KmsKey {
    id: KekId,
    key_id: String,
    endpoint: Url,
    host: String,
    region: String,
    credentials: Credentials,
    client: Client,
    calls: Semaphore,
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

struct Kept {
    key: Zeroizing<Vec<u8>>,
    until: Instant,
}

impl fmt::Debug for KmsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl KmsKey {
    /// Reads settings and credentials; nothing is called yet.
    pub(crate) fn new(settings: &KmsSettings) -> Result<Self, KmsSetupError> {
        let endpoint = if settings.endpoint.is_empty() {
            format!("https://kms.{}.amazonaws.com", settings.region)
        } else {
            settings.endpoint.clone()
        };
        let wrong = || KmsSetupError::Endpoint(endpoint.clone());
        let url = Url::parse(&endpoint).map_err(|_| wrong())?;
        let host = url.host_str().ok_or_else(wrong)?;
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let client = Client::builder()
            .timeout(settings.timeout.duration())
            // The signature is over `host`, which HTTP/2 has no header for.
            .http1_only()
            // What is signed for one place must not be sent on to another.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(KmsSetupError::Client)?;
        Ok(Self {
            id: KekId::kms(&settings.key_id),
            key_id: settings.key_id.clone(),
            endpoint: url,
            host,
            region: settings.region.clone(),
            credentials: credentials(settings).ok_or(KmsSetupError::Credentials)?,
            client,
            calls: Semaphore::new(MAX_CALLS),
            kept: Mutex::default(),
        })
    }

    /// One call, tried again while that may help.
    async fn call<A: for<'de> Deserialize<'de>>(
        &self,
        operation: &'static str,
        request: &Request<'_>,
    ) -> Result<A, KmsError> {
        let body = serde_json::to_vec(request).map_err(|_| KmsError::Answer {
            operation,
            what: "the request cannot be written",
        })?;
        let body = Zeroizing::new(body);
        // Only closing it could fail, and nobody does.
        let _call = self.calls.acquire().await;
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match self.attempt(operation, &body).await {
                Err(error) if error.is_passing() => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "asking again");
                    tokio::time::sleep(pause).await;
                    pause *= 4;
                }
                done => return done,
            }
        }
        self.attempt(operation, &body).await
    }

    async fn attempt<A: for<'de> Deserialize<'de>>(
        &self,
        operation: &'static str,
        body: &[u8],
    ) -> Result<A, KmsError> {
        let date = sigv4::amz_date(contract::clock::timestamp());
        let target = format!("TrentService.{operation}");
        let token = self.credentials.session_token.as_ref();
        let token = token.map(|token| token.expose_secret());
        let mut headers = vec![
            ("content-type", "application/x-amz-json-1.1"),
            ("host", self.host.as_str()),
            ("x-amz-date", date.as_str()),
        ];
        headers.extend(token.map(|token| ("x-amz-security-token", token)));
        headers.push(("x-amz-target", &target));
        let signed = Signed {
            method: "POST",
            path: "/",
            headers: &headers,
            body,
        };
        let scope = (self.region.as_str(), "kms");
        let authorization = sigv4::authorization(&signed, &self.credentials, scope, &date);
        let mut request = self.client.post(self.endpoint.clone()).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let sent = request.header("authorization", authorization).send();
        let unreachable = |source| KmsError::Unreachable {
            endpoint: self.endpoint.to_string(),
            operation,
            source,
        };
        let mut answer = sent.await.map_err(unreachable)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                let what = "it is too long";
                return Err(KmsError::Answer { operation, what });
            }
            bytes.extend_from_slice(&chunk);
        }
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(refused(operation, status, &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|_| KmsError::Answer {
            operation,
            what: "it is not the JSON expected",
        })
    }

    fn kept(&self, name: &[u8; 32]) -> Option<Key> {
        // A poisoned map still holds whole values: each is written in one step.
        let kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        let kept = kept.get(name).filter(|kept| kept.until > Instant::now())?;
        Key::from_slice(&kept.key)
    }

    fn keep(&self, name: [u8; 32], key: &Key) {
        let now = Instant::now();
        let mut all = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        if all.len() >= MOST_KEPT {
            all.retain(|_, kept| kept.until > now);
        }
        if all.len() < MOST_KEPT {
            let kept = Kept {
                key: Zeroizing::new(key.expose().to_vec()),
                until: now + KEPT,
            };
            all.insert(name, kept);
        }
    }
}

/// Those of the settings, or those that AWS's own tools look for in the environment.
fn credentials(settings: &KmsSettings) -> Option<Credentials> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if !settings.access_key_id.is_empty() {
        let secret = &settings.secret_access_key;
        return (!secret.expose_secret().is_empty()).then(|| Credentials {
            access_key_id: settings.access_key_id.clone(),
            secret_access_key: secret.clone(),
            session_token: None,
        });
    }
    Some(Credentials {
        access_key_id: set("AWS_ACCESS_KEY_ID")?,
        secret_access_key: set("AWS_SECRET_ACCESS_KEY")?.into(),
        session_token: set("AWS_SESSION_TOKEN").map(SecretString::from),
    })
}

fn refused(operation: &'static str, status: u16, body: &[u8]) -> KmsError {
    let said: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let short = |text: String| {
        text.chars()
            .filter(|c| !c.is_control())
            .take(MAX_WORDS)
            .collect()
    };
    KmsError::Refused {
        operation,
        status,
        kind: short(said.kind),
        words: short(said.words),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    #[serde(rename = "__type")]
    kind: String,
    #[serde(alias = "Message", rename = "message")]
    words: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Request<'a> {
    key_id: &'a str,
    encryption_context: Context,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_blob: Option<String>,
}

#[derive(Serialize)]
struct Context {
    inkstone: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    ciphertext_blob: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    plaintext: SecretString,
}

/// The record that a data key belongs to; the service shows it in its own audit log, so it holds no secret.
fn bound_to(context: &[u8]) -> Context {
    Context {
        inkstone: hex::encode(context),
    }
}

/// What an unwrapped key is kept under.
fn name(wrapped: &[u8], context: &[u8]) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&(context.len() as u64).to_be_bytes());
    hash.update(context);
    hash.update(wrapped);
    let mut name = [0; 32];
    name.copy_from_slice(hash.finish().as_ref());
    name
}

impl KeyEncryption for KmsKey {
    fn id(&self) -> &KekId {
        &self.id
    }

    fn wrap<'a>(
        &'a self,
        key: &'a Key,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<WrappedKey, KeyEncryptionError>> {
        async move {
            let plaintext = Zeroizing::new(STANDARD.encode(key.expose()));
            let request = Request {
                key_id: &self.key_id,
                encryption_context: bound_to(context),
                plaintext: Some(&plaintext),
                ciphertext_blob: None,
            };
            let answer: Encrypted = self.call("Encrypt", &request).await?;
            let bytes = STANDARD
                .decode(answer.ciphertext_blob)
                .map_err(|_| KmsError::Answer {
                    operation: "Encrypt",
                    what: "the ciphertext is not base64",
                })?;
            self.keep(name(&bytes, context), key);
            Ok(WrappedKey {
                kek: self.id.clone(),
                bytes: Sealed(bytes),
            })
        }
        .boxed()
    }

    fn unwrap_key<'a>(
        &'a self,
        wrapped: &'a WrappedKey,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<Key, KeyEncryptionError>> {
        async move {
            if wrapped.kek != self.id {
                return Err(KeyEncryptionError::OtherKey {
                    wanted: wrapped.kek.clone(),
                    held: self.id.clone(),
                });
            }
            let name = name(&wrapped.bytes.0, context);
            if let Some(key) = self.kept(&name) {
                return Ok(key);
            }
            let request = Request {
                key_id: &self.key_id,
                encryption_context: bound_to(context),
                plaintext: None,
                ciphertext_blob: Some(STANDARD.encode(&wrapped.bytes.0)),
            };
            let answer: Decrypted = self.call("Decrypt", &request).await?;
            let bytes = STANDARD
                .decode(answer.plaintext.expose_secret())
                .map(Zeroizing::new);
            let key = bytes.ok().and_then(|bytes| Key::from_slice(&bytes));
            let key = key.ok_or(Unsealable)?;
            self.keep(name, &key);
            Ok(key)
        }
        .boxed()
    }
}
