//! Pictures that a task begins from, however a dialect hands them over: as a file, inside a `data:` URL, or by the URL of a
//! place to fetch them from.
//!
//! In this order, so that nobody makes the platform work for what it will refuse: the request is checked as it stands, URLs by
//! their text, then the orchestrator says whether it would accept the task (model, limits, the key's policy); only then a
//! picture is fetched (crate `egress`: never from a private network), looked at, and stored under the caller's tenant by its
//! digest. See `docs/adr/0027-pictures-by-url.md`.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use contract::auth::Caller;
use contract::limits::{MAX_SOURCE_BYTES, MAX_SOURCE_PIXELS};
use contract::{ErrorCode, Failure, v1, validate};
use egress::{EgressError, Limits};

use crate::edge::Edge;
use crate::edge::Upload;

const DATA: &str = "data:";
/// Suggested wait when too many pictures are being fetched.
const BUSY_WAIT: std::time::Duration = std::time::Duration::from_secs(2);
/// With padding or without: both are in use.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a task is to begin from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) image: Picture,
    /// Its transparent parts are painted anew.
    pub(crate) mask: Option<Picture>,
    pub(crate) strength: Option<f32>,
}

/// One picture of a request.
#[derive(Debug)]
pub(crate) struct Picture {
    /// The parameter that complaints are about.
    field: &'static str,
    /// Where it stands in the request: the parameter, or a place inside it.
    place: String,
    given: Given,
}

#[derive(Debug)]
enum Given {
    File(Bytes),
    /// Base64.
    Data(String),
    Url(String),
}

impl Picture {
    /// The parameter that names it.
    pub(crate) fn field(&self) -> &'static str {
        self.field
    }

    /// A file that came with the request.
    pub(crate) fn file(field: &'static str, data: Bytes) -> Self {
        Self {
            field,
            place: field.to_owned(),
            given: Given::File(data),
        }
    }

    /// What a text names: a `data:` URL or another one.
    ///
    /// # Errors
    /// A `data:` URL that is not in base64.
    pub(crate) fn named(
        field: &'static str,
        place: impl Into<String>,
        text: String,
    ) -> Result<Self, Failure> {
        let place = place.into();
        let start = text.get(..DATA.len()).unwrap_or_default();
        if !start.eq_ignore_ascii_case(DATA) {
            let given = Given::Url(text);
            return Ok(Self {
                field,
                place,
                given,
            });
        }
        let coded = text.split_once(',').and_then(|(head, coded)| {
            let base64 = head.to_ascii_lowercase().ends_with(";base64");
            base64.then(|| coded.to_owned())
        });
        let Some(coded) = coded else {
            let message = format!("{place} must be a URL such as data:image/png;base64,iVBOR…");
            return Err(Failure::invalid(field, message));
        };
        let given = Given::Data(coded);
        Ok(Self {
            field,
            place,
            given,
        })
    }

    fn wrong(&self, rule: impl std::fmt::Display) -> Failure {
        Failure::invalid(self.field, format!("{} {rule}", self.place))
    }

    /// Whether it could be had, as far as the request itself tells.
    fn check(&self, edge: &Edge) -> Result<(), Failure> {
        match &self.given {
            Given::File(data) => self.check_size(data.len()),
            Given::Data(coded) => self.check_size(coded.len() / 4 * 3),
            Given::Url(url) => match edge.egress.check_url(url) {
                Ok(_) => Ok(()),
                Err(error) => Err(self.unfetched(error)),
            },
        }
    }

    fn check_size(&self, bytes: usize) -> Result<(), Failure> {
        match bytes as u64 > MAX_SOURCE_BYTES {
            true => Err(self.wrong(format!(
                "must be at most {MAX_SOURCE_BYTES} bytes, not {bytes}"
            ))),
            false => Ok(()),
        }
    }

    fn unfetched(&self, error: EgressError) -> Failure {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "a picture was not fetched"
        );
        match error {
            EgressError::Url { problem } => self.wrong(problem),
            EgressError::Busy { .. } => {
                Failure::unavailable(format!("{}: {error}; try again", self.place), BUSY_WAIT)
            }
            EgressError::TooLarge { limit, .. } => {
                self.wrong(format!("must be at most {limit} bytes"))
            }
            error => self.wrong(format!("cannot be fetched: {error}")),
        }
    }

    /// The file itself.
    async fn file_of(&mut self, edge: &Arc<Edge>) -> Result<Bytes, Failure> {
        match std::mem::replace(&mut self.given, Given::File(Bytes::new())) {
            Given::File(data) => Ok(data),
            Given::Data(coded) => {
                let decoded = in_turn(edge, move || BASE64.decode(coded)).await?;
                let decoded =
                    decoded.map_err(|_| self.wrong("must be in base64 after its comma"))?;
                self.check_size(decoded.len())?;
                Ok(decoded.into())
            }
            Given::Url(url) => {
                let limits = Limits {
                    max_bytes: MAX_SOURCE_BYTES,
                    timeout: edge.http.request_timeout.duration(),
                };
                let fetched = edge.egress.get(&url, limits).await;
                Ok(fetched.map_err(|error| self.unfetched(error))?.bytes)
            }
        }
    }
}

/// Lets `task` begin from `source`: checks everything, has the files and stores them. `upload` is held until they are stored,
/// which is as long as they are in memory. Complaints about the task are told by the names that `named` has: those about pictures have the
/// caller's already, which may be one that the contract has for something else.
///
/// # Errors
/// What is wrong with the request, that it would not be accepted, or that a picture cannot be had or stored.
pub(crate) async fn begin_from(
    edge: &Arc<Edge>,
    caller: &Caller,
    task: &mut v1::SubmitTask,
    source: Source,
    upload: Upload,
    named: impl Fn(Failure) -> Failure,
) -> Result<(), Failure> {
    let Source {
        mut image,
        mut mask,
        strength,
    } = source;
    let stored = |image_key: String, mask_key: Option<String>| v1::Source {
        image_key,
        mask_key: mask_key.unwrap_or_default(),
        strength,
    };
    // Named when it is stored; until then, that there is one is all that can be checked.
    task.source = Some(stored("image".to_owned(), None));
    validate(task).map_err(&named)?;
    image.check(edge)?;
    mask.as_ref().map_or(Ok(()), |mask| mask.check(edge))?;
    let checked = edge.platform.check(caller, task).await;
    checked.map_err(named)?;

    // One after the other: of the requests that go out at once, one tenant has as many as of uploads.
    let image_file = image.file_of(edge).await?;
    let mask_file = match &mut mask {
        Some(mask) => Some(mask.file_of(edge).await?),
        None => None,
    };
    let seen = (image_file.clone(), mask_file.clone());
    let fields = (image, mask);
    in_turn(edge, move || {
        let mask = fields.1.as_ref().zip(seen.1.as_ref());
        look_at((&fields.0, &seen.0), mask)
    })
    .await??;

    let image_key = edge.platform.keep_input(&caller.tenant, image_file).await?;
    let mask_key = match mask_file {
        Some(mask) => Some(edge.platform.keep_input(&caller.tenant, mask).await?),
        None => None,
    };
    task.source = Some(stored(image_key, mask_key));
    drop(upload);
    Ok(())
}

/// Does work that takes memory and a core off the runtime's threads, a few at a time.
pub(crate) async fn in_turn<T: Send + 'static>(
    edge: &Arc<Edge>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let broken = || Failure::new(ErrorCode::Internal, "the pictures were not read");
    let turn = edge.decodes.clone().acquire_owned().await;
    let turn = turn.map_err(|_| broken())?;
    let work = move || {
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| broken())
}

/// Whether the files are pictures that go together, within the limits of both.
fn look_at(
    (image, file): (&Picture, &Bytes),
    mask: Option<(&Picture, &Bytes)>,
) -> Result<(), Failure> {
    let undecoded = |picture: &Picture, error: imaging::DecodeError| {
        if matches!(error, imaging::DecodeError::NoAlpha) {
            let rule = "must have an alpha channel, whose transparent part is painted anew";
            return picture.wrong(rule);
        }
        let why = lifecycle::chain(&error);
        picture.wrong(format!("must be a PNG, JPEG or WebP file: {why}"))
    };
    let decoded = imaging::decode(file, MAX_SOURCE_PIXELS);
    let (width, height, pixels) = decoded.map_err(|error| undecoded(image, error))?;
    // The next one takes as much.
    drop(pixels);
    let Some((mask, file)) = mask else {
        return Ok(());
    };
    let decoded = imaging::decode_mask(file, MAX_SOURCE_PIXELS);
    let (w, h, _) = decoded.map_err(|error| undecoded(mask, error))?;
    if (w, h) != (width, height) {
        let place = &image.place;
        let rule = format!("must have the size of {place}, {width}x{height}, not {w}x{h}");
        return Err(mask.wrong(rule));
    }
    Ok(())
}

/// Looks at the files of a form, for `fuzz.rs`.
pub(crate) fn fuzz(image: &Picture, mask: Option<&Picture>) -> Result<(), Failure> {
    let file = |picture: &Picture| match &picture.given {
        Given::File(file) => Some(file.clone()),
        Given::Data(_) | Given::Url(_) => None,
    };
    let mask = mask.and_then(|mask| Some((mask, file(mask)?)));
    let mask = mask.as_ref().map(|(mask, file)| (*mask, file));
    match file(image) {
        Some(file) => look_at((image, &file), mask),
        None => Ok(()),
    }
}

/// Exactly one picture of a list that may name several, because clients send lists.
///
/// # Errors
/// None, or more than the models here draw from.
pub(crate) fn only<T>(field: &'static str, mut list: Vec<T>) -> Result<T, Failure> {
    let count = list.len();
    match (list.pop(), list.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => {
            let message = format!("{field} must hold 1 picture, and none is given");
            Err(Failure::invalid(field, message))
        }
        _ => {
            let message =
                format!("{field} must hold 1 picture, not {count}: the models here draw from one");
            Err(Failure::invalid(field, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn coded(text: &str) -> Option<String> {
        match Picture::named("image", "image", text.to_owned())
            .ok()?
            .given
        {
            Given::Data(coded) => Some(coded),
            _ => None,
        }
    }

    #[test]
    fn a_data_url_gives_its_base64_and_any_other_is_one_to_fetch() {
        assert_eq!(coded("data:image/png;base64,AAAA").unwrap(), "AAAA");
        assert_eq!(coded("DATA:;BASE64,").unwrap(), "");
        assert_eq!(coded("data:image/png;charset=x;base64,A,B").unwrap(), "A,B");
        for bad in ["data:", "data:image/png,abc", "data:image/png;base64"] {
            let failure = Picture::named("mask", "mask.image_url", bad.to_owned()).unwrap_err();
            assert_eq!(failure.field.as_deref(), Some("mask"), "{bad}");
            assert!(
                failure.message.starts_with("mask.image_url must"),
                "{failure}"
            );
        }
        let other = Picture::named("image", "image", "https://h/x".to_owned()).unwrap();
        assert!(matches!(other.given, Given::Url(url) if url == "https://h/x"));
        assert_eq!(BASE64.decode("/w").unwrap(), BASE64.decode("/w==").unwrap());
    }

    #[test]
    fn what_is_no_picture_is_refused_by_its_name() {
        let file = Bytes::from_static(b"GIF89a");
        let image = Picture::file("image", file.clone());
        let failure = look_at((&image, &file), None).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("image"));
        assert!(failure.message.contains("PNG, JPEG or WebP"), "{failure}");
    }

    #[test]
    fn a_list_of_one_is_one_and_of_more_is_refused_with_the_limit() {
        assert_eq!(only("image", vec![7]).unwrap(), 7);
        for list in [vec![], vec![1, 2]] {
            let failure = only("image", list).unwrap_err();
            assert_eq!(failure.field.as_deref(), Some("image"));
            assert!(failure.message.contains("must hold 1 picture"), "{failure}");
        }
    }

    #[test]
    fn what_was_not_fetched_is_told_in_the_parameters_name() {
        let picture = Picture::named("images", "images[0].image_url", "x".to_owned()).unwrap();
        let problem = "must begin with https://";
        let failure = picture.unfetched(EgressError::Url { problem });
        assert_eq!(
            failure.message,
            "images[0].image_url must begin with https://"
        );
        let host = || "h".to_owned();
        let failure = picture.unfetched(EgressError::Status {
            host: host(),
            status: 404,
        });
        assert_eq!(failure.code, ErrorCode::InvalidArgument);
        assert_eq!(failure.field.as_deref(), Some("images"));
        let failure = picture.unfetched(EgressError::Busy { host: host() });
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.retry_after.is_some());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(data:)?\\PC{0,30}|data:[a-z;/,]{0,20}") {
            let _ = Picture::named("image", "image", text);
        }
    }
}
