//! Files that may change at any time: read again now and then, and taken over when they are whole and good.
//!
//! Files are compared by content, not by time: a mount that swaps a link, a copy that keeps the time and a clock that was set
//! back look all the same. Several files are never replaced at one moment; until the last of them is there, the set is not
//! good, and the one before it stays in use.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lifecycle::{Service, chain};
use tokio::sync::watch;

use super::files::{TlsError, read};
use crate::metrics;

/// From how long before its end a certificate is spoken of.
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Between two such warnings.
const REMIND_EVERY: Duration = Duration::from_secs(3600);

/// What is made of some files.
pub(super) trait Certified: Send + Sync + 'static {
    /// The last moment at which the certificate in it is good.
    fn ends(&self) -> Timestamp;
}

/// Makes something of what is in the files, in their order.
type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, TlsError> + Send + Sync>;

/// Which files, and what becomes of them.
pub(super) struct Source<T> {
    /// What logs and metrics call it.
    pub(super) name: &'static str,
    pub(super) files: Vec<PathBuf>,
    pub(super) parse: Parse<T>,
}

type Contents = Vec<Vec<u8>>;

impl<T: Certified> Source<T> {
    /// What the files hold now.
    pub(super) fn load(&self) -> Result<(T, Contents), TlsError> {
        let contents = self.read()?;
        let value = (self.parse)(&contents)?;
        metrics::certificate_ends(self.name, value.ends());
        Ok((value, contents))
    }

    fn read(&self) -> Result<Contents, TlsError> {
        self.files.iter().map(|path| read(path)).collect()
    }

    /// Loads the files, and follows them until the service stops.
    ///
    /// # Errors
    /// When they are not good now. Later, what was good stays.
    pub(super) fn follow(
        self,
        service: &Service,
        every: Duration,
    ) -> Result<watch::Receiver<Arc<T>>, TlsError> {
        let (value, contents) = self.load()?;
        let first = shown(&self.files);
        tracing::info!(ends = %value.ends(), "TLS with the certificate in {first}");
        let (sender, receiver) = watch::channel(Arc::new(value));
        let stop = service.tasks.stop_token();
        let source = Arc::new(self);
        service.tasks.critical("certificates", async move {
            let mut seen = Ok(contents);
            let mut reminded = None;
            loop {
                remind(&source, sender.borrow().ends(), &mut reminded);
                let pause = tokio::time::sleep(every);
                if stop.run_until_cancelled(pause).await.is_none() {
                    return Ok::<(), std::convert::Infallible>(());
                }
                let reading = source.clone();
                // The disk may be a network away.
                let read = tokio::task::spawn_blocking(move || reading.read()).await;
                // It fails only when the runtime goes down.
                let Ok(now) = read else { continue };
                let now = now.map_err(|error| chain(&error));
                if now == seen {
                    continue;
                }
                source.take_over(&now, &sender);
                seen = now;
            }
        });
        Ok(receiver)
    }

    /// Files that have changed: from now on what they hold, or as before if that is not good.
    fn take_over(&self, now: &Result<Contents, String>, sender: &watch::Sender<Arc<T>>) {
        let parsed = match now {
            Ok(contents) => (self.parse)(contents).map_err(|error| chain(&error)),
            Err(problem) => Err(problem.clone()),
        };
        let outcome = if parsed.is_ok() { "taken" } else { "refused" };
        metrics::certificate_reload(self.name, outcome);
        match parsed {
            Ok(value) => {
                let (ends, name) = (value.ends(), self.name);
                metrics::certificate_ends(name, ends);
                tracing::info!(certificate = name, %ends, "new certificates are in use");
                sender.send_replace(Arc::new(value));
            }
            Err(problem) => {
                let ends = sender.borrow().ends();
                tracing::warn!(
                    certificate = self.name, %ends,
                    "the new certificates cannot be used, those before stay: {problem}"
                );
            }
        }
    }
}

/// The certificate's file, to show: the first.
fn shown(files: &[PathBuf]) -> String {
    let first = files.first();
    first.map_or(String::new(), |path| path.display().to_string())
}

fn remind<T>(source: &Source<T>, ends: Timestamp, last: &mut Option<Instant>) {
    let left = ends.duration_since(Timestamp::now());
    if !is_time(left, last.map(|at| at.elapsed())) {
        return;
    }
    *last = Some(Instant::now());
    let file = shown(&source.files);
    let days = left.as_hours() / 24;
    tracing::warn!(certificate = source.name, %ends, days, "the certificate in {file} ends soon; put a new one there");
}

/// Whether to speak of a certificate that ends in `left`, last spoken of `since` ago.
fn is_time(left: SignedDuration, since: Option<Duration>) -> bool {
    left < SOON && since.is_none_or(|since| since >= REMIND_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_spoken_of_in_its_last_seven_days_and_once_an_hour() {
        let days = |days: i64| SignedDuration::from_hours(days * 24);
        let minutes = |minutes: u64| Some(Duration::from_secs(minutes * 60));
        assert!(!is_time(days(8), None));
        assert!(is_time(days(6), None));
        assert!(!is_time(days(6), minutes(59)));
        assert!(is_time(days(6), minutes(60)));
        assert!(is_time(days(-1), None), "one that has ended too");
    }

    #[derive(Debug, PartialEq)]
    struct Text(String);

    impl Certified for Text {
        fn ends(&self) -> Timestamp {
            Timestamp::MAX
        }
    }

    #[test]
    fn what_is_not_good_leaves_what_was() {
        let parse = |contents: &[Vec<u8>]| match std::str::from_utf8(&contents[0]) {
            Ok(text) => Ok(Text(text.to_owned())),
            Err(_) => Err(TlsError::Content {
                path: "cert.pem".into(),
                expected: "text",
            }),
        };
        let source = Source {
            name: "test",
            files: Vec::new(),
            parse: Box::new(parse),
        };
        let (sender, receiver) = watch::channel(Arc::new(Text("first".to_owned())));
        source.take_over(&Ok(vec![vec![0xff]]), &sender);
        source.take_over(&Err("cannot read it".to_owned()), &sender);
        assert!(!receiver.has_changed().unwrap());
        source.take_over(&Ok(vec![b"second".to_vec()]), &sender);
        assert!(receiver.has_changed().unwrap());
        assert_eq!(receiver.borrow().0, "second");
    }
}
